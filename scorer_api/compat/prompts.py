"""Prompts as other indexers are asked about: by tokens, every whole block of which may match."""

from indexer.core.block_keys import TOKEN_BYTES, fold_extra_keys
from scorer_api.index.prompt import Prompt


def whole_prompt(model: str, tokens: bytes, lora_name: str | None, cache_salt: str | None) -> Prompt:
    """`tokens`: little-endian uint32. One token more is looked up: no engine takes a whole prompt from its cache, and the others do not know that."""
    salt = fold_extra_keys((), cache_salt)
    return Prompt(model, tokens + bytes(TOKEN_BYTES), lora_name or None, {0: salt} if salt else None)

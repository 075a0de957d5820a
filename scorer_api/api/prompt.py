"""From a decoded request to what is tokenized, and to the prompt that is looked up."""

from collections.abc import Generator
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from indexer.core.block_keys import TOKEN_BYTES, TOKEN_MAX, fold_extra_keys, pack_tokens, read_extra_keys
from indexer.core.event_pieces import result_of
from indexer.http.problems import Problem
from scorer_api.api.schemas import ScoreRequest
from scorer_api.index.prompt import Prompt
from scorer_api.tokens.token_lists import first_out_of_range
from scorer_api.tokens.tokenize_input import TokenizedInput, TokenizeInput

EXTRA_KEYS_BYTES_MAX = 65_536
# They take about a millisecond.
STEP_BLOCKS = 256


def has_chat_fields(request: ScoreRequest) -> bool:
    """Whether there is anything of a chat in it, which goes with messages only."""
    return request.tools is not UNSET or request.chat_template_kwargs is not UNSET or request.add_generation_prompt is not None


def tokenize_input_of(request: ScoreRequest) -> TokenizeInput:
    """The prompt or chat of a request that is to be tokenized. Raises Problem 422 for fields that do not go together."""
    model = request.lora_name or request.model
    if request.messages is UNSET:
        for name in ("tools", "chat_template_kwargs", "add_generation_prompt"):
            if getattr(request, name) not in (None, UNSET):
                raise Problem(422, f"{name}: goes with messages only")
        return TokenizeInput(model, None if isinstance(request.prompt, list) else request.prompt)
    continues = request.continue_final_message is True
    return TokenizeInput(
        model,
        messages=bytes(request.messages),
        tools=_json_of(request.tools),
        chat_template_kwargs=_json_of(request.chat_template_kwargs),
        # Engines refuse a chat that asks for both.
        add_generation_prompt=not continues if request.add_generation_prompt is None else request.add_generation_prompt,
        continue_final_message=continues,
        documents=_json_of(request.documents),
        reasoning_effort=request.reasoning_effort,
        chat_template=request.chat_template,
        mm_processor_kwargs=_json_of(request.mm_processor_kwargs),
    )


def _json_of(field: Raw | UnsetType) -> bytes | None:
    return None if field is UNSET else bytes(field)


def prompt_of(request: ScoreRequest, tokenized: TokenizedInput | None = None) -> Prompt:
    """The prompt of a request. `tokenized`: if the request does not contain the tokens. Raises Problem 422 for values that no prompt can have.

    Extra keys that the request gives count, not what an engine said of its media.
    """
    if tokenized is None and not request.block_extra_keys and not request.cache_salt:
        return Prompt(request.model, _packed_tokens(request.token_ids or []), request.lora_name or None)
    return result_of(prompt_in_steps(request, tokenized))


def prompt_in_steps(request: ScoreRequest, tokenized: TokenizedInput | None = None) -> Generator[None, None, Prompt]:
    """The same, with the extra keys of STEP_BLOCKS blocks in each step."""
    tokens = _packed_tokens(request.token_ids or []) if tokenized is None else tokenized.tokens
    prompt = Prompt(request.model, tokens, request.lora_name or None, (yield from _extra_keys(request)))
    if tokenized is None or not tokenized.media or request.block_extra_keys:
        return prompt
    return msgspec.structs.replace(prompt, extra_keys=None, media=tokenized.media, cache_salt=request.cache_salt or None)


def _packed_tokens(token_ids: list[int] | bytes) -> bytes:
    if isinstance(token_ids, bytes):
        if len(token_ids) % TOKEN_BYTES:
            raise Problem(
                422, f"token_ids: a bin should have {TOKEN_BYTES} bytes a token (little-endian uint32); {len(token_ids)} is no multiple of that"
            )
        return token_ids
    try:
        return pack_tokens(token_ids)
    except OverflowError:
        raise out_of_range(*first_out_of_range(token_ids)) from None


def out_of_range(position: int, token: int, field: str = "token_ids") -> Problem:
    """The problem for a token that is none. `field`: of the request."""
    return Problem(422, f"{field}[{position}]: {token} should be from 0 to {TOKEN_MAX}")


def _extra_keys(request: ScoreRequest) -> Generator[None, None, dict[int, bytes] | None]:
    """Block number → folded extra keys: those of the request, read like an engine's, and its cache salt in the first block."""
    folded: dict[int, bytes] = {}
    seen: set[int] = set()
    first_own: list[Any] = []
    salt = request.cache_salt or None
    for position, (number, entry) in enumerate(request.block_extra_keys or ()):
        where = f"block_extra_keys[{position}]"
        if number in seen:
            raise Problem(422, f"{where}: block {number} is given twice; give each block once")
        seen.add(number)
        own, announced_salt = read_extra_keys(entry, request.lora_name or None, first=number == 0)
        if announced_salt is not None and salt is not None and announced_salt != salt:
            raise Problem(422, f"{where}: a text in block 0 is the cache salt, and it is not the one in cache_salt; give one of them")
        salt = salt or announced_salt
        if not number:
            first_own = own
        elif extra := _folded(number, own, None):
            folded[number] = extra
        if position % STEP_BLOCKS == STEP_BLOCKS - 1:
            yield
    if extra := _folded(0, first_own, salt):
        folded[0] = extra
    return folded or None


def _folded(number: int, own: list[Any], salt: str | None) -> bytes:
    try:
        if not all(_is_extra_key(item) or (isinstance(item, list) and all(map(_is_extra_key, item))) for item in own):
            raise TypeError("not an extra key")
        folded = fold_extra_keys(own, salt)
    except (TypeError, ValueError, OverflowError):
        raise Problem(422, f"block_extra_keys: the keys of block {number} should be texts, bytes, 64-bit integers or lists of these") from None
    if len(folded) > EXTRA_KEYS_BYTES_MAX:
        raise Problem(422, f"block_extra_keys: the keys of block {number} have {len(folded)} bytes; at most {EXTRA_KEYS_BYTES_MAX} are taken")
    return folded


def _is_extra_key(item: Any) -> bool:
    return isinstance(item, str | bytes | int) and not isinstance(item, bool)

"""A prompt to look up, and its block keys."""

from collections.abc import Iterator, Mapping

from msgspec import Struct

from indexer.core.block_keys import TOKEN_BYTES, chain_keys, root_key
from scorer_api.index.engine_hashes import EngineHashes
from scorer_api.index.scoring import usable_blocks

# Number of keys computed at a time: a cold prompt costs one run only.
RUN_BLOCKS = 64


class Prompt(Struct, frozen=True):
    """A prompt by its tokens. `tokens`: little-endian uint32. `extra_keys`: block number → folded extra keys.

    `prepared`: keys that were computed beforehand, for a long prompt.
    """

    model: str
    tokens: bytes
    lora_name: str | None = None
    extra_keys: Mapping[int, bytes] | None = None
    prepared: "PromptKeys | None" = None

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.tokens) // TOKEN_BYTES


Query = Prompt | EngineHashes


def length_in_tokens(query: Query, block_size: int) -> int:
    """The length of a query. Of engine hashes all may match, so it is that of their blocks and one token more."""
    return query.length if isinstance(query, Prompt) else len(query.hashes) * block_size + 1


class PromptKeys:
    """The block keys of one prompt: block size → keys from the first block on.

    They are computed once, in runs, when a walk or a caller needs them, and kept for the next caller.
    """

    __slots__ = ("_computed", "_hash_seed", "_prompt")

    def __init__(self, prompt: Prompt, hash_seed: str) -> None:
        self._prompt = prompt
        self._hash_seed = hash_seed
        self._computed: dict[int, list[int]] = {}

    def computed(self, block_size: int) -> list[int]:
        """The keys that there are so far; to read, not to change. It grows with what `runs` and `all` compute."""
        return self._computed.setdefault(block_size, [])

    @property
    def longest(self) -> int | None:
        """The block size for which most keys are computed; None where there are none at all."""
        return max(self._computed, key=lambda size: len(self._computed[size]), default=None)

    def runs(self, block_size: int) -> Iterator[list[int]]:
        """The keys of the usable blocks: at once those that there are, then RUN_BLOCKS at a time, computed as they are taken by one walk."""
        prompt = self._prompt
        blocks = usable_blocks(prompt.length, block_size)
        computed = self.computed(block_size)
        if computed:
            yield computed[:blocks]
        parent = computed[-1] if computed else root_key(prompt.model, prompt.lora_name, self._hash_seed)
        for start in range(len(computed), blocks, RUN_BLOCKS):
            keys = chain_keys(parent, prompt.tokens, block_size, prompt.extra_keys, start, min(start + RUN_BLOCKS, blocks))
            computed += keys
            yield keys
            parent = keys[-1]

    def all(self, block_size: int) -> list[int]:
        """The keys of all whole blocks, the last one too that no engine can take from its cache."""
        prompt = self._prompt
        keys = self.computed(block_size)
        parent = keys[-1] if keys else root_key(prompt.model, prompt.lora_name, self._hash_seed)
        blocks = prompt.length // block_size
        if len(keys) < blocks:
            keys += chain_keys(parent, prompt.tokens, block_size, prompt.extra_keys, len(keys), blocks)
        return keys

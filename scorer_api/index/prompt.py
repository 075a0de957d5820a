"""A prompt to look up, and its block keys."""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from msgspec import Struct

from indexer.compiled import core
from indexer.core.block_keys import TOKEN_BYTES, fold_extra_keys, key_array, root_key
from scorer_api.index.engine_hashes import EngineHashes
from scorer_api.index.mask_walk import PreparedWalk
from scorer_api.index.scoring import usable_blocks

# Number of keys computed at a time: a cold prompt costs one run only. The core computes as many more each time as there are, up to RUN_BLOCKS_MAX.
RUN_BLOCKS = 64
RUN_BLOCKS_MAX = RUN_BLOCKS if core is None else 512


class Placeholder(Struct, frozen=True):
    """The tokens of one image or other medium in a prompt: `length` tokens from `offset` on. `identifier`: the engine's name for its content."""

    identifier: str
    offset: int
    length: int


def media_keys(media: Sequence[Placeholder], cache_salt: str | None, block_size: int) -> dict[int, bytes]:
    """Block number → folded extra keys, as vLLM makes them: for each medium in a block its identifier, and where it begins, counted from the block's
    first token. `cache_salt` is part of those of the first block.
    """
    own: dict[int, list[Any]] = {0: []} if cache_salt else {}
    for each in sorted(media, key=lambda each: each.offset):
        for number in range(each.offset // block_size, -(-(each.offset + each.length) // block_size)):
            own.setdefault(number, []).append([each.identifier, each.offset - number * block_size])
    return {number: fold_extra_keys(keys, cache_salt if number == 0 else None) for number, keys in own.items()}


class Prompt(Struct, frozen=True):
    """A prompt by its tokens. `tokens`: little-endian uint32. `extra_keys`: block number → folded extra keys.

    `media`: what an engine says of its media; these give the extra keys, with `cache_salt`, in place of `extra_keys`.

    `prepared`: keys that were computed beforehand, for a long prompt.
    """

    model: str
    tokens: bytes
    lora_name: str | None = None
    extra_keys: Mapping[int, bytes] | None = None
    prepared: "PromptKeys | None" = None
    media: tuple[Placeholder, ...] = ()
    cache_salt: str | None = None

    @property
    def length(self) -> int:
        """In tokens."""
        return len(self.tokens) // TOKEN_BYTES


Query = Prompt | EngineHashes


def length_in_tokens(query: Query, block_size: int) -> int:
    """The length of a query. Of engine hashes all may match, so it is that of their blocks and one token more."""
    return query.length if isinstance(query, Prompt) else len(query.hashes) * block_size + 1


class PromptKeys:
    """The block keys of one prompt: block size and lookahead → keys from the first block on.

    They are computed once, in runs, when a walk or a caller needs them, and kept for the next caller.
    """

    __slots__ = ("_computed", "_extra_keys", "_hash_seed", "_prompt", "walks")

    def __init__(self, prompt: Prompt, hash_seed: str) -> None:
        self._prompt = prompt
        self._hash_seed = hash_seed
        self._computed: dict[tuple[int, int], array[int]] = {}
        self._extra_keys: dict[int, Mapping[int, bytes] | None] = {}
        self.walks: dict[tuple[int, int], PreparedWalk] = {}
        """How blocks are cut → walk along these keys that was made beforehand."""

    def computed(self, block_size: int, lookahead: int = 0) -> "array[int]":
        """The keys that there are so far; to read, not to change. It grows with what `runs` and `all` compute."""
        return self._computed.setdefault((block_size, lookahead), array("Q"))

    def _extra(self, block_size: int) -> Mapping[int, bytes] | None:
        """Block number → folded extra keys."""
        prompt = self._prompt
        if not prompt.media:
            return prompt.extra_keys
        if block_size not in self._extra_keys:
            self._extra_keys[block_size] = media_keys(prompt.media, prompt.cache_salt, block_size)
        return self._extra_keys[block_size]

    @property
    def longest(self) -> int | None:
        """The block size for which most keys are computed, without lookahead; None where there are none at all."""
        return max((size for size, lookahead in self._computed if not lookahead), key=lambda size: len(self._computed[size, 0]), default=None)

    @property
    def length(self) -> int:
        """The prompt's, in tokens."""
        return self._prompt.length

    def runs(self, block_size: int, lookahead: int = 0) -> "Iterator[array[int]]":
        """The keys of the usable blocks: at once those that there are, then RUN_BLOCKS or more at a time, computed as they are taken by one walk."""
        prompt = self._prompt
        blocks = usable_blocks(prompt.length, block_size, lookahead)
        computed = self.computed(block_size, lookahead)
        if computed:
            yield computed[:blocks]
        parent = computed[-1] if computed else root_key(prompt.model, prompt.lora_name, self._hash_seed)
        start = len(computed)
        while start < blocks:
            end = min(start + min(max(RUN_BLOCKS, start), RUN_BLOCKS_MAX), blocks)
            keys = key_array(parent, prompt.tokens, block_size, self._extra(block_size), start, end, lookahead)
            computed += keys
            yield keys
            start, parent = end, keys[-1]

    def all(self, block_size: int, lookahead: int = 0) -> "array[int]":
        """The keys of all whole blocks, the last one too that no engine can take from its cache."""
        prompt = self._prompt
        keys = self.computed(block_size, lookahead)
        parent = keys[-1] if keys else root_key(prompt.model, prompt.lora_name, self._hash_seed)
        blocks = max(0, prompt.length - lookahead) // block_size
        if len(keys) < blocks:
            keys += key_array(parent, prompt.tokens, block_size, self._extra(block_size), len(keys), blocks, lookahead)
        return keys


class GivenKeys(PromptKeys):
    """Block keys that are known without the prompt's tokens, for one block size; there are none for any other. All of them may match."""

    __slots__ = ("_block_size", "_keys")

    def __init__(self, keys: Sequence[int], block_size: int) -> None:
        super().__init__(Prompt("", b""), "")
        self._keys = array("Q", keys)
        self._block_size = block_size

    @property
    def length(self) -> int:
        """In tokens: those of the blocks and one more."""
        return len(self._keys) * self._block_size + 1

    def computed(self, block_size: int, lookahead: int = 0) -> "array[int]":
        """See PromptKeys."""
        return self._keys if (block_size, lookahead) == (self._block_size, 0) else array("Q")

    def runs(self, block_size: int, lookahead: int = 0) -> "Iterator[array[int]]":
        """See PromptKeys."""
        yield self.computed(block_size, lookahead)

    def all(self, block_size: int, lookahead: int = 0) -> "array[int]":
        """See PromptKeys."""
        return self.computed(block_size, lookahead)

"""What an engine's events mean, whatever dialect they came in.

Engine hashes are unsigned 64-bit integers, tokens are packed little-endian unsigned 32-bit integers, tiers are ours.
"""

from collections.abc import Iterator
from enum import IntEnum
from typing import Any, Protocol

from msgspec import Struct

HASH_MASK = 2**64 - 1


class Tier(IntEnum):
    """Where a block lies, nearest first. The order is the order of preference."""

    GPU = 0
    CPU = 1
    DISK = 2
    OTHER = 3
    REMOTE = 4

    @property
    def word(self) -> str:
        """The tier's name in answers and metrics, e.g. `gpu`."""
        return _WORDS[self]


_WORDS = tuple(tier.name.lower() for tier in Tier)


class Stored(Struct, frozen=True, gc=False):
    """Blocks of one sequence, one behind the other, are now cached.

    `tokens` holds `len(hashes) * block_size` tokens, or nothing: then it names blocks that are announced elsewhere with theirs. So it is for
    `sparse_tokens` too, the number of tokens of an event that names only some of their blocks; `state_tokens` are those tokens where the last hash
    is known to end with them.
    `extra_keys` maps the position of a block in this event to its folded extra keys (`block_keys.fold_extra_keys`); `lists_extra_keys`: whether the
    event lists them, be it that there are none; `announces_extra_keys`: whether its engine does. `salt`: the cache salt of an engine whose hashes do
    not depend on it. `lookahead`: how many tokens behind each block its hash takes in; they come first in `extra_keys`. `parent` is None for the
    first block of a prompt. `group`, `kind`, `window`: of the KV-cache group, as far as the event tells.
    """

    hashes: list[int]
    parent: int | None
    tokens: bytes
    block_size: int
    tier: Tier
    lora_name: str | None
    extra_keys: dict[int, bytes] | None
    announces_extra_keys: bool
    group: int | None
    kind: str | None
    window: int | None = None
    sparse_tokens: int = 0
    state_tokens: bytes = b""
    lists_extra_keys: bool = False
    salt: str | None = None
    lookahead: int = 0


class Removed(Struct, frozen=True, gc=False):
    """One copy of each of these blocks is gone from a tier."""

    hashes: list[int]
    tier: Tier
    group: int | None


class Cleared(Struct, frozen=True, gc=False):
    """The gpu tier was emptied; the second one in a batch says it of the lower tiers."""


Event = Stored | Removed | Cleared


class PlainEvents(Protocol):
    """The events of one batch, or of several, as the compiled core packs them, all of them on the gpu and without anything odd: each is made when it
    is asked for.

    `said`: what they say of their KV-cache groups, each once: of stored ones a tuple (group, kind, window, block size, lookahead), of removed ones
    the number of the group. `stored`, `removed`, `cleared`: how many events of each kind. `stamps`: when each of several batches was published, None
    of one. `adapters`: the LoRA adapters that events name.
    """

    @property
    def said(self) -> tuple[Any, ...]: ...
    @property
    def stamps(self) -> list[float] | None: ...
    @property
    def adapters(self) -> list[str]: ...
    @property
    def stored(self) -> int: ...
    @property
    def removed(self) -> int: ...
    @property
    def cleared(self) -> int: ...
    def __len__(self) -> int: ...
    def __getitem__(self, position: int, /) -> Event: ...
    def __iter__(self) -> Iterator[Event]: ...


Events = list[Event] | PlainEvents
"""Of one batch."""

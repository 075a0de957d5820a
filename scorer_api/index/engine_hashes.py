"""Asking by the engine's own hashes: engine hash → block key → prefix index.

Such a hash is meaningful inside its stream only, so each stream has its own mapping. The stream's owner decides by one rule which hashes stand
for which block keys, `BlockTable.mapped_key`: those by which a tier holds a block and, where blocks are offloaded, those of removed blocks that are
still remembered.

    Redis       each change carries what it does to the mapping (`HashMapping`); `FollowedHashes` keeps the whole of it
    embedded    the owner's state is in this process; `OwnedHashes` asks it, and no hash is kept twice (a copy takes 15 % of what a block takes)

Pure.
"""

from array import array
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Protocol, cast

from msgspec import Struct

from indexer.core.change import Change
from indexer.core.events import HASH_MASK, Tier
from scorer_api.index.holders import Holders
from scorer_api.index.mask_walk import PreparedWalk

HASH_BYTES = 8

KeyOf = Callable[[int], int | None]
"""The block key of an engine hash in one stream."""


class PreparedHashes(Struct, frozen=True):
    """One stream's keys for the hashes of a query, and the walk along them, made beforehand."""

    holders: Holders
    keys: list[int]
    walk: PreparedWalk


class EngineHashes(Struct, frozen=True):
    """What to look for, instead of a prompt: normalised engine hashes, from the first block on.

    `prepared`: what was looked up beforehand, for a long query: id of a stream's holders → its keys.
    """

    model: str
    hashes: Sequence[int]
    prepared: dict[int, PreparedHashes] = {}


def normalised(given: Sequence[int | str | bytes]) -> list[int]:
    """The hashes as unsigned 64-bit integers, like the wire module makes them: of bytes and hexadecimal digits the last 8 bytes.

    Raises ValueError with the position and what would be right.
    """
    try:
        return array("Q", cast(Sequence[int], given)).tolist()  # what is no integer, or too large, is looked at one by one
    except (TypeError, OverflowError):
        return [_normalised(position, value) for position, value in enumerate(given)]


def _normalised(position: int, value: int | str | bytes) -> int:
    if isinstance(value, int):
        if not 0 <= value <= HASH_MASK:
            raise ValueError(f"block_hashes[{position}]: {value} should be from 0 to {HASH_MASK}")
        return value
    try:
        packed = bytes.fromhex(value) if isinstance(value, str) else value
    except ValueError:
        packed = b""
    if len(packed) < HASH_BYTES:
        raise ValueError(f"block_hashes[{position}]: should have at least {HASH_BYTES} bytes, as text two hexadecimal digits for each")
    return int.from_bytes(packed[-HASH_BYTES:], "big")


class HashKeys(Protocol):
    """The block keys of one stream's engine hashes."""

    @property
    def is_complete(self) -> bool:
        """Off where the owner did not hand on all of the mapping."""

    def keys_of(self, hashes: Sequence[int]) -> list[int]:
        """The block keys of the hashes from the first on, up to one that has none."""

    def apply(self, change: Change, holders: Holders) -> None:
        """Follow a change that the index has applied already."""


class FollowedHashes:
    """The mapping of a stream that another process owns, built from its changes."""

    def __init__(self) -> None:
        self.is_complete = True
        self._keys: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def keys_of(self, hashes: Sequence[int]) -> list[int]:
        """See HashKeys."""
        return keys_of(hashes, self._keys.get)

    def apply(self, change: Change, holders: Holders) -> None:
        """See HashKeys."""
        if change.reload:
            self._keys.clear()
        if change.cleared:
            self._keep_lower(holders)
        if change.hash_mapping is not None:
            self._keys.update(change.hash_mapping.keys)
            for engine_hash in change.hash_mapping.removed_hashes:
                self._keys.pop(engine_hash, None)
        elif any(True in touched.values() for touched in (*change.touched, *chain.from_iterable(change.touched_in.values()))):
            self.is_complete = False

    def _keep_lower(self, holders: Holders) -> None:
        """The gpu was emptied: a hash whose block is in no lower tier is unmapped, unless the same change maps it again."""
        lower = [held for tier in Tier if tier is not Tier.GPU and (held := holders.held(tier))]
        self._keys = {engine_hash: key for engine_hash, key in self._keys.items() if any(key in held for held in lower)} if lower else {}


class OwnedHashes:
    """The mapping of a stream that runs in this process. `mapped_key`: finds the stream's own, None while it does not run."""

    is_complete = True

    def __init__(self, mapped_key: Callable[[], KeyOf | None]) -> None:
        self._mapped_key = mapped_key

    def keys_of(self, hashes: Sequence[int]) -> list[int]:
        """See HashKeys."""
        key_of = self._mapped_key()
        return [] if key_of is None else keys_of(hashes, key_of)

    def apply(self, change: Change, holders: Holders) -> None:
        """Nothing to do: the owner's state has changed already."""


def keys_of(hashes: Sequence[int], key_of: KeyOf) -> list[int]:
    """The block keys of the hashes from the first on, up to one that has none."""
    keys = []
    for engine_hash in hashes:
        key = key_of(engine_hash)
        if key is None:
            break
        keys.append(key)
    return keys

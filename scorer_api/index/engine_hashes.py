"""Asking by the engine's own hashes. Such a hash is meaningful inside its stream only, so each stream has its own names for blocks. Pure."""

from array import array
from collections.abc import Callable, Sequence
from typing import cast

from msgspec import Struct

from indexer.core.change import Change
from indexer.core.events import HASH_MASK, Tier
from scorer_api.index.prefix_index import PrefixIndex

HASH_BYTES = 8

KeyOf = Callable[[int], int | None]
"""The block key that an engine hash stands for in one stream."""


class EngineHashes(Struct, frozen=True):
    """What to look for, instead of a prompt: normalised engine hashes, from the first block on."""

    model: str
    hashes: Sequence[int]


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


class NamedBlocks:
    """Engine hash → block key, for what one stream holds. `is_whole`: off where somebody did not tell of all of them."""

    def __init__(self) -> None:
        self.keys: dict[int, int] = {}
        self.is_whole = True

    def apply(self, change: Change, index: PrefixIndex, holder: int) -> None:
        """Follow a change that the index has applied already."""
        if change.reload:
            self.keys.clear()
        if change.cleared:
            self._keep_lower(index, holder)
        if change.names is not None:
            self.keys.update(change.names.keys)
            for engine_hash in change.names.gone:
                self.keys.pop(engine_hash, None)
        elif any(True in touched.values() for touched in change.touched):
            self.is_whole = False

    def _keep_lower(self, index: PrefixIndex, holder: int) -> None:
        """The gpu was emptied: what lies in no lower tier has no name any more."""
        lower = [held for tier in Tier if tier is not Tier.GPU and (held := index.held(holder, tier))]
        self.keys = {name: key for name, key in self.keys.items() if any(key in held for held in lower)} if lower else {}


def keys_of(hashes: Sequence[int], key_of: KeyOf) -> list[int]:
    """The block keys of the hashes from the first on, up to one that the stream does not know."""
    keys = []
    for engine_hash in hashes:
        key = key_of(engine_hash)
        if key is None:
            break
        keys.append(key)
    return keys

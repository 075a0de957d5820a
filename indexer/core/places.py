"""Where a stream holds an engine hash.

part     a tier, or one of the numbers after the tiers: PARKED and REMOVED
place    the slot of a KV-cache group and a tier in one number; PARKED, FOREIGN and REMOVED are no slot's
"""

from collections import defaultdict

from indexer.core.events import Tier

_TIER_BITS = 3
PARKED = len(Tier)
REMOVED = PARKED + 1
FOREIGN = 1 << _TIER_BITS | PARKED
"""Parked copies under hashes that are not the engine's own: in the same part, told apart by a slot."""
LEAD_GPU = 0
"""The place of nearly all blocks: the lead group's on the gpu."""

Touched = defaultdict[int, list[int]]
"""Place, PARKED, FOREIGN or REMOVED → the engine hashes whose records may have changed, some of them more than once. LEAD_GPU is not among them."""


def place_of(slot: int, tier: Tier) -> int:
    """The number of a place."""
    return slot << _TIER_BITS | tier


def slot_and_part(place: int) -> tuple[int, int]:
    """The slot of a place, and its tier, PARKED or REMOVED."""
    return place >> _TIER_BITS, place & (1 << _TIER_BITS) - 1


def is_parked(place: int) -> bool:
    """Whether it is PARKED or FOREIGN: what waits there stands for no block key yet."""
    return slot_and_part(place)[1] == PARKED


def is_gpu(place: int) -> bool:
    """Whether a place is on the gpu, of whichever group."""
    return not place & (1 << _TIER_BITS) - 1

"""How far a rank's match reaches in each tier alone, and down to each tier. Pure."""

from collections.abc import Sequence
from itertools import pairwise

from msgspec import Struct

from scorer_api.index.mask_walk import Step
from scorer_api.index.prefix_index import OWN_TIERS


class RankReach(Struct, frozen=True):
    """A rank's match in tokens. `alone`: the prefix that lies in each of OWN_TIERS, `down_to`: in that tier and those before it.

    `block_size`: None while its stream announced no block.
    """

    matched: int
    alone: tuple[int, ...]
    down_to: tuple[int, ...]
    block_size: int | None


NO_REACH = RankReach(0, (0,) * len(OWN_TIERS), (0,) * len(OWN_TIERS), None)


def reach_of(holder: int, steps: Sequence[Step], key_size: int, matched: int, block_size: int) -> RankReach:
    """The reach of one holder, from the steps of a walk that it took part in. `matched`: tokens, which no figure exceeds."""
    bit = 1 << holder
    alone, down_to = [0] * len(OWN_TIERS), [0] * len(OWN_TIERS)
    for (start, masks), (end, _) in pairwise(steps):
        held = [bool(mask & bit) for mask in masks]
        if not any(held):
            break
        first = held.index(True)
        for tier in range(len(OWN_TIERS)):
            if held[tier] and alone[tier] == start:
                alone[tier] = end
            if first <= tier and down_to[tier] == start:
                down_to[tier] = end
    in_tokens = [tuple(min(blocks * key_size, matched) for blocks in figures) for figures in (alone, down_to)]
    return RankReach(matched, in_tokens[0], in_tokens[1], block_size)

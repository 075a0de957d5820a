"""From the steps of a walk to a rank's score."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from operator import mul

from msgspec import Struct

from indexer.core.events import Tier
from scorer_api.index.mask_walk import Step
from scorer_api.index.prefix_index import OWN_TIERS


class Match(Struct, frozen=True):
    """A rank's prefix match. `tiers`: blocks by the best tier in which the rank holds each, in the order of OWN_TIERS."""

    matched_blocks: int
    tiers: tuple[int, ...]


NO_MATCH = Match(0, (0,) * len(OWN_TIERS))
NO_LOWER = (0,) * (len(OWN_TIERS) - 1)


def usable_blocks(tokens: int, block_size: int, lookahead: int = 0) -> int:
    """How many blocks of a prompt of `tokens` tokens an engine can take from its cache: it never reuses the whole prompt, and needs the tokens
    behind a block that its hash takes in."""
    return max(0, tokens - max(1, lookahead)) // block_size


def matches_of(holders: Iterable[int], steps: Sequence[Step]) -> dict[int, Match]:
    """Every one of these holders' match, from the steps of a walk that they took part in."""
    if any(masks[1:] != NO_LOWER for _, masks in steps):
        return {holder: match_of(holder, steps) for holder in holders}
    # On the gpu only, as nearly always: those that a step ends match equally far.
    matches = dict.fromkeys(holders, NO_MATCH)
    alive = steps[0][1][0]
    for position, masks in steps[1:]:
        gone = alive & ~masks[0]
        alive = masks[0]
        match = Match(position, (position, *NO_LOWER))
        while gone:
            matches[gone.bit_length() - 1] = match
            gone &= ~(1 << gone.bit_length() - 1)
    return matches


def match_of(holder: int, steps: Sequence[Step]) -> Match:
    """One holder's match, from the steps of a walk that it took part in."""
    bit = 1 << holder
    counts = [0] * len(OWN_TIERS)
    for (start, masks), (end, _) in pairwise(steps):
        tier = next((tier for tier, mask in enumerate(masks) if mask & bit), None)
        if tier is None:
            break
        counts[tier] += end - start
    return Match(sum(counts), tuple(counts))


def without_last(match: Match, blocks: int) -> Match:
    """The match without its last blocks, which are those of the slowest tier."""
    tiers = list(match.tiers)
    left = blocks = min(blocks, match.matched_blocks)
    for tier in reversed(range(len(tiers))):
        some = min(left, tiers[tier])
        tiers[tier] -= some
        left -= some
    return Match(match.matched_blocks - blocks, tuple(tiers))


def with_one_more(match: Match, tier: Tier) -> Match:
    """The match and one block behind it, which is in this tier."""
    return Match(match.matched_blocks + 1, tuple(blocks + (each is tier) for each, blocks in zip(OWN_TIERS, match.tiers, strict=True)))


def cut_match(holder: int, steps: Sequence[Step], blocks: int, alignment: int) -> Match:
    """The first `blocks` of one holder's match, in groups of `alignment`, each in the slowest tier of its blocks."""
    counts = [0] * len(OWN_TIERS)
    position, slowest = 0, 0
    for tier, length in runs_of(holder, steps):
        left = min(length, blocks - position)
        while left > 0:
            some = min(left, alignment - position % alignment)
            position, left, slowest = position + some, left - some, max(slowest, OWN_TIERS.index(tier))
            if position % alignment == 0:
                whole = 1 + left // alignment
                counts[slowest] += 1
                if whole > 1:
                    counts[OWN_TIERS.index(tier)] += whole - 1
                    position, left = position + (whole - 1) * alignment, left - (whole - 1) * alignment
                slowest = 0
    return Match(blocks // alignment, tuple(counts))


def runs_of(holder: int, steps: Sequence[Step]) -> list[tuple[Tier, int]]:
    """The same as runs of blocks, in order, each with the best tier that holds it."""
    bit = 1 << holder
    runs: list[tuple[Tier, int]] = []
    for (start, masks), (end, _) in pairwise(steps):
        tier = next((tier for tier, mask in zip(OWN_TIERS, masks, strict=True) if mask & bit), None)
        if tier is None:
            break
        before = runs.pop()[1] if runs and runs[-1][0] is tier else 0
        runs.append((tier, before + end - start))
    return runs


def first_runs(runs: Sequence[tuple[Tier, int]], blocks: int) -> list[tuple[Tier, int]]:
    """The runs of the first blocks."""
    found: list[tuple[Tier, int]] = []
    for tier, length in runs:
        if blocks > 0:
            found.append((tier, min(length, blocks)))
        blocks -= length
    return found


def score_of(match: Match, tokens: int, block_size: int, weights: Sequence[float]) -> float:
    """The tier-weighted matched tokens, as a part of the `tokens - 1` that could match. Between 0 and 1."""
    if tokens <= 1:
        return 0.0
    weighted: float = sum(map(mul, match.tiers, weights))
    return min(1.0, weighted * block_size / (tokens - 1))


def gpu_score_of(matched_blocks: int, tokens: int, block_size: int, weight: float) -> float:
    """The same of a match on the gpu alone, whose weight this is."""
    return 0.0 if tokens <= 1 else min(1.0, matched_blocks * weight * block_size / (tokens - 1))


def gpu_scores_of(matched_blocks: Iterable[int], tokens: int, block_size: int, weight: float) -> list[float]:
    """The same of many."""
    if tokens <= 1:
        return [0.0 for _ in matched_blocks]
    most = tokens - 1
    return [score if (score := matched * weight * block_size / most) < 1.0 else 1.0 for matched in matched_blocks]

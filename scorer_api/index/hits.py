"""The engine's hit rule for models with several KV-cache groups (docs/explanation/wire-format.md, "Groups").

A hit is a number of blocks n such that

    n is a multiple of the alignment and not above what the prompt allows
    every full group holds all blocks before n
    every window group holds the last ones before n, as many as its window covers, or all if n is shorter
    every state group holds the block that ends at n

and the largest such n is what the engine reuses. Blocks are counted between block keys here. A query is looked at in spans over which the same
holders have the same blocks, so that what a rank costs depends on how often that changes and not on the prompt's length. Pure.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from math import lcm

from msgspec import Struct

from indexer.core.groups import CacheShape, Group, Kind

Span = tuple[int, int, int]
"""First block, the one after the last, and the mask of holders that have them in any tier of their own."""


class Window(Struct, frozen=True, gc=False):
    """A window group. `bit`: its holder's; `blocks`: how many it needs before the end of a hit."""

    slot: int
    bit: int
    blocks: int


class HitRule(Struct, frozen=True, gc=False):
    """The rule for one stream, by the bits of its groups' holders. `alignment`: in blocks.

    `bits`: of the holders, by slot. `full`: those of the full groups. `unknown`: where there are none, those of the groups of unknown kind, any of
    which is enough. `state`: those of the state groups. `anchor`: the slot of a full group, or of the only one. `lower_alignment`: of hits for which
    tiers below the gpu are read.
    """

    alignment: int
    bits: tuple[int, ...]
    full: int
    unknown: int
    windows: tuple[Window, ...]
    state: int
    anchor: int | None
    lower_alignment: int


class Limit(Struct, frozen=True):
    """Why a hit is not longer. `block`: the first that its `group` lacks for the next longer hit."""

    group: Group
    block: int


def rule_for(shape: CacheShape, holders: Sequence[int]) -> HitRule:
    """`holders`: by slot."""
    full = unknown = state = 0
    windows: list[Window] = []
    anchor = None
    for slot, (group, holder) in enumerate(zip(shape.groups, holders, strict=True)):
        bit = 1 << holder
        match group.kind:
            case Kind.FULL:
                full |= bit
                anchor = slot if anchor is None else anchor
            case Kind.UNKNOWN if not group.is_sparse:
                unknown |= bit
            case Kind.STATE:
                state |= bit
            case Kind.WINDOW if group.window is not None:
                size = group.block_size or shape.block_size
                blocks = -(-(group.window - 1) // size) * size // shape.block_size
                if blocks:
                    windows.append(Window(slot, bit, blocks))
    bits = tuple(1 << holder for holder in holders)
    if len(holders) == 1 and unknown:
        anchor = 0
    alignment = shape.alignment // shape.block_size
    lower = lcm(alignment, (shape.offload_block_size or shape.block_size) // shape.block_size)
    return HitRule(alignment, bits, full, 0 if full else unknown, tuple(windows), state, anchor, lower)


def longest_hit(rule: HitRule, spans: Iterable[Span], blocks_max: int, alignment: int | None = None) -> int:
    """The number of blocks that the engine would reuse, at most `blocks_max`. `spans`: without gaps from the first block on. `alignment`: if not the
    rule's."""
    best = 0
    full, unknown, state, alignment = rule.full, rule.unknown, rule.state, alignment or rule.alignment
    since = [0] * len(rule.windows)  # where each window group's run of blocks began
    for start, end, mask in spans:
        if start >= blocks_max or mask & full != full or (unknown and not mask & unknown):
            break
        least = start + 1
        for number, window in enumerate(rule.windows):
            if not mask & window.bit:
                since[number] = end
                least = end + 1
            elif since[number] and since[number] + window.blocks > least:
                least = since[number] + window.blocks
        if mask & state != state:
            continue
        hit = min(end, blocks_max) // alignment * alignment
        if hit >= least:
            best = hit
    return best


def is_hit(rule: HitRule, spans: Sequence[Span], starts: Sequence[int], blocks: int) -> bool:
    """Whether so many blocks are a hit, where the anchor holds them. `starts`: those of the spans.

    This is the usual case, and with one full group the last spans decide it.
    """
    if not blocks or blocks % rule.alignment:
        return not blocks
    last = bisect_right(starts, blocks - 1) - 1
    if rule.full & (rule.full - 1) and any(mask & rule.full != rule.full for _, _, mask in spans[: last + 1]):
        return False
    if spans[last][2] & rule.state != rule.state:
        return False
    for window in rule.windows:
        at, first = last, max(0, blocks - window.blocks)
        while at >= 0 and spans[at][1] > first:
            if not spans[at][2] & window.bit:
                return False
            at -= 1
    return True


def limit_of(rule: HitRule, shape: CacheShape, spans: Sequence[Span], hit: int, blocks_max: int) -> Limit | None:
    """Which group keeps a hit from being one alignment longer; None where no group does."""
    longer = hit + rule.alignment
    if longer > blocks_max:
        return None
    needed = {window.slot: max(0, longer - window.blocks) for window in rule.windows}
    for slot, (group, bit) in enumerate(zip(shape.groups, rule.bits, strict=True)):
        match group.kind:
            case Kind.FULL:
                bits, first = bit, 0
            case Kind.UNKNOWN if rule.unknown & bit:
                bits, first = rule.unknown, 0
            case Kind.STATE:
                bits, first = bit, longer - 1
            case _ if slot in needed:
                bits, first = bit, needed[slot]
            case _:
                continue
        missing = _first_missing(spans, bits, first, longer)
        if missing is not None:
            return Limit(group, missing)
    return None


def _first_missing(spans: Sequence[Span], bits: int, first: int, end: int) -> int | None:
    """The first block from `first` to `end` that none of these holders has."""
    known = 0
    for start, known, mask in spans:
        if known > first and start < end and not mask & bits:
            return max(start, first)
    return known if known < end else None

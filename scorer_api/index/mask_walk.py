"""A walk along block keys, from a prompt's first one on: who holds all blocks so far. Pure."""

from collections.abc import Sequence
from itertools import groupby
from typing import Protocol

from msgspec import Struct

from scorer_api.index.hits import Span

Masks = tuple[int, ...]
Step = tuple[int, Masks]
"""From this block on, who holds the prompt's blocks: one mask per own tier, all empty where the match has ended for everybody."""
Tables = tuple[dict[int, int], ...]
"""Block key → mask of holders, for each tier that continues a match."""

NO_MASKS: Masks = (0, 0, 0, 0)
NO_LOWER_MASKS = NO_MASKS[1:]


class Walk(Protocol):
    """A walk under way, from the first block on, which may stop between runs of keys. See `PrefixIndex.walk`."""

    @property
    def steps(self) -> list[Step]:
        """Those so far."""

    def follow(self, keys: Sequence[int]) -> bool:
        """Go along the next keys. Returns whether anybody is left; if not, the walk is over."""

    def end(self) -> list[Step]:
        """There are no more keys. All steps."""


class MaskWalk:
    """What the compiled core's does, in Python. Its methods are those of `Walk`."""

    __slots__ = ("_alive", "_before", "_position", "_spans", "_tables", "steps")

    def __init__(self, tables: Tables, alive: int, spans: list[Span] | None = None) -> None:
        """`alive`: who takes part in it. `spans`: where to add who else has the blocks."""
        self._tables = tables
        self._alive = alive
        self._spans = spans
        self._position = 0
        self._before: Masks = ()
        self.steps: list[Step] = []

    def follow(self, keys: Sequence[int]) -> bool:
        gpu, cpu, disk, other = self._tables
        if cpu or disk or other:
            return self._follow_tiers(keys)
        alive, position, spans, steps = self._alive, self._position, self._spans, self.steps
        before = self._before[0] if self._before[1:] == NO_LOWER_MASKS else -1
        for mask, same in groupby(map(gpu.get, keys)):
            alive &= mask or 0
            if alive != before:
                steps.append((position, (alive, 0, 0, 0)))
                if not alive:
                    return False
                before = alive
            start = position
            position += len(list(same))
            if spans is not None:
                spans.append((start, position, mask or 0))
        self._alive, self._position = alive, position
        if steps:
            self._before = steps[-1][1]
        return True

    def _follow_tiers(self, keys: Sequence[int]) -> bool:
        gpu, cpu, disk, other = self._tables
        alive, position, spans, before = self._alive, self._position, self._spans, self._before
        for key in keys:
            held = gpu.get(key, 0), cpu.get(key, 0), disk.get(key, 0), other.get(key, 0)
            masks = held[0] & alive, held[1] & alive, held[2] & alive, held[3] & alive
            if masks != before:
                self.steps.append((position, masks))
                alive = masks[0] | masks[1] | masks[2] | masks[3]
                if not alive:
                    return False
                before = masks
            if spans is not None:
                spans.append((position, position + 1, held[0] | held[1] | held[2] | held[3]))
            position += 1
        self._alive, self._position, self._before = alive, position, before
        return True

    def end(self) -> list[Step]:
        self.steps.append((self._position, NO_MASKS))
        return self.steps


class PreparedWalk(Struct, frozen=True):
    """A walk in an index that was made beforehand, for a long query. `holders`: the mask of those that took part in it.

    `removed_holders`: of the index, when the walk began.
    """

    index: object
    removed_holders: int
    holders: int
    steps: list[Step]
    spans: list[Span] | None

    def steps_of(self, index: object, removed_holders: int, alive: int) -> list[Step] | None:
        """The steps of these holders alone; None where it says nothing of them."""
        if index is not self.index or removed_holders != self.removed_holders or alive & ~self.holders:
            return None
        steps: list[Step] = []
        before: Masks = ()
        for position, masks in self.steps:
            of_these = masks[0] & alive, masks[1] & alive, masks[2] & alive, masks[3] & alive
            if of_these != before:
                steps.append((position, of_these))
                before = of_these
                if not any(of_these):
                    break
        return steps

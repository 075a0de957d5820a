"""Which ranks hold which blocks.

    tier → block key → bit mask of holders          holder: a small number for one KV-cache group of one rank of a pod
    gpu    0x3f…a1 → 0b0101                          (holders 0 and 2)
    cpu    0x77…02 → 0b0100

A query walks the prompt's keys from the first. A holder remains while it holds the block in one of its own tiers, so one lookup and one
AND per block serve all ranks at once; only where a mask changes is a step recorded, and the walk stops when no holder is left. There is one
index per (model, key size).

The compiled core's index (`indexer/compiled/prefix_index.pxi`) keeps each set of holders once, and for a key the number of its set. A slot of the
latter takes twelve bytes, and one in the set of a holder's keys eight.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from functools import reduce
from itertools import groupby
from operator import or_
from typing import Any, Protocol

from indexer.compiled import core
from indexer.core.change import Change
from indexer.core.events import Tier
from scorer_api.index.hits import Span
from scorer_api.index.mask_walk import MaskWalk, Step, Walk

OWN_TIERS = (Tier.GPU, Tier.CPU, Tier.DISK, Tier.OTHER)
"""The tiers that continue a match; remote storage belongs to no pod."""

# Fewer keys are faster one by one.
RUN_MIN = 4


class PrefixIndex(Protocol):
    """See the module. Block keys are unsigned 64-bit integers. `make_index` makes one: the compiled core's, or `PrefixIndexInPython`."""

    @property
    def removed_holders(self) -> int:
        """How many there were so far. As long as it is the same, no number of a holder stands for another one."""

    def add_holder(self) -> int:
        """A number for a new holder, which holds nothing yet."""

    def remove_holder(self, holder: int) -> None:
        """Forget a holder and what it holds. Its number is used again."""

    def shrink(self, holder: int, blocks_max: int) -> bool:
        """Remove at most `blocks_max` blocks of a holder. Returns whether it still holds any."""

    @property
    def is_empty(self) -> bool:
        """Whether it has no holder at all."""

    @property
    def has_lower(self) -> bool:
        """Whether anything is held below the gpu, in a tier that continues a match."""

    @property
    def mask(self) -> int:
        """All holders."""

    def holds(self, holder: int, tier: Tier, key: int) -> bool:
        """Whether a holder has a block in a tier."""

    def held(self, holder: int, tier: Tier) -> Collection[int]:
        """The block keys that a holder has in a tier; to read at once, not to keep."""

    @property
    def blocks(self) -> int:
        """The number of (block key, tier) pairs that have a holder."""

    @property
    def holders(self) -> int:
        """How many (block key, tier, holder) triples there are."""

    def count_held(self, holder: int, keys: Iterable[int]) -> int:
        """How many of these blocks a holder has in its own tiers. What it costs depends on their number, and not on what is held."""

    def apply(self, holder: int, change: Change, touched_by_tier: Sequence[Any]) -> None:
        """Apply one change of a holder's. `touched_by_tier`: what of the change is the holder's own, as `Change.tiers` or `Change.touched`."""

    def begin_walk(self, alive: int, spans: list[Span] | None = None) -> Walk:
        """A walk with the holders in the mask `alive`. `spans`: where to add who else has the blocks up to its end."""

    def walk(self, alive: int, runs: Iterable[Sequence[int]], spans: list[Span] | None = None) -> list[Step]:
        """Follow the holders in the mask `alive` along the prompt's block keys, given in runs from the first block on.

        Returns the steps in order; the last one says where the walk ended. Runs that are not needed are not taken. `spans`: where to add who else has
        the blocks up to there.
        """

    def spans(self, keys: Sequence[int]) -> list[Span]:
        """Who has the blocks of these keys in a tier of its own, whatever lies before them: spans of equal masks from the first key on."""


class PrefixIndexInPython:
    """What the compiled core's does, in Python. Its methods are those of `PrefixIndex`."""

    def __init__(self) -> None:
        self._masks: tuple[dict[int, int], ...] = tuple({} for _ in Tier)
        self._keys: dict[int, tuple[set[int], ...]] = {}
        self._free: list[int] = []
        self.removed_holders = 0

    def add_holder(self) -> int:
        holder = self._free.pop() if self._free else len(self._keys)
        self._keys[holder] = tuple(set() for _ in Tier)
        return holder

    def remove_holder(self, holder: int) -> None:
        for tier in Tier:
            self._clear(holder, tier)
        del self._keys[holder]
        self._free.append(holder)
        self.removed_holders += 1

    def shrink(self, holder: int, blocks_max: int) -> bool:
        bit = 1 << holder
        for masks, keys in zip(self._masks, self._keys[holder], strict=True):
            while keys and blocks_max > 0:
                self._unset(masks, keys.pop(), bit)
                blocks_max -= 1
        return any(self._keys[holder])

    @property
    def is_empty(self) -> bool:
        return not self._keys

    def holds(self, holder: int, tier: Tier, key: int) -> bool:
        return key in self._keys[holder][tier]

    def held(self, holder: int, tier: Tier) -> set[int]:
        return self._keys[holder][tier]

    @property
    def blocks(self) -> int:
        return sum(map(len, self._masks))

    @property
    def holders(self) -> int:
        return sum(len(keys) for tiers in self._keys.values() for keys in tiers)

    def count_held(self, holder: int, keys: Iterable[int]) -> int:
        asked = left = set(keys)
        for tier in OWN_TIERS:
            if left and (held := self._keys[holder][tier]):
                left = left - held
        return len(asked) - len(left)

    def apply(self, holder: int, change: Change, touched_by_tier: Sequence[dict[int, bool]]) -> None:
        bit = 1 << holder
        if change.reload:
            for tier in Tier:
                self._clear(holder, tier)
        if change.cleared:
            self._clear(holder, Tier.GPU)
        for masks, keys, touched in zip(self._masks, self._keys[holder], touched_by_tier, strict=False):
            if not touched:
                continue
            if len(touched) >= RUN_MIN and False not in touched.values() and masks.keys().isdisjoint(touched):
                # Blocks that are new to everybody, all at once.
                masks.update(dict.fromkeys(touched, bit))
                keys.update(touched)
                continue
            for key, is_held in touched.items():
                if is_held:
                    masks[key] = masks.get(key, 0) | bit
                    keys.add(key)
                elif key in keys:
                    keys.remove(key)
                    self._unset(masks, key, bit)

    def _clear(self, holder: int, tier: Tier) -> None:
        masks, keys, bit = self._masks[tier], self._keys[holder][tier], 1 << holder
        for key in keys:
            self._unset(masks, key, bit)
        keys.clear()

    @staticmethod
    def _unset(masks: dict[int, int], key: int, bit: int) -> None:
        rest = masks[key] & ~bit
        if rest:
            masks[key] = rest
        else:
            del masks[key]

    @property
    def has_lower(self) -> bool:
        return any(self._masks[1 : len(OWN_TIERS)])

    @property
    def mask(self) -> int:
        return sum(1 << holder for holder in self._keys)

    def begin_walk(self, alive: int, spans: list[Span] | None = None) -> Walk:
        return MaskWalk(self._masks[: len(OWN_TIERS)], alive, spans)

    def walk(self, alive: int, runs: Iterable[Sequence[int]], spans: list[Span] | None = None) -> list[Step]:
        walk = self.begin_walk(alive, spans)
        for keys in runs:
            if not walk.follow(keys):
                return walk.steps
        return walk.end()

    def spans(self, keys: Sequence[int]) -> list[Span]:
        gpu, *lower = (self._masks[tier] for tier in OWN_TIERS)
        lower = [masks for masks in lower if masks]
        masks: Iterable[int | None] = map(gpu.get, keys)
        if lower:
            masks = [reduce(or_, (held.get(key, 0) for held in lower), gpu.get(key, 0)) for key in keys]
        spans: list[Span] = []
        start = 0
        for mask, same in groupby(masks):
            end = start + len(list(same))
            spans.append((start, end, mask or 0))
            start = end
        return spans


make_index: Callable[[], PrefixIndex] = PrefixIndexInPython if core is None else core.PrefixIndex

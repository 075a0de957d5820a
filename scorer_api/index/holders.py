"""What one stream holds in the index of its key size: a holder for each of its KV-cache groups, and how they make a hit."""

from collections.abc import Collection, Iterable

from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.groups import LEAD, CacheShape
from scorer_api.index.hits import HitRule, rule_for
from scorer_api.index.prefix_index import PrefixIndex, make_index

Indexes = dict[tuple[int, int], PrefixIndex]
"""How blocks are cut, see `CacheShape.cut` → index."""


class Holders:
    """`index`: the one of the key size. `by_slot`: the groups' holders. `rule`: None where a hit is the longest prefix that the lead group holds.

    `key_size`: tokens between two block keys; `block_size`: hits are multiples of so many tokens.
    `reads_whole_prompts`: whether a hit may end with the prompt, where its last block lies below the gpu.
    """

    def __init__(self, indexes: Indexes, shape: CacheShape) -> None:
        """`indexes`: those of one model."""
        self._indexes = indexes
        self.key_size, self.lookahead = self.cut = shape.cut
        self.index = indexes.get(self.cut) or indexes.setdefault(self.cut, make_index())
        self.by_slot: list[int] = []
        self.follow(shape)

    def follow(self, shape: CacheShape) -> None:
        """The stream says more of its groups, or has more of them. Those that are known keep their slots."""
        assert shape.cut == self.cut, "a stream holds blocks that are cut in one way"
        while len(self.by_slot) < max(1, len(shape.groups)):
            self.by_slot.append(self.index.add_holder())
        self.shape = shape
        self.block_size = shape.alignment
        self.rule: HitRule | None = None if shape.is_plain else rule_for(shape, self.by_slot)
        self.reads_whole_prompts = shape.reads_whole_prompts and self.rule is None

    @property
    def lead(self) -> int:
        """The lead group's holder."""
        return self.by_slot[LEAD]

    @property
    def mask(self) -> int:
        """The holders of all groups."""
        return sum(1 << holder for holder in self.by_slot)

    @property
    def anchor(self) -> int | None:
        """The holder of a group that has all blocks of each hit; None where there is none."""
        if self.rule is None:
            return self.lead
        return None if self.rule.anchor is None else self.by_slot[self.rule.anchor]

    def apply(self, change: Change) -> None:
        """Apply a change of the stream's."""
        self.index.apply(self.by_slot[LEAD], change, change.tiers)
        if len(self.by_slot) > 1:
            for slot, holder in enumerate(self.by_slot[1:], 1):
                self.index.apply(holder, change, change.touched_in.get(slot, ()))

    def count_held(self, keys: Iterable[int]) -> int:
        """How many of these blocks the stream holds in its own tiers."""
        return self.index.count_held(self.lead if self.anchor is None else self.anchor, keys)

    def held(self, tier: Tier) -> Collection[int]:
        """The block keys that any group has in a tier; to read at once, not to keep."""
        if len(self.by_slot) == 1:
            return self.index.held(self.lead, tier)
        return set().union(*(self.index.held(holder, tier) for holder in self.by_slot))

    def holds(self, tier: Tier, key: int) -> bool:
        """Whether any group has a block in a tier."""
        return any(self.index.holds(holder, tier, key) for holder in self.by_slot)

    def release(self) -> None:
        """Hold nothing any more."""
        for holder in self.by_slot:
            self.index.remove_holder(holder)
        self._drop_index()

    def shrink(self, blocks_max: int) -> bool:
        """Remove at most `blocks_max` blocks. Returns whether there are more; after the last one the holders are released."""
        if self.index.shrink(self.by_slot[-1], blocks_max):
            return True
        self.index.remove_holder(self.by_slot.pop())
        if self.by_slot:
            return True
        self._drop_index()
        return False

    def _drop_index(self) -> None:
        if self.index.is_empty and self._indexes.get(self.cut) is self.index:
            del self._indexes[self.cut]

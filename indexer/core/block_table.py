"""The blocks of one stream by engine hash: what is held in which tier, and a bounded memory of what was held.

held      engine hash → Block(key, parent, copies on the gpu)     everything held in any tier
lower     tier → engine hash → LowerCopy(count, keys it covers)   the tiers below the gpu
removed   engine hash → Block                                     what was held: parents of new blocks, late offload announcements
"""

from collections.abc import Iterable

from msgspec import Struct

from indexer.core.events import Tier
from indexer.core.orphans import Parked
from indexer.core.parts import REMOVED, Touched


class Block(Struct, gc=False):
    """A block known by its engine hash. `copies`: physical copies on the gpu. There are millions, so the garbage collector does not track them."""

    key: int
    parent: int | None
    copies: int = 1


class LowerCopy(Struct, gc=False):
    """What one engine hash holds in a lower tier: the keys of the gpu blocks that it covers."""

    keys: tuple[int, ...]
    count: int = 0


class BlockRecord(Struct, frozen=True, gc=False):
    """One engine hash in one tier. `keys`: its own block key, then those of the blocks before it that it covers."""

    copies: int
    parent: int | None
    keys: tuple[int, ...]


HashRecord = Block | BlockRecord | Parked
"""What one part holds for an engine hash: the gpu a Block, a lower tier or REMOVED a BlockRecord, PARKED a Parked. Block and Parked are
the stream's own: a later read returns what is held then."""
Records = dict[int, dict[int, HashRecord | None]]
"""By part that was touched, engine hash → what is held for it afterwards, None where nothing is."""


class BlockTable:
    """See the module. `held`, `lower` and `removed` are to be read; who changes `held` and `lower` calls `revive` and `retire`."""

    def __init__(self, removed_max: int, touched: Touched | None = None) -> None:
        """`touched`: where to note the engine hashes whose records change in a part other than the gpu; None for nowhere."""
        self.removed: dict[int, Block] = {}
        self.offloads = False
        """Whether a block was seen in a tier below the gpu: then a removed block may yet be announced there."""
        self._touched = touched
        self._removed_max = removed_max
        self.reset()

    def reset(self) -> None:
        """Hold nothing; what is remembered as removed stays."""
        self.held: dict[int, Block] = {}
        self.lower: tuple[dict[int, LowerCopy], ...] = tuple({} for _ in Tier)

    def forget(self) -> None:
        """Hold nothing and remember nothing."""
        self.removed.clear()
        self.offloads = False
        self.reset()

    def known(self, engine_hash: int) -> Block | None:
        """The block of an engine hash, held or remembered."""
        return self.held.get(engine_hash) or self.removed.get(engine_hash)

    def key_of(self, engine_hash: int) -> int | None:
        """The block key of an engine hash, held or remembered."""
        block = self.held.get(engine_hash) or self.removed.get(engine_hash)
        return None if block is None else block.key

    def mapped_key(self, engine_hash: int) -> int | None:
        """The block key of an engine hash in requests; None where it has none.

        A hash counts while a tier holds a block by it. Where blocks are offloaded it also counts as long as the removed block is remembered: its key
        may be held by the offloaded run of a later hash, which covers the blocks before it.
        """
        block = self.held.get(engine_hash) or (self.removed.get(engine_hash) if self.offloads else None)
        return None if block is None else block.key

    def covered(self, block: Block, count: int) -> tuple[int, ...]:
        """The keys of up to `count` blocks that end with this one, the last one first: by the parent links, as far as they are known."""
        keys = [block.key]
        link: Block | None = block
        while len(keys) < count and link is not None and link.parent is not None:
            link = self.known(link.parent)
            if link is not None:
                keys.append(link.key)
        return tuple(keys)

    # Removed blocks

    def note_offloading(self) -> None:
        """A block was seen in a tier below the gpu: from now on removed blocks count."""
        if not self.offloads:
            self.offloads = True
            self._touch_removed(self.removed)

    def retire(self, engine_hash: int, block: Block) -> bool:
        """Move a held block to the removed ones if no tier holds it any more. Returns whether that is so."""
        if block.copies or any(engine_hash in lower for lower in self.lower if lower):
            return False
        del self.held[engine_hash]
        self.remember(engine_hash, block)
        return True

    def remember(self, engine_hash: int, block: Block) -> None:
        """Count it among the removed ones; the oldest goes where there are too many."""
        removed = self.removed
        removed.pop(engine_hash, None)
        removed[engine_hash] = block
        if self._touched is not None:
            self._touch_removed((engine_hash,))
        if len(removed) > self._removed_max:
            self.revive(next(iter(removed)))

    def revive(self, engine_hash: int) -> None:
        """Count it no longer among the removed ones, if it is there."""
        if self.removed.pop(engine_hash, None) is not None:
            self._touch_removed((engine_hash,))

    def _touch_removed(self, hashes: Iterable[int]) -> None:
        if self.offloads and self._touched is not None:
            self._touched[REMOVED] += hashes

    def touch_lower(self, tier: Tier, hashes: Iterable[int]) -> None:
        """What these hashes hold in a tier below the gpu may change."""
        if self._touched is not None:
            self._touched[tier] += hashes

    # Records

    def hashes(self, tier: Tier) -> list[int]:
        """The engine hashes that are held in a tier."""
        if tier is Tier.GPU:
            return [engine_hash for engine_hash, block in self.held.items() if block.copies]
        return list(self.lower[tier])

    def record(self, tier: Tier, engine_hash: int) -> BlockRecord | None:
        """What is held for an engine hash in a tier."""
        block = self.held.get(engine_hash)
        if block is None:
            return None
        if tier is Tier.GPU:
            return BlockRecord(block.copies, block.parent, (block.key,)) if block.copies else None
        lower = self.lower[tier].get(engine_hash)
        return None if lower is None else BlockRecord(lower.count, block.parent, lower.keys)

    def removed_hashes(self) -> list[int]:
        """The engine hashes of removed blocks; none where nothing is offloaded: then they are not needed."""
        return list(self.removed) if self.offloads else []

    def removed_record(self, engine_hash: int) -> BlockRecord | None:
        """What is remembered of a removed block."""
        block = self.removed.get(engine_hash)
        return None if block is None else BlockRecord(0, block.parent, (block.key,))

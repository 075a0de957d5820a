"""The blocks of one stream by engine hash: what is held where, and a bounded memory of what was held.

held      engine hash → Block(key, parent, copies of the lead group on the gpu)     everything held anywhere
more      place → engine hash → Copies(count, keys it covers)                       the lower tiers, and the other groups in every tier
removed   engine hash → Block                                                       what was held: parents of new blocks, late offload announcements
"""

from collections.abc import Iterable

from msgspec import Struct

from indexer.core.foreign_copy import ForeignCopy
from indexer.core.oldest import oldest_to_drop
from indexer.core.orphans import Parked
from indexer.core.places import LEAD_GPU, REMOVED, Touched
from indexer.core.salted_hashes import SaltedHashes


class Block(Struct, gc=False):
    """A block known by its engine hash. `copies`: physical copies of the lead group on the gpu. A block that is its own `parent` was not announced,
    and its key was inferred from tokens. There are millions, so the garbage collector does not track them."""

    key: int
    parent: int | None
    copies: int = 1


class Copies(Struct, gc=False):
    """What one engine hash holds in a place: the keys that it covers, its own first."""

    keys: tuple[int, ...]
    count: int = 0


class BlockRecord(Struct, frozen=True, gc=False):
    """One engine hash in one place. `keys`: its own block key, then those of the blocks before it that it covers."""

    copies: int
    parent: int | None
    keys: tuple[int, ...]
    engine_hash: int | None = None
    """What the engine calls it, where that is another hash: see `salted_hashes`."""


HashRecord = Block | BlockRecord | Parked | ForeignCopy
"""What is held for an engine hash: at LEAD_GPU a Block, or a BlockRecord if it is salted, at another place or REMOVED a BlockRecord, as PARKED a
Parked, as FOREIGN a ForeignCopy. All but BlockRecord are the stream's own: a later read returns what is held then."""
Records = dict[int, dict[int, HashRecord | None]]
"""By place, PARKED, FOREIGN or REMOVED that was touched, engine hash → what is held for it afterwards, None where nothing is."""


class BlockTable:
    """See the module. `held`, `more` and `removed` are to be read; who changes `held` and `more` calls `revive` and `retire`."""

    def __init__(self, removed_max: int, touched: Touched | None = None) -> None:
        """`touched`: where to note the engine hashes whose records change at another place than LEAD_GPU; None for nowhere."""
        self.removed: dict[int, Block] = {}
        self.offloads = False
        """Whether a block was seen in a tier below the gpu: then a removed block may yet be announced there."""
        self._touched = touched
        self.salted = SaltedHashes()
        self._removed_max = removed_max
        self.reset()

    def reset(self) -> None:
        """Hold nothing; what is remembered as removed stays."""
        self.held: dict[int, Block] = {}
        self.more: dict[int, dict[int, Copies]] = {}

    def forget(self) -> None:
        """Hold nothing and remember nothing."""
        self.removed.clear()
        self.salted = SaltedHashes()
        self.offloads = False
        self.reset()

    def touch(self, place: int, hashes: Iterable[int]) -> None:
        """Note that the records of these hashes may change. `place`: not LEAD_GPU."""
        if self._touched is not None:
            self._touched[place] += hashes

    def known(self, engine_hash: int) -> Block | None:
        """The block of an engine hash, held or remembered."""
        return self.held.get(engine_hash) or self.removed.get(engine_hash)

    def key_of(self, engine_hash: int) -> int | None:
        """The block key of an engine hash, held or remembered."""
        block = self.held.get(engine_hash) or self.removed.get(engine_hash)
        return None if block is None else block.key

    def key_before(self, parent: int) -> int | None:
        """The key that blocks behind this one chain from. None where it is not known, or inferred: tokens do not say whose block it is."""
        block = self.known(parent)
        return None if block is None or block.parent == parent else block.key

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
            before = self.known(link.parent)
            link = None if before is link else before
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
        if block.copies or (self.more and any(engine_hash in copies for copies in self.more.values())):
            return False
        del self.held[engine_hash]
        self.remember(engine_hash, block)
        return True

    def remember(self, engine_hash: int, block: Block) -> None:
        """Count it among the removed ones; the oldest go where there are too many."""
        removed = self.removed
        removed.pop(engine_hash, None)
        removed[engine_hash] = block
        if self._touched is not None:
            self._touch_removed((engine_hash,))
        if len(removed) > self._removed_max:
            for oldest in oldest_to_drop(removed, self._removed_max):
                self.revive(oldest)
                self.salted.forget(oldest)

    def revive(self, engine_hash: int) -> None:
        """Count it no longer among the removed ones, if it is there."""
        if self.removed.pop(engine_hash, None) is not None:
            self._touch_removed((engine_hash,))

    def _touch_removed(self, hashes: Iterable[int]) -> None:
        if self.offloads:
            self.touch(REMOVED, hashes)

    # Records

    def places(self) -> list[int]:
        """Where anything is held."""
        return [LEAD_GPU, *self.more]

    def hashes(self, place: int) -> list[int]:
        """The engine hashes that are held in a place."""
        if place == LEAD_GPU:
            return [engine_hash for engine_hash, block in self.held.items() if block.copies]
        return list(self.more.get(place, ()))

    def record(self, place: int, engine_hash: int) -> BlockRecord | None:
        """What is held for an engine hash in a place."""
        block = self.held.get(engine_hash)
        if block is None:
            return None
        named = self.salted.engine_hash_of(engine_hash)
        if place == LEAD_GPU:
            return BlockRecord(block.copies, block.parent, (block.key,), named) if block.copies else None
        copies = self.more.get(place, {}).get(engine_hash)
        return None if copies is None else BlockRecord(copies.count, block.parent, copies.keys, named)

    def removed_hashes(self) -> list[int]:
        """The engine hashes of removed blocks; none where nothing is offloaded: then they are not needed."""
        return list(self.removed) if self.offloads else []

    def removed_record(self, engine_hash: int) -> BlockRecord | None:
        """What is remembered of a removed block."""
        block = self.removed.get(engine_hash)
        return None if block is None else BlockRecord(0, block.parent, (block.key,), self.salted.engine_hash_of(engine_hash))

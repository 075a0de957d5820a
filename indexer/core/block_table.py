"""The blocks of one stream by engine hash: what is held where, and a bounded memory of what was held.

held      engine hash → Block(key, parent, copies of the lead group on the gpu)     everything held anywhere
more      place → engine hash → Copies(count, keys it covers)                       the lower tiers, and the other groups in every tier
removed   engine hash → Block                                                       what was held: parents of new blocks, late offload announcements
large     engine hash → the keys from its own back to the one behind its parent's   known blocks that are longer than the distance of the keys
"""

from collections.abc import Iterable, Sequence
from itertools import chain, islice

from msgspec import Struct

from indexer.core.blocks import Block, Blocks, make_blocks
from indexer.core.event_pieces import Steps
from indexer.core.foreign_copy import ForeignCopy
from indexer.core.oldest import more_to_drop, oldest_to_drop
from indexer.core.orphans import Parked
from indexer.core.places import LEAD_GPU, REMOVED, Touched
from indexer.core.salted_hashes import SaltedHashes

# A block that covers more keys has no link to its parent.
SPAN_MAX = 63
# So many held blocks are counted among the removed ones in one step.
RETIRED_MAX = 1_024


class Copies(Struct, gc=False):
    """What one engine hash holds in a place: the keys that it covers, its own first."""

    keys: tuple[int, ...]
    count: int = 0


class BlockRecord(Struct, frozen=True, gc=False):
    """One engine hash in one place. `keys`: its own block key, then those of the blocks before it that it covers. `span`: how many keys back its
    parent is, 1 to SPAN_MAX."""

    copies: int
    parent: int | None
    keys: tuple[int, ...]
    engine_hash: int | None = None
    """What the engine calls it, where that is another hash: see `salted_hashes`."""
    span: int = 1


HashRecord = Block | BlockRecord | Parked | ForeignCopy
"""What is held for an engine hash: at LEAD_GPU a Block, or a BlockRecord where some are salted or large, at another place or REMOVED a BlockRecord,
as PARKED a Parked, as FOREIGN a ForeignCopy. All but BlockRecord are the stream's own: a later read returns what is held then."""
Records = dict[int, dict[int, HashRecord | None]]
"""By place, PARKED, FOREIGN or REMOVED that was touched, engine hash → what is held for it afterwards, None where nothing is."""


class BlockTable:
    """See the module. `held`, `more`, `removed` and `large` are to be read; who changes `held` and `more` calls `revive` and `retire`."""

    def __init__(self, removed_max: int, touched: Touched | None = None) -> None:
        """`touched`: where to note the engine hashes whose records change at another place than LEAD_GPU; None for nowhere."""
        self.removed: Blocks = make_blocks()
        self.large: dict[int, tuple[int, ...]] = {}
        self.offloads = False
        """Whether a block was seen in a tier below the gpu: then a removed block may yet be announced there."""
        self._touched = touched
        self.salted = SaltedHashes()
        self._removed_max = removed_max
        self.reset()

    def reset(self) -> None:
        """Hold nothing; what is remembered as removed stays."""
        self.held: Blocks = make_blocks()
        self.more: dict[int, dict[int, Copies]] = {}

    def forget(self) -> None:
        """Hold nothing and remember nothing."""
        self.removed.clear()
        self.large.clear()
        self.salted = SaltedHashes()
        self.offloads = False
        self.reset()

    @property
    def removed_limits(self) -> tuple[int, int]:
        """How many removed blocks are remembered, and how many go besides the excess."""
        return self._removed_max, more_to_drop(self._removed_max)

    def touch(self, place: int, hashes: Iterable[int]) -> None:
        """Note that the records of these hashes may change. `place`: not LEAD_GPU."""
        if self._touched is not None:
            self._touched[place] += hashes

    def known(self, engine_hash: int) -> Block | None:
        """The block of an engine hash, held or remembered."""
        return self.held.get(engine_hash) or self.removed.get(engine_hash)

    def key_of(self, engine_hash: int) -> int | None:
        """The block key of an engine hash, held or remembered."""
        key = self.held.key_of(engine_hash)
        return self.removed.key_of(engine_hash) if key is None else key

    def put(self, engine_hash: int, block: Block) -> None:
        """A known block has changed."""
        if engine_hash in self.held:
            self.held[engine_hash] = block
        elif engine_hash in self.removed:
            self.removed[engine_hash] = block

    def key_before(self, parent: int) -> int | None:
        """The key that blocks behind this one chain from. None where it is not known, or inferred: tokens do not say whose block it is."""
        block = self.known(parent)
        return None if block is None or block.parent == parent else block.key

    def mapped_key(self, engine_hash: int) -> int | None:
        """The block key of an engine hash in requests; None where it has none.

        A hash counts while a tier holds a block by it. Where blocks are offloaded it also counts as long as the removed block is remembered: its key
        may be held by the offloaded run of a later hash, which covers the blocks before it.
        """
        key = self.held.key_of(engine_hash)
        return self.removed.key_of(engine_hash) if key is None and self.offloads else key

    def covered(self, engine_hash: int, block: Block, count: int) -> tuple[int, ...]:
        """The keys of up to `count` blocks that end with this one, the last one first: by the parent links, as far as they are known."""
        keys = [block.key]
        while len(keys) < count:
            keys += self.large.get(engine_hash, ())[1:]
            parent = block.parent
            before = None if parent is None or parent == engine_hash else self.known(parent)
            if parent is None or before is None:
                break
            engine_hash, block = parent, before
            keys.append(block.key)
        return tuple(keys[:count])

    def link(self, engine_hash: int, block: Block, parent: int | None, parts: tuple[int, ...]) -> None:
        """Set the parent of a block, for the caller to put back. `parts`: the keys from its own back to the one behind its parent's; none where they
        are not known."""
        self.large.pop(engine_hash, None)
        block.parent = parent if 0 < len(parts) <= SPAN_MAX else None
        if 1 < len(parts) <= SPAN_MAX:
            self.large[engine_hash] = parts

    # Removed blocks

    def note_offloading(self) -> None:
        """A block was seen in a tier below the gpu: from now on removed blocks count."""
        if not self.offloads:
            self.offloads = True
            self.touch_removed(self.removed)

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
            self.touch_removed((engine_hash,))
        if len(removed) > self._removed_max:
            for oldest in oldest_to_drop(removed, self._removed_max):
                self.revive(oldest)
                self.salted.forget(oldest)
                self.large.pop(oldest, None)

    def retire_all(self) -> Steps[None]:
        """Count all held blocks among the removed ones, whatever tiers hold them: of more than are remembered, the newest."""
        kept, lost = make_blocks(), len(self.removed) + len(self.held) - self._removed_max
        hashes = chain(self.removed, self.held)
        while piece := list(islice(hashes, RETIRED_MAX)):
            self.touch_removed(piece)
            for engine_hash in piece[max(0, lost) :]:
                block = self.known(engine_hash)
                assert block is not None, "nothing changes meanwhile"
                kept[engine_hash] = Block(block.key, block.parent, 0)
            if not self.has_plain_blocks:
                for engine_hash in piece[: max(0, lost)]:
                    self.salted.forget(engine_hash)
                    self.large.pop(engine_hash, None)
            lost -= len(piece)
            yield
        self.removed = kept
        self.reset()

    def revive(self, engine_hash: int) -> None:
        """Count it no longer among the removed ones, if it is there."""
        if self.removed.pop(engine_hash, None) is not None:
            self.touch_removed((engine_hash,))

    def touch_removed(self, hashes: Iterable[int]) -> None:
        """These hashes came to be among the removed ones, or are no longer."""
        if self.offloads:
            self.touch(REMOVED, hashes)

    # Records

    def places(self) -> list[int]:
        """Where anything is held."""
        return [LEAD_GPU, *self.more]

    def hashes(self, place: int) -> Sequence[int]:
        """The engine hashes that are held in a place, as they are now."""
        return self.held.hashes_with_copies() if place == LEAD_GPU else list(self.more.get(place, ()))

    def count(self, place: int) -> int:
        """How many these are."""
        return self.held.count_with_copies() if place == LEAD_GPU else len(self.more.get(place, ()))

    def record(self, place: int, engine_hash: int) -> BlockRecord | None:
        """What is held for an engine hash in a place."""
        block = self.held.get(engine_hash)
        if block is None:
            return None
        named, span = self.salted.engine_hash_of(engine_hash), self._span(engine_hash)
        if place == LEAD_GPU:
            return BlockRecord(block.copies, block.parent, (block.key,), named, span) if block.copies else None
        copies = self.more.get(place, {}).get(engine_hash)
        return None if copies is None else BlockRecord(copies.count, block.parent, copies.keys, named, span)

    def removed_hashes(self) -> list[int]:
        """The engine hashes of removed blocks; none where nothing is offloaded: then they are not needed."""
        return list(self.removed) if self.offloads else []

    def removed_record(self, engine_hash: int) -> BlockRecord | None:
        """What is remembered of a removed block."""
        block = self.removed.get(engine_hash)
        if block is None:
            return None
        keys = self.large.get(engine_hash, (block.key,))
        return BlockRecord(0, block.parent, keys, self.salted.engine_hash_of(engine_hash), self._span(engine_hash))

    def _span(self, engine_hash: int) -> int:
        return len(self.large.get(engine_hash, (0,)))

    @property
    def has_plain_blocks(self) -> bool:
        """Whether a record of the lead group on the gpu says no more than its Block."""
        return not self.salted.engine_hashes and not self.large

    def restore(self, engine_hash: int, record: BlockRecord) -> Block:
        """The block of a record that a former owner of the stream wrote, for the caller to hold or to remember."""
        block = self.held.get(engine_hash)
        if block is None:
            block = Block(record.keys[0], None, 0)
            if record.engine_hash is not None:
                self.salted.add(engine_hash, record.engine_hash)
        if block.parent is None and len(record.keys) >= record.span:
            self.link(engine_hash, block, record.parent, record.keys[: record.span])
        return block

"""The copies of blocks that one stream holds, and which block keys they make it hold."""

from collections import Counter
from collections.abc import Iterable, Sequence

from indexer.core.block_table import Block, BlockRecord, BlockTable, HashRecord, LowerCopy
from indexer.core.events import Stored, Tier
from indexer.core.indexed_keys import IndexedKeys
from indexer.core.parts import Touched

# An enum's member costs as much to name as a look-up in a dict.
GPU = Tier.GPU

# Shorter runs are faster one block at a time.
RUN_MIN = 4


class HeldBlocks:
    """Adds and removes copies. `tally`: where to count, by reason, what could not be used.

    `table`: the blocks by engine hash. `keys`: the block keys that they hold. `announces_extra_keys`: whether the engine does; if not, two hashes for
    one key may be two images. `stored`: copies added by tier, since it was last taken.
    """

    def __init__(self, copies_max: int, removed_max: int, tally: Counter[str], touched: Touched | None = None) -> None:
        """`touched`: see BlockTable; what changes on the gpu goes into the change's `records`, where it has any."""
        self._copies_max = copies_max
        self._tally = tally
        self.table = BlockTable(removed_max, touched)
        self.stored: Counter[Tier] = Counter()
        self._reset()

    def _reset(self) -> None:
        self.keys = IndexedKeys()
        self.announces_extra_keys = False

    def forget(self) -> None:
        """Hold nothing and remember nothing."""
        self.table.forget()
        self._reset()

    def drop_held(self) -> None:
        """Drop all blocks, but remember which hash had which key."""
        for engine_hash, block in self.table.held.items():
            block.copies = 0
            self.table.remember(engine_hash, block)
        self.table.reset()
        announces_extra_keys = self.announces_extra_keys
        self._reset()
        self.announces_extra_keys = announces_extra_keys

    @property
    def _gpu_records(self) -> dict[int, HashRecord | None] | None:
        """Where to note the blocks that change on the gpu."""
        records = self.keys.change.records
        return None if records is None else records[GPU]

    # Adding

    def add(self, event: Stored, keys: Sequence[int]) -> None:
        """One more copy of each block of an event, whose keys are these. This and what it calls is the hot path of ingestion."""
        if self._add_new(event, keys):
            return
        table, indexed, tier, copies_max = self.table, self.keys, event.tier, self._copies_max
        blocks, held, ambiguous = table.held, indexed.held[GPU], indexed.claims.ambiguous
        touched, records = indexed.change.touched[GPU], self._gpu_records
        plain = tier is GPU and self.announces_extra_keys
        parent = event.parent
        for engine_hash, key in zip(event.hashes, keys, strict=True):
            block = blocks.get(engine_hash)
            if block is None:
                block = blocks[engine_hash] = Block(key, parent, 0)
                table.revive(engine_hash)
            elif block.key != key:
                self._tally["key_conflict"] += 1
                parent = engine_hash
                continue
            if not plain:
                self._claim(engine_hash, key)
            if tier is not GPU:
                self._add_lower(engine_hash, tier, (key,))
                parent = engine_hash
                continue
            if not block.copies:
                block.copies = 1
                held.add(key)
                if key not in ambiguous:
                    touched[key] = True  # also where another hash holds it: see IndexedKeys.hold
            elif block.copies < copies_max:
                block.copies += 1
            if records is not None:
                records[engine_hash] = block
            parent = engine_hash
        self.stored[tier] += len(keys)

    def _add_new(self, event: Stored, keys: Sequence[int]) -> bool:
        """The same, without a loop in Python, for a run of blocks that are all new on the gpu. Returns whether it was that."""
        hashes, table, indexed = event.hashes, self.table, self.keys
        if len(hashes) < RUN_MIN or event.tier is not GPU or not self.announces_extra_keys or indexed.claims.ambiguous:
            return False
        touched = dict.fromkeys(keys, True)
        if len(touched) != len(hashes) or len(set(hashes)) != len(hashes) or not table.held.keys().isdisjoint(hashes):
            return False
        if not indexed.held[GPU].add_new(touched):
            return False
        if table.removed:
            for engine_hash in table.removed.keys() & hashes:
                table.revive(engine_hash)
        blocks, records = zip(hashes, map(Block, keys, (event.parent, *hashes)), strict=True), self._gpu_records
        if records is None:
            table.held.update(blocks)
        else:
            records.update(new := dict(blocks))
            table.held.update(new)
        indexed.change.touched[GPU].update(touched)
        self.stored[GPU] += len(hashes)
        return True

    def add_known(self, engine_hash: int, block: Block, tier: Tier, keys: tuple[int, ...]) -> None:
        """One more copy of a block that is held or remembered. `keys`: those that it covers in a lower tier."""
        if engine_hash not in self.table.held:
            self.table.held[engine_hash] = block
            self.table.revive(engine_hash)
        self._claim(engine_hash, block.key)
        if tier is GPU:
            if not block.copies:
                self.keys.hold(GPU, (block.key,))
            block.copies = min(block.copies + 1, self._copies_max)
            if self._gpu_records is not None:
                self._gpu_records[engine_hash] = block
        else:
            self._add_lower(engine_hash, tier, keys)
        self.stored[tier] += 1

    def add_adopted(self, engine_hash: int, block: Block, copies_by_tier: dict[Tier, int]) -> None:
        """All copies of a block that waited for its parent. Without any it is remembered as removed."""
        self.table.revive(engine_hash)
        self.table.held[engine_hash] = block
        if any(copies_by_tier.values()):
            self._claim(engine_hash, block.key)
        for tier, copies in copies_by_tier.items():
            if not copies:
                continue
            if tier is GPU:
                if not block.copies:
                    self.keys.hold(tier, (block.key,))
                block.copies = min(block.copies + copies, self._copies_max)
                if self._gpu_records is not None:
                    self._gpu_records[engine_hash] = block
            else:
                for _ in range(copies):
                    self._add_lower(engine_hash, tier, (block.key,))
        self._retire(engine_hash, block)

    def _add_lower(self, engine_hash: int, tier: Tier, keys: tuple[int, ...]) -> None:
        self.table.note_offloading()
        lower = self.table.lower[tier]
        copy = lower.get(engine_hash)
        if copy is None:
            copy = lower[engine_hash] = LowerCopy(keys)
            self.keys.hold(tier, keys)
        copy.count = min(copy.count + 1, self._copies_max)
        self.table.touch_lower(tier, (engine_hash,))

    def _claim(self, engine_hash: int, key: int) -> None:
        if not self.announces_extra_keys and self.keys.claim(engine_hash, key):
            self._tally["ambiguous_key"] += 1

    def restore(self, tiers: Iterable[tuple[Tier, Iterable[tuple[int, BlockRecord]]]], removed: Iterable[tuple[int, BlockRecord]]) -> None:
        """Hold what these records say. Nothing is held before, and `announces_extra_keys` and `table.offloads` are set."""
        table = self.table
        table.removed.update((engine_hash, Block(record.keys[0], record.parent, 0)) for engine_hash, record in removed)
        for tier, records in tiers:
            for engine_hash, record in records:
                block = table.held.get(engine_hash)
                if block is None:
                    block = table.held[engine_hash] = Block(record.keys[0], record.parent, 0)
                    self._claim(engine_hash, block.key)
                if tier is GPU:
                    block.copies = record.copies
                else:
                    table.lower[tier][engine_hash] = LowerCopy(record.keys, record.copies)
                self.keys.hold(tier, record.keys)

    # Removing

    def remove(self, hashes: Iterable[int], tier: Tier) -> list[int]:
        """One copy less of each. Returns the hashes of which nothing is held."""
        held, not_held, records = self.table.held, [], self._gpu_records
        if tier is not GPU:
            self.table.touch_lower(tier, hashes)
        elif records is not None:
            records.update(dict.fromkeys(hashes))
        for engine_hash in hashes:
            block = held.get(engine_hash)
            if block is None:
                not_held.append(engine_hash)
            elif tier is not GPU:
                self._remove_lower(engine_hash, block, tier)
            elif block.copies > 1:
                block.copies -= 1
                if records is not None:
                    records[engine_hash] = block
            elif block.copies:
                block.copies = 0
                self.keys.release(GPU, (block.key,))
                self._retire(engine_hash, block)
        return not_held

    def _remove_lower(self, engine_hash: int, block: Block, tier: Tier) -> None:
        copy = self.table.lower[tier].get(engine_hash)
        if copy is None:
            return
        copy.count -= 1
        if not copy.count:
            del self.table.lower[tier][engine_hash]
            self.keys.release(tier, copy.keys)
            self._retire(engine_hash, block)

    def clear_gpu(self) -> None:
        """No copy on the gpu is left."""
        self.keys.clear_gpu()
        for engine_hash, block in list(self.table.held.items()):
            if block.copies:
                block.copies = 0
                self._retire(engine_hash, block)

    def _retire(self, engine_hash: int, block: Block) -> None:
        if self.table.retire(engine_hash, block):
            self.keys.unclaim(engine_hash, block.key)

"""The copies of blocks that one stream holds, and which block keys they make it hold."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from itertools import islice

from indexer.compiled import core
from indexer.core.block_runs import LeadRecords, Played, make_block_runs
from indexer.core.block_table import BlockRecord, BlockTable, Copies
from indexer.core.blocks import Block
from indexer.core.change import Change
from indexer.core.event_pieces import Steps
from indexer.core.events import PlainEvents, Stored, Tier
from indexer.core.groups import LEAD
from indexer.core.indexed_keys import IndexedKeys
from indexer.core.oldest import more_to_drop, oldest_to_drop
from indexer.core.places import LEAD_GPU, Touched, is_gpu, place_of, slot_and_part
from indexer.limits import StateLimits

# An enum's member costs as much to name as a look-up in a dict.
GPU = Tier.GPU

# Keys that the hashes of a batch may cover besides their own: where larger blocks do not overlap, it is no more than the keys that they are made of.
COVERED_MAX = 262_144


Roots = tuple[int, int, Collection[int], Collection[int]]
"""`leads`, `root`, `parked` and `awaited` of `BlockRuns.play`."""


class HeldBlocks:
    """Adds and removes copies. `tally`: where to count, by reason, what could not be used.

    `table`: the blocks by engine hash. `keys`: the block keys that they hold. `announces_extra_keys`: whether the engine does; if not, two hashes for
    one key may be two images. `stored`: copies added by tier, since it was last taken.
    """

    def __init__(self, limits: StateLimits, copies_max: int, tally: Counter[str], touched: Touched | None = None) -> None:
        """`touched`: see BlockTable; what changes at LEAD_GPU goes into the change's `records`, where it has any."""
        self._copies_max = copies_max
        self._gpu_max, self._lower_max = limits.gpu_blocks_max, limits.lower_tier_blocks_max
        self._tally = tally
        self.table = BlockTable(limits.removed_max, touched)
        self.stored: defaultdict[Tier, int] = defaultdict(int)
        self._reset()

    def _reset(self) -> None:
        self.keys = IndexedKeys()
        self._runs = make_block_runs(self.table, self.keys, self._copies_max, self._gpu_max)
        self.announces_extra_keys = False
        self.begin(self.keys.change)

    def begin(self, change: Change) -> None:
        """Note in this change what becomes of blocks from now on."""
        self.keys.change = change
        self._covers_left = COVERED_MAX
        self._lead_records: LeadRecords | None = None if change.records is None else change.records[LEAD_GPU]
        """Where to note the blocks that change at LEAD_GPU."""

    def forget(self) -> None:
        """Hold nothing and remember nothing."""
        self.table.forget()
        self._reset()

    def drop_held(self) -> Steps[None]:
        """Drop all blocks, but remember which hash had which key."""
        yield from self.table.retire_all()
        announces_extra_keys = self.announces_extra_keys
        self._reset()
        self.announces_extra_keys = announces_extra_keys

    def covered(self, engine_hash: int, block: Block, slot: int, width: int) -> tuple[int, ...]:
        """The keys that a hash of so many blocks covers, its own first: as far as they are known, and as far as the batch may cover any more. What it
        covers in another tier of its group is told by an event's tokens."""
        if width > self._covers_left:
            self._tally["cover_limit"] += 1
            return (block.key,)
        keys = self._covered_elsewhere(engine_hash, slot, width) or self.table.covered(engine_hash, block, width)
        self._covers_left -= len(keys)
        return keys

    def _covered_elsewhere(self, engine_hash: int, slot: int, width: int) -> tuple[int, ...] | None:
        for tier in Tier:
            copies = self.table.more.get(place_of(slot, tier), {}).get(engine_hash)
            if copies is not None and len(copies.keys) == width:
                return copies.keys
        return None

    # Adding

    def play(self, events: PlainEvents, first: int, roots: Roots, stored_max: int) -> Played:
        """Apply packed events from this one on, as far as the compiled core does. `stored_max`: see `BlockRuns.play`."""
        change, table = self.keys.change, self.table
        log = change.make_log(core.KeyLog)
        touched = None if log is not None else change.touched[GPU]
        moved: list[int] | None = [] if table.offloads else None
        leads, root, parked, awaited = roots
        announces, records, is_plain = self.announces_extra_keys, self._lead_records, table.has_plain_blocks
        played = self._runs.play(events, first, leads, root, stored_max, announces, log, touched, records, moved, is_plain, parked, awaited)
        if moved:
            table.touch_removed(moved)
        if played[3]:
            self.stored[GPU] += played[3]
        return played

    def add(self, event: Stored, keys: list[int]) -> None:
        """One more copy of each block of an event of the lead group on the gpu, whose keys are these. This and what it calls is the hot path of
        ingestion."""
        table, runs, hashes, parent = self.table, self._runs, event.hashes, event.parent
        touched, records, is_claimed = self.keys.change.touched[GPU], self._lead_records, not self.announces_extra_keys
        revived: list[int] | None = [] if table.offloads else None
        done = runs.add(0, hashes, keys, parent, touched, records, revived, is_claimed)
        while done < len(keys):
            self._add_one(hashes[done], keys[done], hashes[done - 1] if done else parent)
            done += 1
            if runs.goes_on:
                done = runs.add(done, hashes, keys, parent, touched, records, revived, is_claimed)
        if revived:
            table.touch_removed(revived)
        self.stored[GPU] += len(keys)
        if len(table.held) > self._gpu_max:
            self._drop_oldest_of_lead()

    def _add_one(self, engine_hash: int, key: int, parent: int | None) -> None:
        table, held = self.table, self.table.held
        block = held.get(engine_hash)
        if block is None:
            block = Block(key, parent, 0)
            table.revive(engine_hash)
            if table.large:
                table.large.pop(engine_hash, None)
        elif block.key != key and not self._correct(engine_hash, block, key, parent, (key,)):
            return
        elif block.parent != parent:
            self._set_parent(engine_hash, block, parent, (key,))
        self._claim(engine_hash, key)
        if not block.copies:
            self.keys.hold(LEAD, GPU, (key,))
        block.copies = min(block.copies + 1, self._copies_max)
        held[engine_hash] = block
        if self._lead_records is not None:
            self._lead_records[engine_hash] = block

    def add_in(self, place: int, event: Stored, keys: Sequence[int], run: int, width: int) -> None:
        """The same in any other place. `keys`: `run` for each block, of which it covers the last `width`."""
        parent = event.parent
        for end, engine_hash in zip(range(run, len(keys) + 1, run), event.hashes, strict=True):
            covered = tuple(reversed(keys[end - width : end]))
            parts = covered if run == width and (run == 1 or covered[0] != covered[1]) else ()  # equal ones stand for unknown keys
            block = self.table.known(engine_hash)
            if block is None:
                block = Block(covered[0], None, 0)
                self.table.link(engine_hash, block, parent, parts)
            elif block.key != covered[0] and not self._correct(engine_hash, block, covered[0], parent, parts):
                parent = engine_hash
                continue
            elif block.parent == engine_hash or (block.parent is None and parent is not None and parts):
                self._set_parent(engine_hash, block, parent, parts)
            self.add_known(engine_hash, block, place, covered)
            parent = engine_hash

    def _set_parent(self, engine_hash: int, block: Block, parent: int | None, parts: tuple[int, ...]) -> None:
        """A group of larger blocks had another parent for the block, or its key was inferred. `parts`: see `BlockTable.link`."""
        self.table.link(engine_hash, block, parent, parts)
        self.table.put(engine_hash, block)
        if block.copies and self._lead_records is not None:
            self._lead_records[engine_hash] = block
        for place, in_place in self.table.more.items():
            if engine_hash in in_place:
                self.table.touch(place, (engine_hash,))

    def _correct(self, engine_hash: int, block: Block, key: int, parent: int | None, parts: tuple[int, ...]) -> bool:
        """The gpu announces a known block with other content. What was announced elsewhere may have been taken for another block, and has the new key
        from now on; what was announced on the gpu stays. `parts`: see `BlockTable.link`. Returns whether the key is the new one."""
        if block.copies:
            self._tally["key_conflict"] += 1
            return False
        self.keys.unclaim(engine_hash, block.key)
        block.key = key
        self.table.link(engine_hash, block, parent, parts)
        self.table.put(engine_hash, block)
        for place, in_place in self.table.more.items():
            copies = in_place.get(engine_hash)
            if copies is not None:
                slot, part = slot_and_part(place)
                self.keys.release(slot, Tier(part), copies.keys)
                copies.keys = (key,)
                self.keys.hold(slot, Tier(part), copies.keys)
                self.table.touch(place, (engine_hash,))
        return True

    def _drop_oldest_of_lead(self) -> None:
        """More is held than the gpu and all other places may hold: the engine never says that blocks are gone, or not all of them."""
        held, elsewhere = self.table.held, sum(map(len, self.table.more.values()))
        if (over := len(held) - elsewhere - self._gpu_max) <= 0:
            return
        oldest = list(islice((each for each, block in held.items() if block.copies), over + more_to_drop(self._gpu_max)))
        self._tally["tier_limit"] += len(oldest)
        self._remove_lead(oldest, self._lead_records, is_all=True)

    def add_known(self, engine_hash: int, block: Block, place: int, keys: tuple[int, ...], copies: int = 1, *, is_foreign: bool = False) -> None:
        """More copies of a block whose key is known. `keys`: those that it covers there, its own first. `is_foreign`: its hash is not the engine's,
        so it is no second content of the key."""
        table = self.table
        if engine_hash not in table.held:
            table.held[engine_hash] = block
            table.revive(engine_hash)
        if not is_foreign:
            self._claim(engine_hash, block.key)
        slot, part = slot_and_part(place)
        tier = Tier(part)
        self.stored[tier] += copies
        if place == LEAD_GPU:
            if not block.copies:
                self.keys.hold(LEAD, GPU, (block.key,))
            block.copies = min(block.copies + copies, self._copies_max)
            table.held[engine_hash] = block
            if self._lead_records is not None:
                self._lead_records[engine_hash] = block
            return
        table.touch(place, (engine_hash,))
        if tier is not GPU:
            table.note_offloading()
        in_place = table.more.setdefault(place, {})
        held = in_place.pop(engine_hash, None)
        if held is None:
            held = Copies(keys)
            self.keys.hold(slot, tier, keys)
        in_place[engine_hash] = held  # the newest last
        # A lower tier keeps one copy of a block: one announced again was lost without a word.
        held.count = min(held.count + copies, self._copies_max) if tier is GPU else 1
        count_max = self._gpu_max if tier is GPU else self._lower_max
        if len(in_place) > count_max:
            for oldest in oldest_to_drop(in_place, count_max):
                self._tally["tier_limit"] += 1
                table.touch(place, (oldest,))
                self._drop(place, in_place, oldest)
                self._retire(oldest, table.held[oldest])

    def add_adopted(self, engine_hash: int, block: Block, copies: dict[int, tuple[int, tuple[int, ...]]]) -> None:
        """All copies of a block that waited for its key. Without any it is remembered as removed. `copies`: place → their number, and the keys that
        they cover."""
        self.table.revive(engine_hash)
        self.table.held[engine_hash] = block
        for place, (count, keys) in copies.items():
            if count:
                self.add_known(engine_hash, block, place, keys, count)
        self._retire(engine_hash, block)

    def _claim(self, engine_hash: int, key: int) -> None:
        if not self.announces_extra_keys and self.keys.claim(engine_hash, key):
            self._tally["ambiguous_key"] += 1

    def restore(self, places: Iterable[tuple[int, Iterable[tuple[int, BlockRecord]]]], removed: Iterable[tuple[int, BlockRecord]]) -> None:
        """Hold what these records say. Nothing is held before, and `announces_extra_keys` and `table.offloads` are set."""
        table = self.table
        for engine_hash, record in removed:
            table.removed[engine_hash] = table.restore(engine_hash, record)
        for place, records in places:
            slot, part = slot_and_part(place)
            for engine_hash, record in records:
                block = table.restore(engine_hash, record)
                if engine_hash not in table.held:
                    self._claim(engine_hash, block.key)
                if place == LEAD_GPU:
                    block.copies = record.copies
                table.held[engine_hash] = block
                if place != LEAD_GPU:
                    table.more.setdefault(place, {})[engine_hash] = Copies(record.keys, record.copies)
                self.keys.hold(slot, Tier(part), record.keys)

    # Removing

    def remove(self, hashes: list[int], place: int) -> list[int]:
        """One copy less of each. Returns the hashes of which nothing is held anywhere."""
        if place == LEAD_GPU:
            if self._lead_records is not None:
                self._lead_records.update(dict.fromkeys(hashes))
            return self._remove_lead(hashes, self._lead_records, is_all=False)
        self.table.touch(place, hashes)
        not_held = []
        for engine_hash in hashes:
            block = self.table.held.get(engine_hash)
            if block is None:
                not_held.append(engine_hash)
            else:
                self._remove_in(place, engine_hash, block)
        return not_held

    def _remove_lead(self, hashes: list[int], records: LeadRecords | None, *, is_all: bool) -> list[int]:
        """One copy less of each on the gpu, or no copy there. `records`: where to note what is left of those that are held. Returns the hashes of
        which nothing is held anywhere."""
        table, runs, touched = self.table, self._runs, self.keys.change.touched[GPU]
        not_held: list[int] = []
        gone: list[int] | None = [] if table.offloads else None
        is_plain = table.has_plain_blocks
        done = runs.remove(0, hashes, not_held, touched, records, gone, is_plain, is_all)
        while done < len(hashes):
            self._remove_one(hashes[done], not_held, records, is_all=is_all)
            done += 1
            if runs.goes_on:
                done = runs.remove(done, hashes, not_held, touched, records, gone, is_plain, is_all)
        if gone:
            table.touch_removed(gone)
        return not_held

    def _remove_one(self, engine_hash: int, not_held: list[int], records: LeadRecords | None, *, is_all: bool) -> None:
        held = self.table.held
        block = held.get(engine_hash)
        if block is None:
            not_held.append(engine_hash)
            return
        if block.copies:
            block.copies = 0 if is_all else block.copies - 1
            held[engine_hash] = block
            if records is not None:
                records[engine_hash] = block if block.copies else None
            if not block.copies and self.keys.held[GPU].keys:
                self.keys.release(LEAD, GPU, (block.key,))
        if not block.copies:
            self._retire(engine_hash, block)

    def _remove_in(self, place: int, engine_hash: int, block: Block) -> None:
        in_place = self.table.more.get(place)
        held = None if in_place is None else in_place.get(engine_hash)
        if in_place is None or held is None:
            return
        held.count -= 1
        if not held.count:
            self._drop(place, in_place, engine_hash)
            self._retire(engine_hash, block)

    def _drop(self, place: int, in_place: dict[int, Copies], engine_hash: int) -> None:
        slot, part = slot_and_part(place)
        self.keys.release(slot, Tier(part), in_place.pop(engine_hash).keys)
        if not in_place:
            del self.table.more[place]

    def clear_gpu(self, step_blocks: int) -> Steps[None]:
        """No copy on the gpu is left, in any group. In steps of so many blocks."""
        if not self.keys.clear_gpu():
            return
        for place in [place for place in self.table.more if is_gpu(place)]:
            del self.table.more[place]
        hashes = list(self.table.held)
        for start in range(0, len(hashes), step_blocks):
            self._remove_lead(hashes[start : start + step_blocks], None, is_all=True)
            yield

    def clear_lower(self, step_blocks: int) -> Steps[None]:
        """No copy below the gpu is left. In steps of so many blocks."""
        for place, in_place in list(self.table.more.items()):
            if is_gpu(place):
                continue
            hashes = list(in_place)
            for start in range(0, len(hashes), step_blocks):
                some = hashes[start : start + step_blocks]
                self.table.touch(place, some)
                for engine_hash in some:
                    self._drop(place, in_place, engine_hash)
                    self._retire(engine_hash, self.table.held[engine_hash])
                yield

    def _retire(self, engine_hash: int, block: Block) -> None:
        if self.table.retire(engine_hash, block):
            self.keys.unclaim(engine_hash, block.key)

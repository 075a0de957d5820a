"""What a change says of engine hashes: the records of all places that a batch touched, and what the hashes stand for in requests."""

from collections import defaultdict
from collections.abc import Iterable

from indexer.core.block_table import BlockTable, HashRecord
from indexer.core.change import Change, HashMapping
from indexer.core.foreign_copies import ForeignCopies
from indexer.core.orphans import Orphans
from indexer.core.places import FOREIGN, LEAD_GPU, PARKED, REMOVED, Touched, is_gpu, is_parked


class ChangeRecords:
    """Of one stream. `touched`: where blocks note the hashes that a batch touches, None where nobody asks for records.

    What becomes of the lead group's blocks on the gpu is in the change at once: see `HeldBlocks`.
    """

    def __init__(self, *, is_wanted: bool, with_hash_mapping: bool) -> None:
        self.touched: Touched | None = defaultdict(list) if is_wanted else None
        self._with_hash_mapping = with_hash_mapping

    def begin(self) -> Change:
        """A batch begins: what it will change."""
        change = Change()
        if self.touched is not None:
            change.records = {LEAD_GPU: {}}
            self.touched.clear()
        return change

    def forget(self) -> None:
        """What was touched does not count: the stream has to be read anew."""
        if self.touched is not None:
            self.touched.clear()

    def forget_gpu(self) -> None:
        """What was touched on the gpu does not count: it was emptied."""
        if self.touched is not None:
            for place in [place for place in self.touched if is_gpu(place)]:
                del self.touched[place]

    def touch(self, change: Change, place: int, hashes: Iterable[int], table: BlockTable) -> None:
        """Say what these engine hashes hold in a place, even where that is nothing."""
        if place != LEAD_GPU:
            table.touch(place, hashes)
        elif change.records is not None:
            change.records[LEAD_GPU].update(records(table, LEAD_GPU, hashes))

    def describe(self, change: Change, table: BlockTable, orphans: Orphans, foreign: ForeignCopies, *, has_groups: bool) -> None:
        """Say in the change what became of the hashes that were touched elsewhere, and what those of all places stand for."""
        if change.records is None or self.touched is None or not (self.touched or has_groups or table.offloads or table.salted.engine_hashes):
            return
        for place, hashes in self.touched.items():
            if place == PARKED:
                change.records[PARKED] = {engine_hash: orphans.get(engine_hash) for engine_hash in hashes}
            elif place == FOREIGN:
                change.records[FOREIGN] = {engine_hash: foreign.get(engine_hash) for engine_hash in hashes}
            else:
                change.records[place] = records(table, place, hashes)
        if not table.has_plain_blocks:
            change.records[LEAD_GPU] = records(table, LEAD_GPU, change.records[LEAD_GPU])
        if self._with_hash_mapping and (table.offloads or has_groups):
            places = [held for place, held in change.records.items() if not is_parked(place)]
            mapped = {engine_hash: table.mapped_key(engine_hash) for held in places for engine_hash in held}
            keys = {engine_hash: key for engine_hash, key in mapped.items() if key is not None}
            change.hash_mapping = HashMapping(keys, [engine_hash for engine_hash, key in mapped.items() if key is None])


def records(table: BlockTable, place: int, hashes: Iterable[int]) -> dict[int, HashRecord | None]:
    """What a place, or REMOVED, holds for these engine hashes; None where it holds nothing."""
    if place == REMOVED:
        return {engine_hash: table.removed_record(engine_hash) for engine_hash in hashes}
    if place != LEAD_GPU or not table.has_plain_blocks:
        return {engine_hash: table.record(place, engine_hash) for engine_hash in hashes}
    held = table.held
    return {engine_hash: block if (block := held.get(engine_hash)) is not None and block.copies else None for engine_hash in hashes}

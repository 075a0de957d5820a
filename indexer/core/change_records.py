"""What a change says of engine hashes: the records of all places that a batch touched, and what the hashes stand for in requests."""

from collections import defaultdict
from collections.abc import Iterable

from indexer.core.block_table import BlockTable, HashRecord, Records
from indexer.core.change import Change, HashMapping
from indexer.core.event_pieces import Steps, result_of
from indexer.core.foreign_copies import ForeignCopies
from indexer.core.orphans import Orphans
from indexer.core.places import FOREIGN, LEAD_GPU, PARKED, REMOVED, Touched, is_gpu, is_parked

STEP_HASHES = 1_024


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
        if self.touched or has_groups or table.offloads or table.salted.engine_hashes:
            result_of(self.describe_in_steps(change, table, orphans, foreign, has_groups=has_groups))

    def describe_in_steps(self, change: Change, table: BlockTable, orphans: Orphans, foreign: ForeignCopies, *, has_groups: bool) -> Steps[None]:
        """The same in steps."""
        if change.records is None or self.touched is None:
            return
        for place, hashes in self.touched.items():
            described: dict[int, HashRecord | None] = {}
            change.records[place] = described
            for start in range(0, len(hashes), STEP_HASHES):
                some = hashes[start : start + STEP_HASHES]
                if place == PARKED:
                    described.update((engine_hash, orphans.get(engine_hash)) for engine_hash in some)
                elif place == FOREIGN:
                    described.update((engine_hash, foreign.get(engine_hash)) for engine_hash in some)
                else:
                    described.update(records(table, place, some))
                yield
        if not table.has_plain_blocks:
            hashes = list(change.records[LEAD_GPU])
            for start in range(0, len(hashes), STEP_HASHES):
                change.records[LEAD_GPU].update(records(table, LEAD_GPU, hashes[start : start + STEP_HASHES]))
                yield
        if self._with_hash_mapping and (table.offloads or has_groups):
            yield from self._map(change, change.records, table)

    def _map(self, change: Change, described: Records, table: BlockTable) -> Steps[None]:
        keys: dict[int, int] = {}
        removed_hashes: dict[int, None] = {}
        for place, held in described.items():
            if is_parked(place):
                continue
            for number, engine_hash in enumerate(held):
                key = table.mapped_key(engine_hash)
                if key is None:
                    removed_hashes[engine_hash] = None
                else:
                    keys[engine_hash] = key
                if number % STEP_HASHES == STEP_HASHES - 1:
                    yield
        change.hash_mapping = HashMapping(keys, list(removed_hashes))


def records(table: BlockTable, place: int, hashes: Iterable[int]) -> dict[int, HashRecord | None]:
    """What a place, or REMOVED, holds for these engine hashes; None where it holds nothing."""
    if place == REMOVED:
        return {engine_hash: table.removed_record(engine_hash) for engine_hash in hashes}
    if place != LEAD_GPU or not table.has_plain_blocks:
        return {engine_hash: table.record(place, engine_hash) for engine_hash in hashes}
    held = table.held
    return {engine_hash: block if (block := held.get(engine_hash)) is not None and block.copies else None for engine_hash in hashes}

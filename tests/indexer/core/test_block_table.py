"""Blocks by engine hash: what is known of them, and which removed ones are remembered."""

from collections import defaultdict

from indexer.core.block_table import BlockRecord, BlockTable, Copies
from indexer.core.blocks import Block
from indexer.core.events import Tier
from indexer.core.places import LEAD_GPU, PARKED, REMOVED, Touched, is_gpu, place_of, slot_and_part

CPU = place_of(0, Tier.CPU)
OTHER_GROUP = place_of(1, Tier.GPU)


def table_of(*blocks: tuple[int, Block], removed_max: int = 2) -> BlockTable:
    table = BlockTable(removed_max)
    for engine_hash, block in blocks:
        table.held[engine_hash] = block
    return table


def test_a_block_is_retired_when_no_place_holds_it() -> None:
    block = Block(10, None, 1)
    table = table_of((1, block))
    assert not table.retire(1, block)
    block.copies = 0
    for place in (CPU, OTHER_GROUP):
        table.more[place] = {1: Copies((10,), 1)}
        assert not table.retire(1, block)
        del table.more[place]
    assert table.retire(1, block)
    assert (dict(table.held.items()), dict(table.removed.items())) == ({}, {1: block})
    assert (table.known(1), table.key_of(1)) == (block, 10)


def test_the_oldest_removed_block_goes_first() -> None:
    table = table_of()
    for engine_hash in (1, 2, 1, 3):
        table.remember(engine_hash, Block(10 * engine_hash, None, 0))
    assert list(table.removed) == [1, 3]


def test_a_removed_hash_stands_for_its_key_only_where_blocks_are_offloaded() -> None:
    table = table_of((1, Block(10, None)))
    table.remember(2, Block(20, 1, 0))
    assert [table.mapped_key(engine_hash) for engine_hash in (1, 2, 3)] == [10, None, None]
    assert table.removed_hashes() == []
    table.note_offloading()
    assert [table.mapped_key(engine_hash) for engine_hash in (1, 2, 3)] == [10, 20, None]
    assert table.removed_hashes() == [2]
    assert table.removed_record(2) == BlockRecord(0, 1, (20,))


def test_removed_blocks_are_noted_once_blocks_are_offloaded() -> None:
    touched: Touched = defaultdict(list)
    table = BlockTable(2, touched)
    table.remember(1, Block(10, None, 0))
    assert touched == {}
    table.note_offloading()
    assert touched == {REMOVED: [1]}
    table.remember(2, Block(20, None, 0))
    table.remember(3, Block(30, None, 0))
    table.revive(2)
    table.revive(4)
    assert {place: set(hashes) for place, hashes in touched.items()} == {REMOVED: {1, 2, 3}}


def test_an_offloaded_run_covers_the_blocks_before_it_as_far_as_they_are_known() -> None:
    table = table_of((1, Block(10, None)), (3, Block(30, 2)), removed_max=9)
    table.remember(2, Block(20, 1, 0))
    assert table.covered(3, table.held[3], 2) == (30, 20)
    assert table.covered(3, table.held[3], 9) == (30, 20, 10)
    assert table.covered(5, Block(50, 4), 3) == (50,)


def test_a_record_says_what_a_place_holds() -> None:
    table = table_of((1, Block(10, None, 2)), (2, Block(20, 1, 0)))
    table.more[CPU] = {2: Copies((20, 10), 1)}
    table.more[OTHER_GROUP] = {1: Copies((10,), 3)}
    assert table.record(LEAD_GPU, 1) == BlockRecord(2, None, (10,))
    assert table.record(LEAD_GPU, 2) is None
    assert table.record(CPU, 2) == BlockRecord(1, 1, (20, 10))
    assert table.record(CPU, 1) is None
    assert table.record(CPU, 3) is None
    assert table.record(OTHER_GROUP, 1) == BlockRecord(3, None, (10,))
    assert table.record(OTHER_GROUP, 2) is None
    assert table.places() == [LEAD_GPU, CPU, OTHER_GROUP]
    assert [list(table.hashes(place)) for place in (*table.places(), place_of(2, Tier.GPU))] == [[1], [2], [1], []]


def test_a_place_is_a_slot_and_a_tier() -> None:
    places = [place_of(slot, tier) for slot in range(3) for tier in Tier]
    assert len(set(places)) == len(places)
    assert places[0] == LEAD_GPU
    assert [slot_and_part(place) for place in places] == [(slot, tier) for slot in range(3) for tier in Tier]
    assert [place for place in places if is_gpu(place)] == [LEAD_GPU, OTHER_GROUP, place_of(2, Tier.GPU)]
    assert PARKED not in places
    assert REMOVED not in places


def test_touched_hashes_are_noted_by_place() -> None:
    touched: Touched = defaultdict(list)
    table = BlockTable(2, touched)
    table.touch(OTHER_GROUP, [1, 2])
    table.touch(CPU, [2])
    table.touch(OTHER_GROUP, [3])
    assert touched == {OTHER_GROUP: [1, 2, 3], CPU: [2]}

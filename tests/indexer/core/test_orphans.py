"""Parked blocks, by their own hash and by their parent's."""

from indexer.core.event_pieces import result_of
from indexer.core.events import Tier
from indexer.core.orphans import PLACES_MAX, Orphans, group_and_tier
from indexer.limits import StateLimits


def parked(*blocks: tuple[int, int, float], **limits: int) -> Orphans:
    """Orphans with these blocks: hash, parent, time."""
    orphans = Orphans(limits=StateLimits(**limits))
    for engine_hash, parent, since_s in blocks:
        orphans.park(engine_hash, parent, b"tokens", b"extra", since_s)
    return orphans


def test_a_parked_block_is_found_by_its_hash() -> None:
    orphans = parked((2, 1, 5.0))
    block = orphans.get(2)
    assert block is not None
    assert (block.parent, block.tokens, block.extra, block.since_s, block.copies) == (1, b"tokens", b"extra", 5.0, {})
    assert 2 in orphans
    assert 1 not in orphans
    assert orphans.get(1) is None


def test_parked_blocks_are_found_by_their_parent() -> None:
    orphans = parked((2, 1, 0.0), (3, 1, 0.0), (4, 2, 0.0))
    assert orphans.children(1) == [2, 3]
    assert orphans.children(2) == [4]
    assert orphans.children(4) == []


def test_a_block_taken_out_leaves_its_siblings() -> None:
    orphans = parked((2, 1, 0.0), (3, 1, 0.0))
    assert orphans.pop(2).parent == 1
    assert (orphans.children(1), len(orphans), 2 in orphans) == ([3], 1, False)
    orphans.pop(3)
    assert (orphans.children(1), len(orphans)) == ([], 0)


def test_an_empty_car_park_is_false() -> None:
    assert not Orphans()
    assert parked((2, 1, 0.0))


def test_the_oldest_go_beyond_so_many() -> None:
    orphans = parked((2, 1, 0.0), (3, 1, 0.0), (4, 3, 0.0), parked_max=2)
    assert orphans.drop_excess() == 1
    assert orphans.drop_excess() == 0
    assert (2 in orphans, len(orphans), orphans.children(1)) == (False, 2, [3])


def test_the_oldest_go_beyond_so_many_bytes_of_tokens_and_extra_keys() -> None:
    orphans = parked((2, 1, 0.0), (3, 1, 0.0), (4, 3, 0.0), parked_bytes_max=22)  # 11 bytes each
    assert orphans.drop_excess() == 1
    orphans.announce(3, orphans.parked[3], 1, b"some more tokens", b"")
    assert orphans.drop_excess() == 1
    assert list(orphans) == [4]


def test_copies_are_counted_by_place_and_cleared_on_the_gpu_or_below_it() -> None:
    orphans = parked((2, 1, 0.0), (3, 1, 0.0), copies_max=2)
    on_gpu, below = group_and_tier(0, Tier.GPU), group_and_tier(7, Tier.CPU)
    for engine_hash, of in ((2, on_gpu), (2, on_gpu), (2, on_gpu), (2, below), (3, below)):
        orphans.add_copies(engine_hash, of)
    assert orphans.parked[2].copies == {on_gpu: 2, below: 1}
    result_of(orphans.clear_copies(of_gpu=True))
    assert [block.copies for _, block in orphans.items()] == [{below: 1}, {below: 1}]
    orphans.pop(3)
    result_of(orphans.clear_copies(of_gpu=False))
    assert [block.copies for _, block in orphans.items()] == [{}]


def test_a_block_that_is_announced_in_every_group_takes_no_more_than_so_many_places() -> None:
    orphans = parked((2, 1, 0.0))
    for number in range(10 * PLACES_MAX):
        orphans.add_copies(2, group_and_tier(number, Tier.GPU))
    assert len(orphans.parked[2].copies) == PLACES_MAX


def test_what_was_parked_too_long_ago_goes() -> None:
    orphans = parked((2, 1, 0.0), (3, 1, 5.0), (4, 3, 9.0))
    assert result_of(orphans.drop_before(0.0)) == 0
    assert result_of(orphans.drop_before(9.0)) == 2
    assert (4 in orphans, len(orphans), orphans.children(1)) == (True, 1, [])


def test_all_parked_blocks_can_be_walked() -> None:
    assert [(engine_hash, block.parent) for engine_hash, block in parked((2, 1, 0.0), (4, 3, 0.0)).items()] == [(2, 1), (4, 3)]

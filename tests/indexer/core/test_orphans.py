"""Parked blocks, by their own hash and by their parent's."""

from indexer.core.orphans import Orphans


def parked(*blocks: tuple[int, int, float]) -> Orphans:
    """Orphans with these blocks: hash, parent, time."""
    orphans = Orphans()
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
    orphans = parked((2, 1, 0.0), (3, 1, 0.0), (4, 3, 0.0))
    assert orphans.drop_over(3) == 0
    assert orphans.drop_over(1) == 2
    assert (4 in orphans, len(orphans), orphans.children(1)) == (True, 1, [])


def test_what_was_parked_too_long_ago_goes() -> None:
    orphans = parked((2, 1, 0.0), (3, 1, 5.0), (4, 3, 9.0))
    assert orphans.drop_before(0.0) == 0
    assert orphans.drop_before(9.0) == 2
    assert (4 in orphans, len(orphans), orphans.children(1)) == (True, 1, [])


def test_all_parked_blocks_can_be_walked() -> None:
    assert [(engine_hash, block.parent) for engine_hash, block in parked((2, 1, 0.0), (4, 3, 0.0)).items()] == [(2, 1), (4, 3)]

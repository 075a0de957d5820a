"""The memory of what was removed last."""

from indexer.core.change import Change
from indexer.core.events import Tier
from scorer_api.index.removals import Removal, Removals


def change(sequence: int | None, tier: Tier = Tier.GPU, **touched: bool) -> Change:
    """Blocks by name, held afterwards or not: the key of `b7` is 7."""
    made = Change()
    made.sequence = sequence
    made.touched[tier].update({int(name[1:]): held for name, held in touched.items()})
    return made


def test_a_removed_block_is_found_with_its_batch() -> None:
    removals = Removals(10)
    removals.note(change(3, b1=True, b2=False))
    assert removals.find(2) == Removal(3)
    assert removals.find(1) is removals.find(9) is None


def test_the_last_removal_counts_whatever_its_tier() -> None:
    removals = Removals(10)
    removals.note(change(3, b2=False))
    removals.note(change(4, b2=True))
    removals.note(change(5, Tier.DISK, b2=False))
    assert removals.find(2) == Removal(5)


def test_a_removal_whose_batch_nobody_knows_is_one_all_the_same() -> None:
    removals = Removals(10)
    removals.note(change(None, b2=False))
    assert removals.find(2) == Removal(None)


def test_what_was_cleared_was_removed() -> None:
    removals = Removals(10)
    cleared = change(7)
    cleared.clear_gpu()
    removals.note(cleared, {1, 2})
    assert removals.find(1) == removals.find(2) == Removal(7)


def test_it_is_bounded_by_the_blocks_that_its_changes_touch() -> None:
    removals = Removals(5)
    for sequence in range(100):
        removals.note(change(sequence, **{f"b{sequence}": False, f"b{1000 + sequence}": True}))
        assert removals.blocks <= 5
    assert [removals.find(key) for key in (97, 98, 99)] == [None, Removal(98), Removal(99)]
    removals.note(change(100, **{f"b{key}": False for key in range(6)}))
    assert removals.blocks == 0, "a change that is too large is not kept, and nothing older is left beside it"
    removals.note(change(101), set(range(6)))
    assert removals.blocks == 0


def test_what_removes_nothing_takes_no_room() -> None:
    removals = Removals(5)
    removals.note(change(1, b1=True, b2=True))
    removals.note(change(2))
    assert removals.blocks == 0


def test_nothing_is_kept_of_a_former_life() -> None:
    removals = Removals(5)
    removals.note(change(1, b1=False))
    removals.forget()
    assert (removals.find(1), removals.blocks) == (None, 0)
    removals.note(change(1, b1=False))
    reload = change(2)
    reload.reload = True
    removals.note(reload)
    assert removals.find(1) is None

"""A key is held as long as one engine hash holds it."""

from indexer.core.held_keys import HeldKeysInPython, make_held_keys


def test_a_key_goes_with_the_last_hash_that_holds_it() -> None:
    held = make_held_keys()
    assert [held.add(1), held.add(1), held.add(1)] == [True, False, False]
    assert [held.remove(1), held.remove(1)] == [False, False]
    assert set(held.keys) == {1}
    assert [held.remove(1), held.remove(1)] == [True, False]
    assert set(held.keys) == set()


def test_many_new_keys_are_added_at_once_or_not_at_all() -> None:
    held = HeldKeysInPython()
    assert held.add_new({1: True, 2: True})
    assert not held.add_new({2: True, 3: True})
    assert set(held.keys) == {1, 2}
    assert held.remove(2), "it was counted once"


def test_clear_forgets_counts_too() -> None:
    held = make_held_keys()
    held.add(1)
    held.add(1)
    held.clear()
    assert set(held.keys) == set()
    assert held.add(1)
    assert held.remove(1)

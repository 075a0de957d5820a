"""What a dict over its limit gives up."""

from indexer.core.oldest import oldest_to_drop


def test_within_the_limit_nothing_goes() -> None:
    assert oldest_to_drop({}, 1) == []
    assert oldest_to_drop(dict.fromkeys(range(32)), 32) == []


def test_the_oldest_go_and_a_sixteenth_of_the_limit_with_them() -> None:
    assert oldest_to_drop(dict.fromkeys([5, 3, 9]), 2) == [5]
    assert oldest_to_drop(dict.fromkeys(range(33)), 32) == [0, 1, 2]
    assert oldest_to_drop(dict.fromkeys(range(40)), 32) == list(range(10))


def test_an_entry_that_was_added_again_is_a_new_one() -> None:
    entries = dict.fromkeys(range(3))
    del entries[0]
    entries[0] = None
    assert oldest_to_drop(entries, 2) == [1]

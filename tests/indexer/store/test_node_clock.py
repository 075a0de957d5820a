"""What an owner knows of the clock of the Redis that holds a stream."""

from indexer.store.node_clock import NodeClock


def test_nothing_is_known_at_first() -> None:
    assert NodeClock().at_ms("a", 1.0) == 0


def test_it_goes_on_from_what_was_seen() -> None:
    clock = NodeClock()
    clock.note("a", 1_000_000, 50.0)
    assert clock.at_ms("a", 50.0) == 1_000_000
    assert clock.at_ms("a", 51.5) == 1_001_500
    assert clock.at_ms("a", 49.0) == 999_000


def test_what_one_node_showed_says_nothing_of_another() -> None:
    clock = NodeClock()
    clock.note("a", 1_000_000, 50.0)
    assert not clock.knows("b")
    assert clock.at_ms("b", 50.0) == 0
    clock.note("b", 400_000, 60.0)
    assert clock.at_ms("b", 61.0) == 401_000
    assert clock.at_ms("a", 61.0) == 0, "its clock may have been set since"

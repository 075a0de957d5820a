"""Registered pods that are away for too long are taken to be gone."""

from indexer.ownership.dead_registrations import DeadRegistrations


def test_a_pod_is_dead_once_it_was_away_for_long_enough_at_a_stretch() -> None:
    dead = DeadRegistrations(100.0)
    assert dead.dead({"a": False, "b": True}, 0.0) == []
    assert dead.dead({"a": False, "b": False}, 60.0) == []
    assert dead.dead({"a": False, "b": False}, 100.0) == ["a"]
    assert dead.dead({"a": True, "b": False}, 101.0) == []
    assert dead.dead({"a": False, "b": False}, 161.0) == ["b"]
    assert dead.dead({"a": False}, 190.0) == []
    assert dead.dead({"a": False}, 261.0) == ["a"]


def test_what_is_registered_again_or_spoken_for_by_others_begins_anew() -> None:
    dead = DeadRegistrations(100.0)
    dead.dead({"a": False, "b": False}, 0.0)
    dead.note_alive("a")
    assert dead.dead({"a": False}, 100.0) == []
    assert dead.dead({"a": False, "b": False}, 150.0) == []
    assert dead.dead({"a": False, "b": False}, 200.0) == ["a"]


def test_it_can_be_off() -> None:
    assert not DeadRegistrations(0.0).is_on
    assert (DeadRegistrations(3_600.0).look_s, DeadRegistrations(1.0).look_s) == (30.0, 0.25)

"""What was done to pods here, for as long as it may have to be done again."""

from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec
from indexer.store import unconfirmed_registrations as module
from indexer.store.unconfirmed_registrations import UnconfirmedRegistrations

ONE = (EngineSpec("a", "m", events="tcp://127.0.0.1:9"),)
OTHER = (EngineSpec("a", "m", events="tcp://127.0.0.1:10"),)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_last_deed_for_a_pod_is_due_at_any_other_server_for_a_while() -> None:
    clock = Clock()
    unconfirmed = UnconfirmedRegistrations(60.0, clock)
    unconfirmed.note("a", ONE, "1", "old")
    unconfirmed.note("a", None, "1", "old")
    assert unconfirmed.confirmed_by_others("old") == []
    ((pod, record),) = unconfirmed.confirmed_by_others("new")
    assert (pod, record.specs, record.mark) == ("a", None, "1")
    clock.now_s += 61
    assert unconfirmed.confirmed_by_others("new") == []


def test_streams_belong_to_a_deletion() -> None:
    unconfirmed = UnconfirmedRegistrations(60.0)
    unconfirmed.note("a", ONE, "1", "old")
    unconfirmed.note_deleted(StreamKey("m", "a", 0))
    unconfirmed.note("b", None, "2", "old")
    unconfirmed.note_deleted(StreamKey("m", "b", 0))
    unconfirmed.note_deleted(StreamKey("m", "c", 0))
    assert {pod: record.streams for pod, record in unconfirmed.confirmed_by_others("new")} == {"a": [], "b": [StreamKey("m", "b", 0)]}


def test_what_somebody_else_did_since_counts() -> None:
    clock = Clock()
    unconfirmed = UnconfirmedRegistrations(60.0, clock)
    for pods in ({"a": OTHER}, {"a": ONE}, {}):
        unconfirmed.note("a", None, "1", "old")
        unconfirmed.note_registered(pods, "old", clock.now_s + 1)
        assert bool(unconfirmed.confirmed_by_others("new")) == (not pods)
    unconfirmed.note("a", ONE, "1", "old")
    unconfirmed.note_registered({"a": ONE}, "old", clock.now_s + 1)
    unconfirmed.note_registered({"a": OTHER}, "new", clock.now_s + 1)
    unconfirmed.note_registered({"a": OTHER}, "old", clock.now_s)
    unconfirmed.note_registered({}, "old", clock.now_s + 1)
    assert unconfirmed.confirmed_by_others("new"), "the same, another server, an older answer, and one that lost it"
    unconfirmed.note_registered({"a": OTHER}, "old", clock.now_s + 1)
    assert not unconfirmed.confirmed_by_others("new")


def test_not_all_is_remembered() -> None:
    unconfirmed = UnconfirmedRegistrations(60.0)
    for number in range(module.PODS_MAX + 1):
        unconfirmed.note(str(number), None, "", "old")
    assert len(unconfirmed.confirmed_by_others("new")) == module.PODS_MAX

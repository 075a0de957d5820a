"""What was done to pods here, for as long as it may have to be done again."""

from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec
from indexer.store import remembered as module
from indexer.store.remembered import Remembered

ONE = (EngineSpec("a", "m", events="tcp://127.0.0.1:9"),)
OTHER = (EngineSpec("a", "m", events="tcp://127.0.0.1:10"),)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_the_last_deed_for_a_pod_is_due_at_any_other_server_for_a_while() -> None:
    clock = Clock()
    remembered = Remembered(60.0, clock)
    remembered.note("a", ONE, "1", "old")
    remembered.note("a", None, "1", "old")
    assert remembered.told_another("old") == []
    ((pod, deed),) = remembered.told_another("new")
    assert (pod, deed.specs, deed.mark) == ("a", None, "1")
    clock.now_s += 61
    assert remembered.told_another("new") == []


def test_streams_belong_to_a_deletion() -> None:
    remembered = Remembered(60.0)
    remembered.note("a", ONE, "1", "old")
    remembered.note_deleted(StreamKey("m", "a", 0))
    remembered.note("b", None, "2", "old")
    remembered.note_deleted(StreamKey("m", "b", 0))
    remembered.note_deleted(StreamKey("m", "c", 0))
    assert {pod: deed.streams for pod, deed in remembered.told_another("new")} == {"a": [], "b": [StreamKey("m", "b", 0)]}


def test_what_somebody_else_did_since_counts() -> None:
    clock = Clock()
    remembered = Remembered(60.0, clock)
    for pods in ({"a": OTHER}, {"a": ONE}, {}):
        remembered.note("a", None, "1", "old")
        remembered.hear(pods, "old", clock.now_s + 1)
        assert bool(remembered.told_another("new")) == (not pods)
    remembered.note("a", ONE, "1", "old")
    remembered.hear({"a": ONE}, "old", clock.now_s + 1)
    remembered.hear({"a": OTHER}, "new", clock.now_s + 1)
    remembered.hear({"a": OTHER}, "old", clock.now_s)
    remembered.hear({}, "old", clock.now_s + 1)
    assert remembered.told_another("new"), "the same, another server, an older answer, and one that lost it"
    remembered.hear({"a": OTHER}, "old", clock.now_s + 1)
    assert not remembered.told_another("new")


def test_not_all_is_remembered() -> None:
    remembered = Remembered(60.0)
    for number in range(module.REMEMBERED_MAX + 1):
        remembered.note(str(number), None, "", "old")
    assert len(remembered.told_another("new")) == module.REMEMBERED_MAX

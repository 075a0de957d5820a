"""Which pods there are: every decision without Redis and without waiting."""

from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec
from indexer.ownership.pod_directory import PodDirectory


def specs(pod: str, **more: object) -> tuple[EngineSpec, ...]:
    return (EngineSpec.from_mapping({"pod": pod, "model": "m", "events": f"tcp://{pod}:5557", **more}, "test"),)


def dial_in(pod: str, rank: int = 0) -> EngineSpec:
    return EngineSpec(pod, "m", rank=rank)


NONE: frozenset[str] = frozenset()


def test_a_registration_replaces_a_flag_and_the_flag_comes_back_with_no_registration() -> None:
    pods = PodDirectory({"a": specs("a"), "b": specs("b")})
    assert pods.all() == {"a": specs("a"), "b": specs("b")}
    pods.learn({"a": specs("a", rank=1)}, NONE)
    assert pods.all() == {"a": specs("a", rank=1), "b": specs("b")}
    pods.learn({}, NONE)
    assert pods.all() == {"a": specs("a"), "b": specs("b")}


def test_a_forgotten_pod_is_gone_also_where_a_flag_names_it_until_it_is_registered() -> None:
    pods = PodDirectory({"a": specs("a")})
    pods.learn({}, frozenset({"a"}))
    assert pods.all() == {}
    pods.learn({}, NONE)  # that it was forgotten is not remembered for ever
    assert pods.all() == {}
    pods.learn({"a": specs("a", rank=1)}, NONE)
    assert pods.all() == {"a": specs("a", rank=1)}


def test_a_flag_that_is_read_again_and_new_counts_again() -> None:
    pods = PodDirectory({"a": specs("a"), "b": specs("b")})
    pods.learn({}, frozenset({"a", "b"}))
    pods.configure({"a": specs("a", rank=1), "b": specs("b")})
    assert pods.all() == {"a": specs("a", rank=1)}
    pods.learn({}, frozenset({"a", "b"}))  # still remembered: nobody forgot it anew
    assert pods.all() == {"a": specs("a", rank=1)}
    pods.configure({})
    assert pods.all() == {}


def test_a_registered_pod_that_redis_knows_nothing_of_was_lost() -> None:
    pods = PodDirectory({"f": specs("f")})
    pods.learn({"a": specs("a"), "b": specs("b"), "c": specs("c")}, NONE)
    assert pods.missing({"a"}, {"b"}) == {"c": specs("c")}


def test_what_is_not_named_any_more_is_deleted_only_where_all_indexers_know() -> None:
    pods = PodDirectory({"flag": specs("flag"), "both": specs("both")})
    pods.learn({"registered": specs("registered")}, NONE)
    pods.forget("both")
    pods.configure({})
    assert not pods.is_deleted("flag")  # others may have the flag still
    assert pods.is_deleted("both")
    assert pods.is_deleted("registered")  # e.g. a rank of it that is not named any more


def test_dial_in_pods_come_and_go_by_rank() -> None:
    pods = PodDirectory({})
    pods.add_dial_in(dial_in("g", 0))
    pods.add_dial_in(dial_in("g", 1))
    assert pods.has_dial_in(StreamKey("m", "g", 0))
    assert not pods.has_dial_in(StreamKey("m", "g", 2))
    assert not pods.has_dial_in(StreamKey("n", "g", 0))
    pods.remove_dial_in(StreamKey("m", "g", 0))
    assert pods.all() == {"g": (dial_in("g", 1),)}
    pods.remove_dial_in(StreamKey("m", "g", 1))
    pods.remove_dial_in(StreamKey("m", "g", 1))
    assert pods.all() == {}


def test_a_dial_in_pod_that_is_registered_is_no_dial_in_pod_any_more() -> None:
    pods = PodDirectory({})
    pods.add_dial_in(dial_in("g"))
    pods.learn({"g": specs("g")}, NONE)
    assert pods.all() == {"g": specs("g")}
    assert not pods.has_dial_in(StreamKey("m", "g", 0))


def test_a_forgotten_dial_in_pod_may_come_again() -> None:
    pods = PodDirectory({})
    pods.add_dial_in(dial_in("g"))
    pods.learn({}, frozenset({"g"}))
    assert pods.all() == {}
    pods.add_dial_in(dial_in("g"))
    pods.learn({}, frozenset({"g"}))
    assert pods.all() == {"g": (dial_in("g"),)}

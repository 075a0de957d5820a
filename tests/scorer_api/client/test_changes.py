"""Changes between two looks at the pods."""

from typing import Any

import pytest

from scorer_api.client import (
    Connected,
    Disconnected,
    NoAnswerError,
    PodAppeared,
    PodGone,
    PodStatus,
    ProblemError,
    Restarted,
    ServiceBack,
    ServiceLost,
    StrangeAnswerError,
    StreamAppeared,
    StreamGone,
    StreamStatus,
    TrustChanged,
)
from scorer_api.client.changes import Watch

LIVE = {"trust": "live", "connected": True, "restarts": 0, "last_error": None}


def pod(name: str, model: str = "m", **ranks: dict[str, Any]) -> PodStatus:
    """A pod with streams r0, r1, … that are live but for what is given."""
    fixed = {"sequence": None, "block_size": None, "blocks": {}, "batches": 0, "gaps": 0, "replayed": 0, "last_batch_age_s": None}
    return PodStatus(name, model, [StreamStatus(rank=int(key[1:]), **{**fixed, **LIVE, **more}) for key, more in ranks.items()])


def test_the_first_look_shows_all_that_there_is() -> None:
    seen = list(Watch(None).seen([pod("a", r0={}, r1={"trust": "stale", "connected": False}), pod("b", "n")], 0))
    assert seen == [
        PodAppeared("a", "m"),
        StreamAppeared("a", "m", 0, "live", True),
        StreamAppeared("a", "m", 1, "stale", False),
        PodAppeared("b", "n"),
    ]


def test_a_look_without_a_change_yields_nothing() -> None:
    watch = Watch(None)
    list(watch.seen([pod("a", r0={})], 0))
    assert list(watch.seen([pod("a", r0={})], 1)) == []


def test_each_kind_of_change() -> None:
    watch = Watch(None)
    list(watch.seen([pod("a", r0={}, r1={}), pod("b", r0={}), pod("c", r0={})], 0))
    after = [pod("a", r0={"trust": "stale", "connected": False, "last_error": "disconnected"}, r2={}), pod("b", r0={"restarts": 2}), pod("d")]
    assert list(watch.seen(after, 1)) == [
        PodGone("c", "m"),
        StreamGone("a", "m", 1),
        Disconnected("a", "m", 0, "disconnected"),
        TrustChanged("a", "m", 0, "live", "stale"),
        StreamAppeared("a", "m", 2, "live", True),
        Restarted("b", "m", 0, 2),
        PodAppeared("d", "m"),
    ]
    back = [pod("a", r0={}, r2={}), pod("b", r0={}), pod("d")]
    assert list(watch.seen(back, 2)) == [Connected("a", "m", 0), TrustChanged("a", "m", 0, "stale", "live")]


def test_a_pod_with_another_model_is_another() -> None:
    watch = Watch(None)
    list(watch.seen([pod("a", r0={})], 0))
    assert list(watch.seen([pod("a", "n", r0={})], 1)) == [PodGone("a", "m"), PodAppeared("a", "n"), StreamAppeared("a", "n", 0, "live", True)]


def test_pods_of_other_models_are_left_out() -> None:
    watch = Watch("n")
    assert list(watch.seen([pod("a", r0={}), pod("b", "n")], 0)) == [PodAppeared("b", "n")]
    assert list(watch.seen([pod("b", "n")], 1)) == []


def test_an_outage_is_said_once_and_what_changed_meanwhile_comes_after_it() -> None:
    watch = Watch(None)
    list(watch.seen([pod("a", r0={})], 0))
    away = NoAnswerError("http://h", "refused")
    assert list(watch.failed(away, 10)) == [ServiceLost("no answer from http://h: refused")]
    assert list(watch.failed(away, 11)) == []
    assert list(watch.seen([pod("b")], 14.5)) == [ServiceBack(4.5), PodGone("a", "m"), PodAppeared("b", "m")]
    assert list(watch.failed(away, 15)) == [ServiceLost("no answer from http://h: refused")]


@pytest.mark.parametrize("error", [ProblemError(503, "", ""), ProblemError(429, "", ""), ProblemError(500, "", ""), StrangeAnswerError("u", 502)])
def test_what_may_pass_by_itself_is_an_outage(error: ProblemError | StrangeAnswerError) -> None:
    assert list(Watch(None).failed(error, 0)) == [ServiceLost(str(error))]


@pytest.mark.parametrize("error", [ProblemError(401, "", ""), ProblemError(404, "", ""), StrangeAnswerError("u", 200), StrangeAnswerError("u", 301)])
def test_what_does_not_pass_is_raised(error: ProblemError | StrangeAnswerError) -> None:
    with pytest.raises(type(error)):
        list(Watch(None).failed(error, 0))

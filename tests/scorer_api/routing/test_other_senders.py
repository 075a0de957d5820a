"""What others send, by what engines got and what was sent from here."""

import math

import pytest

from scorer_api.routing.other_senders import OTHERS_MAX, PODS_MAX, OtherSenders


def learned(*rounds: tuple[int, float]) -> OtherSenders:
    """One pod, measured each second: requests from here, and how many its engine got, in each."""
    others = OtherSenders()
    had = 1_000.0
    others.learn([("a", 0.0, had)])
    for number, (sent, got) in enumerate(rounds, 1):
        for _ in range(sent):
            others.sent("a")
        had += got
        others.learn([("a", float(number), had)])
    return others


def test_nothing_is_known_before_the_second_measurement() -> None:
    assert OtherSenders().per_request == 0
    assert learned().per_request == 0, "what the engine got before is no sign of others now"


def test_what_others_send_to_what_is_sent_from_here() -> None:
    """One is added to what was sent, so that few requests say little."""
    assert learned((10, 40)).per_request == pytest.approx(30 / 11)
    assert learned((10, 10)).per_request == 0
    assert learned((10, 7)).per_request == 0, "more was sent than has arrived"
    assert learned((100, 105)).per_request == 0, "they may be under way"
    assert learned((0, 9)).per_request == 9
    assert learned((0, 1e9)).per_request == OTHERS_MAX


def test_older_requests_count_less() -> None:
    """A second is a tenth of the time that they count."""
    kept = math.exp(-0.1)
    assert learned((10, 40), (10, 10)).per_request == pytest.approx(30 * kept / (1 + 10 + 10 * kept))


def test_all_pods_count_and_each_measurement_once() -> None:
    others = OtherSenders()
    others.learn([("a", 1.0, 0.0), ("b", 1.5, 0.0)])
    others.sent("a")
    others.sent("b")
    others.sent("new")
    for _ in range(3):
        others.learn([("a", 2.0, 4.0), ("b", 2.0, 2.0), ("new", 2.0, 50.0)])
    assert others.per_request == pytest.approx((6 - 2) / (1 + 2))
    others.learn([("b", 1.9, 9.0)])
    assert others.per_request == pytest.approx((6 - 2) / (1 + 2)), "older than what is known"


def test_an_engine_that_restarts_counts_from_then_on() -> None:
    others = learned((10, 20))
    before = others.per_request
    others.sent("a")
    others.learn([("a", 2.0, 3.0)])
    assert others.per_request == before
    others.sent("a")
    others.learn([("a", 3.0, 4.0)])
    assert others.per_request == pytest.approx(10 * math.exp(-0.2) / (1 + 10 * math.exp(-0.2) + 1))


def test_pods_that_come_and_go_are_forgotten() -> None:
    others = OtherSenders()
    for number in range(4 * PODS_MAX):
        others.learn([("stays", float(number), float(number)), (f"pod-{number}", float(number), 1.0)])
    assert len(others._pods) <= PODS_MAX + 1
    assert "stays" in others._pods

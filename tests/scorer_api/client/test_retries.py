"""When to ask again, and how soon."""

import httpx
import pytest

from scorer_api.client import Retries

POLICY = Retries(count=3, first_s=0.1, pause_max_s=2.0)


def answer(status: int, **headers: str) -> httpx.Response:
    return httpx.Response(status, headers=headers)


BROKEN = [httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError]


@pytest.mark.parametrize("kind", BROKEN)
def test_after_a_connection_that_failed_pauses_double_and_are_bounded(kind: type[httpx.TransportError]) -> None:
    error = kind("x")
    for tries, least_s in ((1, 0.1), (2, 0.2), (3, 0.4)):
        pauses = [POLICY.pause_s(tries, error) or 0 for _ in range(50)]
        assert least_s <= min(pauses) < max(pauses) <= least_s * 1.5
    assert POLICY.pause_s(4, error) is None
    assert 2.0 <= (Retries(count=99).pause_s(30, error) or 0) <= 3.0


@pytest.mark.parametrize("status", [429, 503])
def test_after_a_service_that_says_when_it_waits_that_long(status: int) -> None:
    pauses = [POLICY.pause_s(3, answer(status, **{"Retry-After": "1"})) or 0 for _ in range(50)]
    assert 1.0 <= min(pauses) < max(pauses) <= 1.5


@pytest.mark.parametrize(
    "outcome",
    [
        answer(200),
        answer(503),
        answer(503, **{"Retry-After": "3600"}),
        answer(503, **{"Retry-After": "Wed, 25 Nov 2026 02:00:00 GMT"}),
        answer(503, **{"Retry-After": "-1"}),
        answer(500, **{"Retry-After": "1"}),
        answer(400, **{"Retry-After": "1"}),
        answer(401, **{"Retry-After": "1"}),
        answer(404, **{"Retry-After": "1"}),
        answer(422, **{"Retry-After": "1"}),
        httpx.ReadTimeout("x"),
        httpx.WriteTimeout("x"),
        httpx.UnsupportedProtocol("x"),
    ],
)
def test_nothing_else_is_asked_again(outcome: httpx.Response | Exception) -> None:
    assert POLICY.pause_s(1, outcome) is None


def test_none_is_none() -> None:
    assert Retries(count=0).pause_s(1, httpx.ConnectError("x")) is None

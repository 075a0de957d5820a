"""The bodies of all requests together have a bound."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from prometheus_client import CollectorRegistry

from indexer.http.bodies import BodyBound
from indexer.http.body_room import BodyRoom
from indexer.http.problems import Problem
from indexer.metrics import HttpMetrics
from tests.running import Running
from tests.waiting import wait_until

BOUND = 100_000


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with Running(bodies_bytes_max=str(BOUND)) as service:
        yield service


def post(service: Running, size: int, path: str = "score") -> httpx.Response:
    """The response to a request for a model that is not known, with a body of so many bytes."""
    body = b'{"model": "m", "token_ids": []}'.ljust(size)
    return httpx.post(f"{service.url}/v1/{path}", content=body, headers={"Content-Type": "application/json"}, timeout=30)


def half_a_body(service: Running, size: int) -> socket.socket:
    """A connection over which so many bytes of a body came, and more are announced."""
    url = httpx.URL(service.url)
    connection = socket.create_connection((url.host, url.port or 80), timeout=30)
    head = f"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {size + 1}\r\n\r\n"
    connection.sendall(head.encode() + b" " * size)
    return connection


@pytest.mark.rule("C8")
@pytest.mark.parametrize("path", ["score", "route", "explain"])
def test_what_is_beyond_it_is_refused_until_there_is_room(service: Running, path: str) -> None:
    outcome = f"kv_indexer_{path}_requests_total"
    counted = service.metric(outcome, outcome="no_room"), service.metric("kv_indexer_bodies_refused_total")
    assert post(service, BOUND, path).status_code == 404, "alone it fits"
    with closing(half_a_body(service, BOUND - 1_000)):
        wait_until(lambda: post(service, 2_000, path).status_code == 429)
        refused = post(service, 2_000, path)
        assert (refused.status_code, refused.headers["Retry-After"], refused.headers["content-type"]) == (429, "1", "application/problem+json")
        assert "bodies_bytes_max" in refused.json()["detail"]
        assert post(service, 0, path).status_code == 404, "a small one still fits"
        now = service.metric(outcome, outcome="no_room"), service.metric("kv_indexer_bodies_refused_total")
        assert now[0] - counted[0] == now[1] - counted[1] >= 2
    wait_until(lambda: post(service, BOUND, path).status_code == 404)


async def ask(bound: BodyBound, *sizes: int) -> None:
    """One request whose body comes in pieces of these sizes."""
    pieces = iter(sizes)

    async def receive() -> Any:
        size = next(pieces, None)
        return {"type": "http.disconnect"} if size is None else {"type": "http.request", "body": b" " * size, "more_body": True}

    async def send(message: Any) -> None:
        pass

    await bound({"type": "http"}, receive, send)


@pytest.mark.parametrize("ends", [None, RuntimeError("of this test"), Problem(422, "of this test")])
async def test_a_body_counts_no_more_once_its_request_is_over_however_it_ends(ends: Exception | None) -> None:
    refused = HttpMetrics(CollectorRegistry()).no_room

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["type"] == "http.request":
            pass
        if ends is not None:
            raise ends

    async def outcome(*sizes: int) -> BaseException | None:
        (raised,) = await asyncio.gather(ask(bound, *sizes), return_exceptions=True)
        return raised

    bound = BodyBound(app, BodyRoom(10), refused)
    assert [await outcome(4, 6) for _ in range(3)] == [ends] * 3
    with pytest.raises(Problem, match="more than 10 bytes"):
        await ask(bound, 5, 6)
    assert await outcome(10) is ends

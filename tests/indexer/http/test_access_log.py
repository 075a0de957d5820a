"""A line for each request, where that is wanted."""

import asyncio
import logging
from typing import Any

import pytest

from indexer.http import access_log
from indexer.http.access_log import PATH_LENGTH_MAX, AccessLog
from tests.running import Running

NAME = access_log.__name__


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    names = ("method", "path", "status", "client")
    return [{name: getattr(record, name) for name in names} for record in caplog.records if record.name == NAME]


def test_each_request_has_a_line_and_so_have_those_that_are_refused(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    with Running(access_log="true") as service:
        service.http.get(f"{service.url}/v1/pods?limit=1")
        service.http.put(f"{service.url}/v1/pods/a%1b%2Fb", json={})
        service.http.post(f"{service.url}/v1/score", json={"model": "m", "token_ids": [1]})
    first, *others = lines(caplog)
    assert first == {"method": "GET", "path": "/healthz", "status": 200, "client": "127.0.0.1"}
    assert others == [
        {"method": "GET", "path": "/v1/pods", "status": 200, "client": "127.0.0.1"},
        {"method": "PUT", "path": "/v1/pods/a%1b%2Fb", "status": 422, "client": "127.0.0.1"},
        {"method": "POST", "path": "/v1/score", "status": 404, "client": "127.0.0.1"},
    ]
    assert all(record.getMessage() == "request" and 0 < record.__dict__["seconds"] < 60 for record in caplog.records if record.name == NAME)


def test_there_is_none_unless_it_is_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with Running() as service:
        service.http.get(f"{service.url}/v1/pods")
    assert lines(caplog) == []


def play(app: Any, **scope: Any) -> None:
    """One request, of which nothing is sent."""

    async def send(message: Any) -> None:
        pass

    asyncio.run(AccessLog(app)({"type": "http", "method": "GET", "path": "/", **scope}, None, send))


async def fails(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("broken")


async def is_silent(scope: Any, receive: Any, send: Any) -> None:
    """As for a client that hung up."""


def test_an_app_that_fails_is_logged_as_500_and_its_error_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    with pytest.raises(RuntimeError, match="broken"):
        play(fails)
    assert lines(caplog) == [{"method": "GET", "path": "/", "status": 500, "client": None}]


@pytest.mark.parametrize(
    ("raw_path", "shown"),
    [
        (b"/a%0a?x=1", "/a%0a"),
        (b"/\x9b31m\xc3\xa4", "/\\x9b31m\\xc3\\xa4"),
        (b"/" + b"x" * 60_000, "/" + "x" * (PATH_LENGTH_MAX - 1)),
    ],
)
def test_a_path_is_as_it_was_sent_and_harms_no_terminal(caplog: pytest.LogCaptureFixture, raw_path: bytes, shown: str) -> None:
    caplog.set_level(logging.INFO, NAME)
    play(is_silent, raw_path=raw_path, client=("::1", 7))
    assert lines(caplog) == [{"method": "GET", "path": shown, "status": None, "client": "::1"}]


def test_what_is_no_request_is_passed_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, NAME)
    play(is_silent, type="lifespan")
    assert lines(caplog) == []

"""Routes that are called past the web framework answer like those that it calls."""

import json
from typing import Any

import httpx
import pytest

from indexer.config.settings import Settings
from indexer.http.server import Served
from scorer_api import app as app_module
from scorer_api.api.routes import DIRECT
from scorer_api.api.score import ScoreHandler

JSON = {"Content-Type": "application/json"}
SCORE = json.dumps({"model": "m", "token_ids": [1, 2]})
CHAT = json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}]})
REQUESTS: list[tuple[str, str, dict[str, str], str]] = [
    ("POST", "/v1/score", JSON, SCORE),
    ("POST", "/v1/score?pretty=1", JSON, SCORE),
    ("POST", "/v1/score", JSON, "{"),
    ("POST", "/v1/score", JSON, ""),
    ("POST", "/v1/score", {}, SCORE),
    ("POST", "/v1/score", {**JSON, "Content-Encoding": "gzip"}, SCORE),
    ("POST", "/v1/score", {**JSON, "Accept": "application/msgpack"}, SCORE),
    ("POST", "/v1/score", JSON, " " * 2_000),
    ("POST", "/v1/score/", JSON, SCORE),
    ("POST", "/v1/score/batch", JSON, json.dumps({"requests": [{"model": "m", "token_ids": [1]}]})),
    ("GET", "/v1/score", {}, ""),
    ("POST", "/v1/route", JSON, SCORE),
    ("POST", "/v1/route/done", JSON, json.dumps({"id": "0123456789abcdef"})),
    ("POST", "/v1/pick", JSON, CHAT),
    ("GET", "/v1/pick", {}, ""),
    ("POST", "/v1/pick/v1/chat/completions", JSON, CHAT),
    ("POST", "/v1/pick/a%2Fb%0Ac", JSON, "{"),
    ("DELETE", "/v1/pick/0123456789abcdef", {}, ""),
    ("PUT", "/v1/pick/0123456789abcdef", {}, ""),
    ("GET", "/v1/models", {}, ""),
    ("POST", "/v1/nothing", JSON, SCORE),
]
TOLD_EACH_TIME = ("x-kv-request-id",)


def served(monkeypatch: pytest.MonkeyPatch, *, is_direct: bool) -> Served:
    monkeypatch.setattr(app_module, "DIRECT", DIRECT if is_direct else frozenset())
    return app_module.make_serve(Settings(body_bytes_max=1_000))


async def answer(served: Served, method: str, path: str, headers: dict[str, str], body: str) -> tuple[int, dict[str, str], bytes]:
    transport = httpx.ASGITransport(app=served.app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://service") as client:
        response = await client.request(method, path, headers=headers, content=body)
    return response.status_code, {name: value for name, value in response.headers.items() if name not in TOLD_EACH_TIME}, response.content


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: f"{request[0]} {request[1]} {len(request[3])}")
async def test_the_answer_is_that_of_the_framework(monkeypatch: pytest.MonkeyPatch, request_: tuple[str, str, dict[str, str], str]) -> None:
    by_framework = await answer(served(monkeypatch, is_direct=False), *request_)
    assert await answer(served(monkeypatch, is_direct=True), *request_) == by_framework


async def test_a_failure_is_one_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: Any) -> bytes:
        raise RuntimeError("nobody expected this")

    monkeypatch.setattr(ScoreHandler, "answer", fail)
    by_framework = await answer(served(monkeypatch, is_direct=False), "POST", "/v1/score", JSON, SCORE)
    assert by_framework[0] == 500
    assert await answer(served(monkeypatch, is_direct=True), "POST", "/v1/score", JSON, SCORE) == by_framework


@pytest.mark.parametrize("is_direct", [False, True])
async def test_a_client_that_goes_away_gets_the_same_problem(monkeypatch: pytest.MonkeyPatch, *, is_direct: bool) -> None:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/v1/score", "raw_path": b"/v1/score", "query_string": b"", "headers": headers}
    await served(monkeypatch, is_direct=is_direct).app({**scope, "asgi": {"version": "3.0"}, "http_version": "1.1"}, receive, send)
    assert (sent[0]["status"], json.loads(sent[1]["body"])["detail"]) == (400, "the client went away before its request was whole")


async def test_the_framework_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which shows that the two of these tests take different ways."""

    async def call(*_: Any) -> None:
        raise RuntimeError("the framework was called")

    for is_direct, status in ((True, 404), (False, 500)):
        service = served(monkeypatch, is_direct=is_direct)
        monkeypatch.setattr("starlette.routing.Router.__call__", call)
        assert (await answer(service, "POST", "/v1/score", JSON, SCORE))[0] == status

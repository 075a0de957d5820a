"""Requests that are answered where they are read get the answer that the app gives."""

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import structs

from indexer.http import connection
from indexer.http.at_once import BODY_BYTES_MAX
from indexer.http.server import Served, serve
from scorer_api.app import make_serve
from tests.engine import BLOCK_SIZE, Engine, stored
from tests.settings import settings_of
from tests.waiting import wait_until_async

TOKEN = "a-token"  # noqa: S105 - of the test
TOKENS = [random.Random("tokens").randrange(2**32) for _ in range(64 * BLOCK_SIZE)]
HELD_BLOCKS = 40
ASKED = {"model": "m", "token_ids": TOKENS}
BODY = json.dumps(ASKED).encode()
PACKED = msgspec.msgpack.encode({**ASKED, "token_ids": b"".join(token.to_bytes(4, "little") for token in TOKENS)})
AUTHORIZED = f"Authorization: Bearer {TOKEN}"
JSON = "Content-Type: application/json"
MSGPACK = "Content-Type: application/msgpack"
ONCE, APP = True, False
"""Whether a request is answered at once, or by the app."""

# Path, headers, body, and who answers.
REQUESTS: dict[str, tuple[str, list[str], bytes, bool]] = {
    "JSON": ("/v1/score", [JSON], BODY, ONCE),
    "JSON without spaces": ("/v1/score", [JSON, "Accept: */*"], msgspec.json.encode(ASKED), ONCE),
    "msgpack": ("/v1/score", [MSGPACK], PACKED, ONCE),
    "another name of msgpack": ("/v1/score", ["content-type: application/x-msgpack", "accept: application/vnd.msgpack"], PACKED, ONCE),
    "integers in msgpack": ("/v1/score", [MSGPACK], msgspec.msgpack.encode(ASKED), ONCE),
    "JSON for msgpack": ("/v1/score", [JSON, "Accept: application/msgpack"], BODY, ONCE),
    "tokens as the prompt": ("/v1/score", [JSON], json.dumps({"model": "m", "prompt": TOKENS}).encode(), ONCE),
    "a limit": ("/v1/score", [JSON], json.dumps({**ASKED, "limit": 1}).encode(), ONCE),
    "pods": ("/v1/score", [JSON], json.dumps({**ASKED, "pods": ["no-pod"]}).encode(), ONCE),
    "a cache salt": ("/v1/score", [JSON], json.dumps({**ASKED, "cache_salt": "salt"}).encode(), ONCE),
    "speculative blocks": ("/v1/score", [JSON], json.dumps({**ASKED, "include_speculative": True}).encode(), ONCE),
    "no tokens": ("/v1/score", [JSON], b'{"model": "m", "token_ids": []}', ONCE),
    "a pick": ("/v1/route", [JSON], BODY, ONCE),
    "a pick in msgpack": ("/v1/route", [MSGPACK], PACKED, ONCE),
    "a pick by a policy that lacks a session": ("/v1/route", [JSON], json.dumps({**ASKED, "policy": "session"}).encode(), APP),
    "a pick of no pod": ("/v1/route", [JSON], json.dumps({**ASKED, "pods": []}).encode(), APP),
    "two mistakes": ("/v1/score", [JSON], json.dumps({"pods": TOKENS, "token_ids": TOKENS}).encode(), APP),
    "two mistakes in msgpack": ("/v1/score", [MSGPACK], msgspec.msgpack.encode({"pods": TOKENS, "token_ids": TOKENS}), APP),
    "several types that are accepted": ("/v1/score", [JSON, "Accept: text/html, application/msgpack;q=0.9"], BODY, APP),
    "a type with a parameter": ("/v1/score", ["Content-Type: application/json; charset=utf-8"], BODY, APP),
    "no type": ("/v1/score", [], BODY, APP),
    "two types": ("/v1/score", [JSON, MSGPACK], BODY, APP),
    "an encoding": ("/v1/score", [JSON, "Content-Encoding: gzip"], BODY, APP),
    "a query": ("/v1/score?pretty=1", [JSON], BODY, APP),
    "another route": ("/v1/nothing", [JSON], BODY, APP),
    "an upgrade": ("/v1/score", [JSON, "Connection: Upgrade", "Upgrade: h2c"], BODY, APP),
    "an expectation": ("/v1/score", [JSON, "Expect: 100-continue"], BODY, APP),
    "a last request": ("/v1/score", [JSON, "Connection: close"], BODY, APP),
    "no JSON": ("/v1/score", [JSON], BODY[:-1], APP),
    "a token that is none": ("/v1/score", [JSON], b'{"model": "m", "token_ids": [1, -1]}', APP),
    "tokens twice": ("/v1/score", [JSON], json.dumps({**ASKED, "prompt": [1]}).encode(), APP),
    "an unknown model": ("/v1/score", [JSON], json.dumps({**ASKED, "model": "none"}).encode(), APP),
    "a misspelled field": ("/v1/score", [JSON], json.dumps({**ASKED, "limits": 1}).encode(), APP),
    "tools without a chat": ("/v1/score", [JSON], json.dumps({**ASKED, "tools": []}).encode(), APP),
    "an unknown token": ("/v1/score", [JSON, "X-KV-Indexer-Token: wrong"], BODY, APP),
    "a body beyond the limit": ("/v1/score", [JSON], b" " * 70_000, APP),
}


class Service:
    """`asked`: requests that the app has seen. `streams`: connections to the service with and without answers at once."""

    def __init__(self, settings: Any) -> None:
        self.served: Served = make_serve(settings)
        self.asked = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.asked += 1
        await self.served.app(scope, receive, send)

    @asynccontextmanager
    async def listening(self, settings: Any, **changes: Any) -> AsyncIterator[int]:
        """Its port. `changes`: to what is served."""
        stop, url = asyncio.Event(), asyncio.get_running_loop().create_future()
        served = structs.replace(self.served, app=self, **changes)
        running = asyncio.create_task(serve(settings, lambda: served, stop, url))
        yield int((await url).rpartition(":")[2])
        stop.set()
        await running


class Both:
    """The same service at two ports: one answers at once, one by the app alone."""

    def __init__(self, service: Service, at_once: int, by_app: int) -> None:
        self.service, self.at_once, self.by_app = service, at_once, by_app

    @property
    def bytes_left(self) -> int:
        assert self.service.served.at_once is not None
        return self.service.served.at_once.room.bytes_left


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        tokens = TOKENS[: HELD_BLOCKS * BLOCK_SIZE]
        engine.publish(stored(list(range(1, HELD_BLOCKS + 1)), tokens))
        yield engine


@pytest.fixture
async def both(engine: Engine, tmp_path: Path) -> AsyncIterator[Both]:
    (tmp_path / "tokens").write_text(TOKEN)
    flags = {"port": "0", "body_bytes_max": "65536", "api_token_file": str(tmp_path / "tokens"), "bodies_bytes_max": "200000"}
    settings = settings_of(flags, [engine.spec()])
    service = Service(settings)
    async with (
        service.listening(settings) as at_once,
        service.listening(settings, at_once=None, parts=[], reloadables=[], service=None) as by_app,
    ):
        found = b""
        while b'"matched_blocks":%d' % HELD_BLOCKS not in found:
            found = await one(by_app, request("/v1/score", [JSON, AUTHORIZED], BODY))
            await asyncio.sleep(0.01)
        service.asked = 0
        yield Both(service, at_once, by_app)


def request(path: str, headers: list[str], body: bytes, method: str = "POST", version: str = "1.1") -> bytes:
    head = [f"{method} {path} HTTP/{version}", "Host: x", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


async def read(reader: asyncio.StreamReader) -> bytes:
    """One answer; without what differs from one to the next."""
    head = await reader.readuntil(b"\r\n\r\n")
    if head.startswith(b"HTTP/1.1 100 "):
        head = await reader.readuntil(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    (length,) = (int(line.split(b":")[1]) for line in lines if line.lower().startswith(b"content-length"))
    body = await reader.readexactly(length)
    answer = msgspec.msgpack.decode(body) if b"content-type: application/msgpack" in lines else json.loads(body)
    shown = {name: value for name, value in answer.items() if name not in ("id", "view")}
    return b"\r\n".join([line for line in lines if not line.startswith(b"date:")]) + msgspec.json.encode(shown)


async def one(port: int, raw: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    answer = await asyncio.wait_for(read(reader), 30)
    writer.close()
    return answer


async def test_the_answer_is_that_of_the_app(both: Both) -> None:
    for name, (path, headers, body, who) in REQUESTS.items():
        raw = request(path, [*headers, *([] if "X-KV-Indexer-Token: wrong" in headers else [AUTHORIZED])], body)
        both.service.asked = 0
        by_app, by_either = await one(both.by_app, raw), await one(both.at_once, raw)
        if path == "/v1/route":  # the first pick is part of what the second one looks at
            by_app, by_either = by_app.partition(b"\r\n")[0], by_either.partition(b"\r\n")[0]
        assert (by_either, both.service.asked) == (by_app, 1 if who is ONCE else 2), name
        assert both.bytes_left == 200_000, name


async def test_other_methods_and_versions_are_the_apps_and_who_has_no_token(both: Both) -> None:
    for number, (method, version, token, status) in enumerate(
        [("GET", "1.1", [AUTHORIZED], 405), ("PUT", "1.1", [AUTHORIZED], 405), ("POST", "1.0", [AUTHORIZED], 200), ("POST", "1.1", [], 401)], 1
    ):
        answer = await one(both.at_once, request("/v1/score", [JSON, *token], BODY, method, version))
        assert (int(answer.split()[1]), both.service.asked) == (status, number)


async def test_of_requests_that_come_together_one_is_answered_at_once(both: Both) -> None:
    """They are answered in their order, and others have their turn in between."""
    raw = [request("/v1/score", [JSON, AUTHORIZED], json.dumps({**ASKED, "token_ids": TOKENS[:count]}).encode()) for count in (8, 16, 24, 32)]
    expected = [await one(both.by_app, each) for each in raw]
    both.service.asked = 0
    reader, writer = await asyncio.open_connection("127.0.0.1", both.at_once)
    writer.write(b"".join(raw))
    assert [await asyncio.wait_for(read(reader), 30) for _ in raw] == expected
    assert both.service.asked == len(raw) - 1
    writer.write(raw[0])
    assert await asyncio.wait_for(read(reader), 30) == expected[0]
    assert both.service.asked == len(raw) - 1
    writer.close()


async def test_a_body_in_pieces_is_answered_at_once_if_they_come_soon(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WHOLE_S", 60.0)
    raw = request("/v1/score", [JSON, AUTHORIZED], BODY)
    reader, writer = await asyncio.open_connection("127.0.0.1", both.at_once)
    for part in (raw[:20], raw[20:-500], raw[-500:-100]):
        writer.write(part)
        await asyncio.sleep(0.02)
    await wait_until_async(lambda: both.bytes_left == 200_000 - len(BODY) + 100)
    writer.write(raw[-100:])
    assert b'"matched_blocks":%d' % HELD_BLOCKS in await asyncio.wait_for(read(reader), 30)
    assert (both.service.asked, both.bytes_left) == (0, 200_000)
    writer.close()


async def test_a_slow_body_is_the_apps(both: Both) -> None:
    raw = request("/v1/score", [JSON, AUTHORIZED], BODY)
    reader, writer = await asyncio.open_connection("127.0.0.1", both.at_once)
    writer.write(raw[:-100])
    await wait_until_async(lambda: both.service.asked)
    writer.write(raw[-100:])
    assert await asyncio.wait_for(read(reader), 30) == await one(both.by_app, raw)
    assert both.bytes_left == 200_000
    writer.close()


@pytest.mark.parametrize("shuts_down", [False, True])
async def test_a_client_that_goes_away_gives_its_room_back(both: Both, monkeypatch: pytest.MonkeyPatch, *, shuts_down: bool) -> None:
    monkeypatch.setattr(connection, "WHOLE_S", 60.0)
    _, writer = await asyncio.open_connection("127.0.0.1", both.at_once)
    writer.write(request("/v1/score", [JSON, AUTHORIZED], BODY)[:-1])
    await wait_until_async(lambda: both.bytes_left < 200_000)
    if shuts_down:
        writer.write_eof()
    else:
        writer.transport.abort()
    await wait_until_async(lambda: both.bytes_left == 200_000 and both.service.asked == 1)
    writer.close()


async def test_bodies_for_which_there_is_no_room_are_refused(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "WHOLE_S", 60.0)
    raw = request("/v1/score", [JSON, AUTHORIZED], json.dumps(ASKED).encode().ljust(65_536))
    opened = [await asyncio.open_connection("127.0.0.1", both.at_once) for _ in range(3)]
    for _, writer in opened:
        writer.write(raw[:-1])
    await wait_until_async(lambda: both.bytes_left == 200_000 - 3 * 65_535)
    assert b" 429 " in await one(both.at_once, raw)
    for _, writer in opened:
        writer.transport.abort()
    await wait_until_async(lambda: both.bytes_left == 200_000)


async def test_a_failure_is_the_apps(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("nobody expected this")

    monkeypatch.setattr("scorer_api.api.score.ScoreHandler.encoded_answer", fail)
    assert b" 500 " in await one(both.at_once, request("/v1/score", [JSON, AUTHORIZED], BODY))
    assert both.service.asked == 1


def test_no_body_that_takes_long_is_read_at_once() -> None:
    assert BODY_BYTES_MAX <= 2**20


async def test_an_access_log_has_every_request(engine: Engine) -> None:
    settings = settings_of({"access_log": "true"}, [engine.spec()])
    assert make_serve(settings).at_once is None

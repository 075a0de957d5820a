"""Whatever a request says, in JSON or msgpack, it gets an answer or a problem of its own, and nothing goes wrong in the service.

`make test-fuzz` plays a million requests; TEST_FUZZ_REQUESTS and TEST_FUZZ_SEED say how many and which. A failure names the seed and the request.
"""

import asyncio
import logging
import os
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import msgspec
import pytest

from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.problems import MEDIA_TYPE
from scorer_api.app import make_serve
from tests.engine import Engine, stored
from tests.fuzzing import Ask, Fuzzer
from tests.model_files import make_files
from tests.running import Running
from tests.settings import QUICK, settings_of

REQUESTS = int(os.environ.get("TEST_FUZZ_REQUESTS", "2000"))
SEED = int(os.environ.get("TEST_FUZZ_SEED", "1"))
SLICE = 2_000
PART = 50_000
OVER_SOCKETS = max(200, REQUESTS // 100)
STATUSES = {200, 201, 204, 307, 400, 404, 405, 408, 409, 413, 415, 422, 501, 502, 503}

pytestmark = pytest.mark.timeout(120 + min(REQUESTS, PART) / 20)


class Errors(logging.Handler):
    """What is logged as an error, or with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.ERROR or record.exc_info:
            self.records.append(self.format(record))


def published(engine: Engine) -> None:
    """What a pod holds: the beginning of many prompts that are asked for."""
    engine.publish(stored([1, 2, 3, 4], range(16), block_size=4))


def flags(folder: Path) -> dict[str, str]:
    """Of a service that tokenizes for one model, and whose engines are at this machine only, where nobody listens."""
    make_files(folder)
    return {**QUICK, "port": "0", "tokenizer": f"own={folder}", "lora": "lora=m", "allowed_engine_networks": "127.0.0.0/8", "tokenize_timeout_s": "1"}


@asynccontextmanager
async def app(folder: Path) -> AsyncIterator[Any]:
    """An app that is asked without a socket, with all that it needs, and two pods."""
    with Engine() as engine, Engine() as other:
        served = make_serve(settings_of(flags(folder), [engine.spec("pod", "m"), other.spec("other", "own")]))
        async with AsyncExitStack() as stack:
            for part in served.parts:
                await stack.enter_async_context(part)
            published(engine)
            published(other)
            yield served.app


async def answer(app: Any, ask: Ask) -> tuple[int, dict[bytes, bytes], bytes]:
    """Status, headers and body."""
    raw = ask.path
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": ask.method,
        "scheme": "http",
        "path": unquote(raw.decode("latin-1")),
        "raw_path": raw,
        "query_string": b"",
        "root_path": "",
        "headers": [*ask.headers, (b"content-length", str(len(ask.body)).encode())],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }
    asked = iter([{"type": "http.request", "body": ask.body, "more_body": False}])
    sent: list[Any] = []
    forever = asyncio.Event()

    async def receive() -> Any:
        message = next(asked, None)
        if message is None:
            await forever.wait()
        return message

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    headers = {name.lower(): value for name, value in sent[0]["headers"]}
    return sent[0]["status"], headers, b"".join(message.get("body", b"") for message in sent[1:])


def check(ask: Ask, status: int, kind: str, body: bytes) -> None:
    """An answer is what it says; a problem is one, and no 500, neither by itself nor in a batch."""
    assert status in STATUSES, body
    if ask.method == "HEAD" or status in (204, 405):
        return
    if status >= 400 and ask.path != b"/readyz":
        assert kind == MEDIA_TYPE
        problem = msgspec.json.decode(body)
        assert (problem["status"], bool(problem["detail"])) == (status, True)
    elif kind == JSON:
        found = msgspec.json.decode(body)
        if ask.path == b"/v1/score/batch":
            assert all(one.get("problem", {}).get("status") != 500 for one in found["answers"])
    elif kind == MSGPACK:
        found = msgspec.msgpack.decode(body)
        if ask.path == b"/v1/score/batch":
            assert all(one.get("problem", {}).get("status") != 500 for one in found["answers"])


@pytest.mark.parametrize("first", range(0, REQUESTS, PART))
async def test_nothing_that_is_asked_goes_wrong(first: int, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    errors = Errors()
    logging.getLogger().addHandler(errors)
    seen: Counter[tuple[bytes, int]] = Counter()
    try:
        async with app(tmp_path) as asked:
            for start in range(first, min(first + PART, REQUESTS), SLICE):
                fuzzer = Fuzzer(SEED + start)
                for number in range(min(SLICE, REQUESTS - start)):
                    ask = fuzzer.ask()
                    try:
                        status, headers, body = await answer(asked, ask)
                        check(ask, status, headers.get(b"content-type", b"").decode(), body)
                        assert not errors.records
                    except Exception as error:
                        error.add_note(f"request {number} of seed {SEED + start}: {ask}")
                        raise
                    seen[ask.path, status] += 1
                caplog.clear()
    finally:
        logging.getLogger().removeHandler(errors)
    answered = {path for path, status in seen if status == 200}
    assert {b"/v1/score", b"/v1/score/batch", b"/v1/route/done", b"/v1/pods"} <= answered
    assert {status for _, status in seen} >= {200, 400, 404, 405, 415, 422}


def test_nothing_goes_wrong_over_sockets_either(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Fewer, since each takes ten times as long; the server and its parser are part of it."""
    errors = Errors()
    logging.getLogger().addHandler(errors)
    fuzzer = Fuzzer(SEED - 1)
    try:
        with Engine() as engine, Running(engine.spec("pod", "m"), **flags(tmp_path)) as service:
            for number in range(OVER_SOCKETS):
                ask = fuzzer.ask()
                path = ask.path.decode("latin-1").encode("ascii", "ignore").decode().replace("\x00", "").replace(" ", "")
                headers = [(name, value) for name, value in ask.headers if value.isascii() and value.decode().isprintable()]
                try:
                    response = service.http.request(ask.method, f"{service.url}{path}", headers=headers, content=ask.body)
                    check(ask, response.status_code, response.headers.get("content-type", ""), response.content)
                    assert not errors.records
                except httpx.InvalidURL:
                    continue
                except Exception as error:
                    error.add_note(f"request {number} of seed {SEED - 1}: {ask}")
                    raise
    finally:
        logging.getLogger().removeHandler(errors)

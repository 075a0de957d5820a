"""An engine's own API for tests: a real HTTP server with `POST /tokenize`, which does what a test says."""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.engines.api import EngineApi
from scorer_api.api.adapters import Adapters
from scorer_api.api.resolve import RequestResolver
from scorer_api.index.view import View
from scorer_api.metrics import TokenMetrics
from scorer_api.tokens.engine_tokenizer import EngineTokenizer
from scorer_api.tokens.resolver import TokenResolver

Reply = Callable[[dict[str, Any]], "tuple[int, bytes] | Awaitable[tuple[int, bytes]]"]


def tokens_of(asked: dict[str, Any]) -> list[int]:
    """One token for each byte of a prompt; a chat is its messages' bytes, each message behind a 1,000."""
    if "prompt" in asked:
        return list(asked["prompt"].encode())
    return [token for message in asked["messages"] for token in (1000, *message["content"].encode())]


def tokenized(asked: dict[str, Any]) -> tuple[int, bytes]:
    """As vLLM answers."""
    tokens = tokens_of(asked)
    return 200, json.dumps({"count": len(tokens), "max_model_len": 4096, "tokens": tokens, "token_strs": None}).encode()


class TokenizingEngine:
    """`with TokenizingEngine() as engine:` it answers at `engine.http`. `asked` holds the requests, with their headers in small letters."""

    def __init__(self, reply: Reply = tokenized, path: str = "", host: str = "127.0.0.1", headers: str = "") -> None:
        self.reply = reply
        self.asked: list[dict[str, Any]] = []
        self.heads: list[dict[str, str]] = []
        self._path = path
        self._host = host
        self._headers = headers

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        started = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(started,), name="tokenizing engine")
        self._thread.start()
        assert started.wait(30), "the engine starts"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)

    @property
    def netloc(self) -> str:
        return f"{self._host}:{self.port}"

    @property
    def http(self) -> str:
        return f"http://{self.netloc}{self._path}"

    def _run(self, started: threading.Event) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve(started))
        self._loop.close()

    async def _serve(self, started: threading.Event) -> None:
        self._stop = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        server = await asyncio.start_server(self._begin, self._host, 0, limit=2**26)
        self.port: int = server.sockets[0].getsockname()[1]
        started.set()
        await self._stop.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None, "a connection has a task"
        self._tasks.add(task)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if first != f"POST {self._path}/tokenize HTTP/1.1":
            status, content = 404, b"{}"
        else:
            asked = json.loads(body)
            self.asked.append(asked)
            self.heads.append(headers)
            reply = self.reply(asked)
            status, content = reply if isinstance(reply, tuple) else await reply
        writer.write(
            f"HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n{self._headers}\r\n".encode() + content
        )
        await writer.drain()
        return True


class _Nobody:
    """There are no pods to ask, and no adapters."""

    def api(self, pod: str, model: str) -> EngineApi:
        raise AssertionError("no pod is asked for tokens that are given")

    def models_with(self, adapter: str) -> set[str]:
        return set()

    def adapters(self, model: str) -> set[str]:
        return set()


def request_resolver(view: View) -> RequestResolver:
    """A resolver of requests that need no engine."""
    settings, metrics = Settings(), TokenMetrics(CollectorRegistry())
    return RequestResolver(view, TokenResolver(settings, EngineTokenizer(settings, view, _Nobody(), metrics), {}, metrics), Adapters({}, _Nobody()))

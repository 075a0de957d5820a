"""Engines behind a gateway in tests: HTTP servers that say what reached them, and stream what they are asked for."""

import asyncio
import hashlib
import json
import socket
import threading
from types import TracebackType
from typing import Any, Self

import uvicorn

from tests.engine import BLOCK_SIZE, Engine, stored
from tests.engine_server import bytes_as_tokens
from tests.ports import free_port


class Pod:
    """`with Pod(name) as pod:` an engine with one token for each byte. A path that ends in /completions answers with what came.

    `status`: of its answers. `cached_tokens`: what its usage says. `paths`: those of requests that came.
    The body's `stream` asks for so many events, `gap_s` apart.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.status = 200
        self.cached_tokens = 0
        self.paths: set[str] = set()
        self.engine = Engine()
        self._hashes = 1

    def __enter__(self) -> Self:
        self.engine.start()
        self.port = free_port()
        self.netloc = f"127.0.0.1:{self.port}"
        self.open()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
        self.engine.kill()

    def close(self) -> None:
        """Refuse connections. Idempotent."""
        self._server.should_exit = True
        self._thread.join(10)

    def open(self) -> None:
        """Take connections, at the same port each time."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", self.port))
        config = uvicorn.Config(
            self._serve, interface="asgi3", log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=1
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._server.serve([listener])), name=self.name, daemon=True)
        self._thread.start()

    @property
    def spec(self) -> str:
        return self.engine.spec(self.name, http=f"http://{self.netloc}")

    def cache(self, text: str) -> int:
        """Announce that the prompt's whole blocks are in the cache. Returns the number of the batch."""
        tokens = list(text.encode())
        blocks = len(tokens) // BLOCK_SIZE
        hashes = [hash((self.name, self._hashes + number)) for number in range(blocks)]
        self._hashes += blocks
        return self.engine.publish(stored([value % 2**63 for value in hashes], tokens[: blocks * BLOCK_SIZE]))

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        digest, size, kept = hashlib.sha256(), 0, b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            piece = message.get("body", b"")
            digest.update(piece)
            size += len(piece)
            kept = (kept + piece)[:100_000]
            if not message.get("more_body"):
                break
        if scope["path"] == "/tokenize":
            await _answer(send, 200, {"tokens": bytes_as_tokens(json.loads(kept))})
            return
        self.paths.add(scope["path"])
        asked = json.loads(kept) if kept.startswith(b"{") and size == len(kept) else {}
        if "stream" in asked and self.status == 200:
            await self._stream(send, asked)
            return
        usage = {"prompt_tokens": size, "prompt_tokens_details": {"cached_tokens": self.cached_tokens}}
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        said = {"pod": self.name, "path": scope["path"], "digest": digest.hexdigest(), "size": size, "headers": headers, "usage": usage}
        await _answer(send, self.status, said)

    async def _stream(self, send: Any, asked: dict[str, Any]) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"x-pod", self.name.encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for number in range(asked["stream"]):
            await send({"type": "http.response.body", "body": f"data: {number}\n\n".encode(), "more_body": True})
            await asyncio.sleep(asked.get("gap_s", 0.0))
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _answer(send: Any, status: int, said: dict[str, Any]) -> None:
    content = json.dumps(said).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})

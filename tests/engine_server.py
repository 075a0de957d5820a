"""A stand-in for the HTTP API of an engine in tests, as vLLM and SGLang have it: a real server with a small prefix cache and programmable faults.

With `engine`, the blocks that a completion caches are published there. It shares no code with the product.
"""

import contextlib
import hashlib
import json
import socket
import sys
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.engine import BLOCK_SIZE, Engine, stored

VLLM_METRICS = (
    "# TYPE vllm:cache_config_info gauge\n"
    'vllm:cache_config_info{{block_size="{size}",cache_dtype="auto",enable_prefix_caching="{on}",engine="0"}} 1.0\n'
)

Request = dict[str, Any]
Reply = tuple[int, bytes]
Route = Callable[[Request], Reply]


class CutConnection(Exception):
    """A route raises it to close the connection without an answer."""


def json_reply(body: object, status: int = 200) -> Reply:
    return status, json.dumps(body).encode()


def bytes_as_tokens(request: Request) -> list[int]:
    """One token for each byte of a prompt; a chat is its messages' bytes, each message behind a 1,000."""
    if "prompt" in request:
        return list(request["prompt"].encode())
    return [token for message in request["messages"] for token in (1000, *message["content"].encode())]


def tokenize_bytes(request: Request) -> Reply:
    """A route for `/tokenize` of prompts and chats, with vLLM's response."""
    return tokens_reply(bytes_as_tokens(request))


def tokens_reply(tokens: list[int]) -> Reply:
    return json_reply({"count": len(tokens), "max_model_len": 4096, "tokens": tokens, "token_strs": None})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that closes its connection is no error."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class EngineServer:
    """`with EngineServer(engine) as api:` serves at `api.url` until the block ends, then closes every connection.

    `routes`: path → function of the decoded body (empty for GET) that returns status and body; it may sleep, answer anything of any size, or raise
    CutConnection. A route replaces the path's own answer, also while the server runs. Other faults are attributes: `health`, the status of /health;
    `block_size` and `prefix_caching` as /metrics states them; `models`, id → base model of an adapter or None; `metrics`, the whole text instead of
    vLLM's; `reports_cached_tokens` in the usage of completions, off by `cached_tokens_error`; `publishes`, whether cached blocks are announced;
    `completion_error`, the status of completions; `date_offset_s` of the clock; `vocabulary` of the tokenizer.

    `request_counts` holds path → number of requests; `tokenize_requests` and `tokenize_headers` (names in lower case) hold those of /tokenize.
    """

    def __init__(
        self,
        engine: Engine | None = None,
        *,
        routes: Mapping[str, Route] | None = None,
        model: str = "m",
        base_path: str = "",
        port: int = 0,
        headers: Mapping[str, str] | None = None,
        **faults: Any,
    ) -> None:
        self.engine = engine
        self.routes: dict[str, Route] = dict(routes or {})
        self.health = 200
        self.block_size = BLOCK_SIZE
        self.prefix_caching = True
        self.models: dict[str, str | None] = {model: None}
        self.metrics: str | None = None
        self.reports_cached_tokens = True
        self.cached_tokens_error = 0
        self.publishes = True
        self.completion_error: int | None = None
        self.date_offset_s = 0.0
        self.vocabulary = "v"
        for name, value in faults.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self.completions = 0
        self.request_counts: Counter[str] = Counter()
        self.tokenize_requests: list[Request] = []
        self.tokenize_headers: list[dict[str, str]] = []
        self._base_path = base_path
        self._port = port
        self._headers = dict(headers or {})
        self._cached: set[int] = set()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()

    def __enter__(self) -> Self:
        self._server = _Server(("127.0.0.1", self._port), self._handler())
        self.port = self._server.server_port
        self.netloc = f"127.0.0.1:{self.port}"
        self.url = f"http://{self.netloc}{self._base_path}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="engine api", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                api._connections.add(self.connection)

            def finish(self) -> None:
                api._connections.discard(self.connection)
                super().finish()

            def do_GET(self) -> None:
                self._answer({})

            def do_POST(self) -> None:
                self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def _answer(self, request: Request) -> None:
                try:
                    self._send(*api.reply(self.command, self.path, request, {name.lower(): value for name, value in self.headers.items()}))
                except (CutConnection, ConnectionError):
                    self.close_connection = True

            def _send(self, status: int, body: bytes) -> None:
                self.send_response_only(status)
                self.send_header("Date", formatdate(time.time() + api.date_offset_s, usegmt=True))
                self.send_header("Content-Length", str(len(body)))
                for name, value in api._headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Not on the test's stderr."""

        return Handler

    def reply(self, method: str, path: str, request: Request, headers: dict[str, str]) -> Reply:
        with self._lock:
            self.request_counts[path] += 1
        if not path.startswith(f"{self._base_path}/"):
            return json_reply({"detail": "Not Found"}, 404)
        path = path.removeprefix(self._base_path)
        if (method, path) == ("POST", "/tokenize"):
            self.tokenize_requests.append(request)
            self.tokenize_headers.append(headers)
        if path in self.routes:
            return self.routes[path](request)
        match method, path:
            case "GET", "/health":
                return self.health, b""
            case "GET", "/version":
                return json_reply({"version": "0.33.0"})
            case "GET", "/metrics":
                text = VLLM_METRICS.format(size=self.block_size, on=self.prefix_caching) if self.metrics is None else self.metrics
                return 200, text.encode()
            case "GET", "/v1/models":
                data = [{"id": name, "object": "model", "parent": parent} for name, parent in self.models.items()]
                return json_reply({"object": "list", "data": data})
            case "POST", "/tokenize":
                return self.tokenize(request)
            case "POST", "/v1/completions":
                if self.completion_error is not None:
                    return json_reply({"error": "no"}, self.completion_error)
                return json_reply(self._complete(request))
        return json_reply({"detail": "Not Found"}, 404)

    def tokenize(self, request: Request) -> Reply:
        """The tokens of a prompt, or of the messages of a chat one after the other."""
        text = request["prompt"] if "prompt" in request else " ".join(message["content"] for message in request["messages"])
        return tokens_reply(self.tokens(text))

    def tokens(self, text: str) -> list[int]:
        """A token for each word."""
        return [zlib.crc32(f"{self.vocabulary}{word}".encode()) % 50_000 for word in text.split()]

    def _complete(self, request: dict[str, Any]) -> dict[str, Any]:
        tokens = request["prompt"]
        assert isinstance(tokens, list)
        with self._lock:
            self.completions += 1
            hashes = _hashes(tokens)
            held = 0
            while held < len(hashes) and hashes[held] in self._cached:
                held += 1
            new = hashes[held:]
            self._cached.update(new)
            if new and self.engine is not None and self.publishes:
                self.engine.publish(stored(new, tokens[held * BLOCK_SIZE : len(hashes) * BLOCK_SIZE], hashes[held - 1] if held else None))
        usable = min(held, (len(tokens) - 1) // BLOCK_SIZE)
        details = {"cached_tokens": usable * BLOCK_SIZE + self.cached_tokens_error} if self.reports_cached_tokens else None
        usage = {"prompt_tokens": len(tokens), "completion_tokens": request["max_tokens"], "prompt_tokens_details": details}
        return {"object": "text_completion", "choices": [{"index": 0, "text": "x"}], "usage": usage}


def _hashes(tokens: list[int]) -> list[int]:
    """A hash for each whole block, chained."""
    hashes, digest = [], b""
    for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        digest = hashlib.sha256(digest + json.dumps(tokens[start : start + BLOCK_SIZE]).encode()).digest()
        hashes.append(int.from_bytes(digest[:8], "big"))
    return hashes

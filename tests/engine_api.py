"""An engine's own HTTP API for tests, as vLLM and SGLang have it: a real server with a small prefix cache, and every fault that one can have.

With `engine` what it caches is published there. It shares no code with the product.
"""

import hashlib
import json
import threading
import time
import zlib
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from tests.engine import BLOCK_SIZE, Engine, stored

VLLM_METRICS = (
    "# TYPE vllm:cache_config_info gauge\n"
    'vllm:cache_config_info{{block_size="{size}",cache_dtype="auto",enable_prefix_caching="{on}",engine="0"}} 1.0\n'
)


class EngineApi:
    """`with EngineApi(engine) as api:` serves at `api.url` until the end.

    Faults and differences: `health`, its status; `block_size`, `prefix_caching` as its metrics say; `models`, id → base model of an adapter or None;
    `metrics`, instead of vLLM's; `tokenizes`; `counts`, whether usage tells of cached tokens, and `miscounts` by how many it is wrong;
    `publishes`, whether what is cached is announced; `refuses`, the status of completions; `date_offset_s`, of its clock; `answers`, path → body
    of other questions; `vocabulary`, of its tokenizer.
    """

    def __init__(self, engine: Engine | None = None, *, model: str = "m", **faults: Any) -> None:
        self.engine = engine
        self.health = 200
        self.block_size = BLOCK_SIZE
        self.prefix_caching = True
        self.models: dict[str, str | None] = {model: None}
        self.metrics: str | None = None
        self.tokenizes = True
        self.counts = True
        self.miscounts = 0
        self.publishes = True
        self.refuses: int | None = None
        self.date_offset_s = 0.0
        self.answers: dict[str, Any] = {"/version": {"version": "0.33.0"}}
        self.vocabulary = "v"
        self.completions = 0
        for name, value in faults.items():
            assert hasattr(self, name), name
            setattr(self, name, value)
        self._cached: set[int] = set()
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                self._send(*api.get(self.path))

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                self._send(*api.post(self.path, asked))

            def _send(self, status: int, body: bytes) -> None:
                self.send_response_only(status)
                self.send_header("Date", formatdate(time.time() + api.date_offset_s, usegmt=True))
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, name="engine api", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()

    def get(self, path: str) -> tuple[int, bytes]:
        match path:
            case "/health":
                return self.health, b""
            case "/metrics":
                text = VLLM_METRICS.format(size=self.block_size, on=self.prefix_caching) if self.metrics is None else self.metrics
                return 200, text.encode()
            case "/v1/models":
                data = [{"id": name, "object": "model", "parent": parent} for name, parent in self.models.items()]
                return 200, json.dumps({"object": "list", "data": data}).encode()
        return (200, json.dumps(self.answers[path]).encode()) if path in self.answers else (404, b'{"detail":"Not Found"}')

    def post(self, path: str, asked: dict[str, Any]) -> tuple[int, bytes]:
        if path == "/tokenize" and self.tokenizes:
            tokens = self.tokens(asked["prompt"])
            return 200, json.dumps({"count": len(tokens), "max_model_len": 4096, "tokens": tokens}).encode()
        if path == "/v1/completions":
            if self.refuses is not None:
                return self.refuses, b'{"error": "no"}'
            return 200, json.dumps(self._complete(asked)).encode()
        return 404, b'{"detail":"Not Found"}'

    def tokens(self, text: str) -> list[int]:
        """A token for each word."""
        return [zlib.crc32(f"{self.vocabulary}{word}".encode()) % 50_000 for word in text.split()]

    def _complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        tokens = asked["prompt"]
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
        details = {"cached_tokens": usable * BLOCK_SIZE + self.miscounts} if self.counts else None
        usage = {"prompt_tokens": len(tokens), "completion_tokens": asked["max_tokens"], "prompt_tokens_details": details}
        return {"object": "text_completion", "choices": [{"index": 0, "text": "x"}], "usage": usage}


def _hashes(tokens: list[int]) -> list[int]:
    """A hash for each whole block, chained."""
    found, digest = [], b""
    for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        digest = hashlib.sha256(digest + json.dumps(tokens[start : start + BLOCK_SIZE]).encode()).digest()
        found.append(int.from_bytes(digest[:8], "big"))
    return found

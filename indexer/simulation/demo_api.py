"""The demo engine's own API: `POST /tokenize` with a tokenizer that is easy to follow by hand, `GET /health`, `GET /metrics` with vLLM's names.

The token of a number is the number itself, since the demo's prompts are numbers; the token of any other word comes from a digest of it. A chat is the
words of its messages.
"""

import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec

BODY_BYTES_MAX = 16 * 2**20
NUMBER_MAX = 10**6
# The tokens of words start above those of numbers.
WORDS_FROM = 2 * 10**6
WORDS = 10**6
SOCKET_S = 30.0


class _TokenizeRequest(msgspec.Struct):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


_decode = msgspec.json.Decoder(_TokenizeRequest).decode


def tokenize(text: str) -> list[int]:
    """One token for each word."""
    return [int(word) if word.isascii() and word.isdigit() and int(word) < NUMBER_MAX else _token(word) for word in text.split()]


def _token(word: str) -> int:
    return WORDS_FROM + int.from_bytes(blake2b(word.encode(errors="replace"), digest_size=8).digest(), "big") % WORDS


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SOCKET_S

    def do_GET(self) -> None:
        assert isinstance(self.server, _Server), "it is made with this handler"
        if self.path == "/metrics":
            self._respond(200, self.server.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
        else:
            self._respond(200 if self.path == "/health" else 404, b"{}")

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            self.close_connection = True
            self._respond(413, b'{"message": "the body should have a length, of at most 16 MiB"}')
            return
        body = self.rfile.read(int(length))
        if self.path != "/tokenize":
            self._respond(404, b"{}")
            return
        try:
            request = _decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._respond(400, msgspec.json.encode({"message": str(error)}))
            return
        text = request.prompt or " ".join(str(message.get("content", "")) for message in request.messages or ())
        tokens = tokenize(text)
        self._respond(200, msgspec.json.encode({"tokens": tokens, "count": len(tokens), "max_model_len": NUMBER_MAX}))

    def _respond(self, status: int, content: bytes, media_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Log no line for each request."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], metrics: Callable[[], str]) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.metrics = metrics

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up needs no traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(host: str, port: int, metrics: Callable[[], str]) -> Iterator[int]:
    """Serve the API at this address; port 0 takes a free one. Yields the port. `metrics`: makes the text of `/metrics`.

    Raises OSError if it cannot listen.
    """
    server = _Server((host, port), metrics)
    thread = threading.Thread(target=server.serve_forever, name="demo api", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

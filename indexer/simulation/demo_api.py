"""The demo engine's own API: `POST /tokenize`, `POST /v1/completions` and `/v1/chat/completions`, `GET /v1/models`, `GET /health`, and `GET /metrics`
with vLLM's names.
"""

import socket
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

import msgspec

from indexer.simulation.demo_completions import KINDS, Completion, CompletionRequest, Kind, complete_body, error_body, events, models_body
from indexer.simulation.demo_tokenizer import NUMBER_MAX, text_of, tokenize

BODY_BYTES_MAX = 16 * 2**20
SOCKET_S = 30.0
# Between the words of a streamed answer.
WORD_S = 0.01


class DemoModel(Protocol):
    """What the API is of. Its methods are called from several threads."""

    model: str

    def metrics(self) -> str:
        """The text of `/metrics`."""

    def complete(self, request: CompletionRequest, kind: Kind) -> Completion:
        """Computes a request. Raises msgspec.ValidationError for a prompt that is none."""


class _TokenizeRequest(msgspec.Struct):
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None


_decode_tokenize = msgspec.json.Decoder(_TokenizeRequest).decode
_decode_completion = msgspec.json.Decoder(CompletionRequest).decode


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SOCKET_S
    disable_nagle_algorithm = True
    server: "_Server"

    def do_GET(self) -> None:
        match self.path:
            case "/metrics":
                self._respond(200, self.server.served.metrics().encode(), "text/plain; version=0.0.4; charset=utf-8")
            case "/v1/models":
                self._respond(200, models_body(self.server.served.model))
            case _:
                self._respond(200 if self.path == "/health" else 404, b"{}")

    def do_POST(self) -> None:
        body = self._read_body()
        if body is None:
            self.close_connection = True
            self._respond(413, b'{"message": "the body should have a length, of at most 16 MiB"}')
            return
        kind = KINDS.get(self.path)
        if kind is None and self.path != "/tokenize":
            self._respond(404, b"{}")
            return
        try:
            if kind is None:
                self._respond(200, _tokenized(body))
            else:
                self._complete(_decode_completion(body), kind)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._respond(400, msgspec.json.encode({"message": str(error)}) if kind is None else error_body(400, str(error)))

    def _read_body(self) -> bytes | None:
        """None for one that is too long, or whose length is not known. Gateways send bodies in chunks."""
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return self._read_chunks()
        length = self.headers.get("Content-Length", "")
        return self.rfile.read(int(length)) if length.isdigit() and int(length) <= BODY_BYTES_MAX else None

    def _read_chunks(self) -> bytes | None:
        body = bytearray()
        while True:
            try:
                size = int(self.rfile.readline(64).partition(b";")[0], 16)
            except ValueError:
                return None
            if not 0 <= size <= BODY_BYTES_MAX - len(body):
                return None
            body += self.rfile.read(size)
            self.rfile.readline(64)
            if not size:
                return bytes(body)

    def _complete(self, request: CompletionRequest, kind: Kind) -> None:
        if request.model != self.server.served.model:
            self._respond(404, error_body(404, f"The model `{request.model}` does not exist."))
            return
        completion = self.server.served.complete(request, kind)
        if request.stream:
            self._respond_in_pieces(events(completion, with_usage=request.stream_options is not None and request.stream_options.include_usage))
        else:
            self._respond(200, complete_body(completion))

    def _respond(self, status: int, content: bytes, media_type: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _respond_in_pieces(self, pieces: Iterable[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            time.sleep(WORD_S)
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, format: str, *args: Any) -> None:
        """Log no line for each request."""


def _tokenized(body: bytes) -> bytes:
    request = _decode_tokenize(body)
    tokens = tokenize(request.prompt or text_of(request.messages or ()))
    return msgspec.json.encode({"tokens": tokens, "count": len(tokens), "max_model_len": NUMBER_MAX})


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], served: DemoModel) -> None:
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self.served = served

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up needs no traceback."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


@contextmanager
def serving(host: str, port: int, served: DemoModel) -> Iterator[int]:
    """Serve the API at this address; port 0 takes a free one. Yields the port. Raises OSError if it cannot listen."""
    server = _Server((host, port), served)
    thread = threading.Thread(target=server.serve_forever, name="demo api", daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""Whom a scorer asks that answers for cells, and what it passes on."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

from tests.running import Command

TOKENS = {"authorization": "Bearer a-token-of-clients", "x-kv-indexer-token": "another-token"}


class Server:
    """An HTTP server that remembers what it was asked. `location`: where it sends everything but questions whether it is ready."""

    def __init__(self, location: str | None = None) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer()

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self._answer()

            def _answer(self) -> None:
                server.asked.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                self.send_response(200 if location is None or self.path == "/readyz" else 307)
                if location is not None:
                    self.send_header("Location", location)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *words: Any) -> None:
                """Nothing is logged."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.shutdown()
        self._http.server_close()


@pytest.mark.rule("C17")
def test_cells_are_asked_with_the_tokens_of_the_request_and_nobody_else_is() -> None:
    """Neither where a cell sends us, nor a proxy that the environment names."""
    with Server() as other, Server(f"{other.url}/secret") as cell:
        proxies = {"http_proxy": other.url, "HTTP_PROXY": other.url, "ALL_PROXY": other.url}
        with Command("api", "--port", "0", "--cells", cell.url, env=proxies) as front:
            front.wait_url()
            for path in ("/v1/score", "/v1/route"):
                response = front.http.post(f"{front.url}{path}", json={"model": "m", "token_ids": [1]}, headers=TOKENS)
                assert response.status_code == httpx.codes.SERVICE_UNAVAILABLE
        asked = [(path, headers) for path, headers in cell.asked if path != "/readyz"]
        assert [path for path, _ in asked] == ["/v1/score", "/v1/candidates"]
        assert all(headers.items() >= TOKENS.items() for _, headers in asked)
        assert not any(TOKENS.keys() & headers.keys() for path, headers in cell.asked if path == "/readyz")
        assert other.asked == []

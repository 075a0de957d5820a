"""The page below a path prefix of a proxy."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from tests.browser.chromium import Browser
from tests.engine import Engine, stored
from tests.processes import serve

pytestmark = pytest.mark.browser

PREFIX = "/cache/indexer"
PASSED_ON = ("content-type", "content-security-policy")


class Proxy(ThreadingHTTPServer):
    """Takes the prefix away and asks the service."""

    daemon_threads = True

    def __init__(self, target: str) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = target
        self.url = f"http://127.0.0.1:{self.server_address[1]}{PREFIX}"


class Handler(BaseHTTPRequestHandler):
    server: Proxy

    def do_GET(self) -> None:
        if not self.path.startswith(PREFIX):
            self.send_error(404)
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {"Content-Type": self.headers["Content-Type"]} if body else {}
        answer = httpx.request(self.command, self.server.target + self.path.removeprefix(PREFIX), content=body, headers=headers, timeout=30)
        self.send_response(answer.status_code)
        for name in PASSED_ON:
            if name in answer.headers:
                self.send_header(name, answer.headers[name])
        self.send_header("Content-Length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_POST = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def url() -> Iterator[str]:
    with Engine() as engine, serve(None, engine.spec("a")) as service:
        engine.publish(stored([1, 2], range(8)))
        service.wait_url().wait_for(pod="a", sequence=0)
        with Proxy(service.url) as proxy:
            thread = threading.Thread(target=proxy.serve_forever, name="proxy", daemon=True)
            thread.start()
            yield proxy.url
            proxy.shutdown()
            thread.join()


def test_everything_is_asked_for_below_the_prefix(browser: Browser, url: str) -> None:
    browser.open(f"{url}/ui")
    browser.wait_for("#summary", "1 pod")
    browser.click("[value=token_ids]")
    browser.paste("#given", "0 1 2 3 4 5 6 7 8")
    browser.click("#ask .main")
    browser.wait_for("#said", "a is the best: 2 of 2 blocks")
    assert [said for said in browser.said() if said.source == "network"] == []

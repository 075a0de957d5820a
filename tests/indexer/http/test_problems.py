"""What goes wrong, as clients see it: always a problem document, never the service's insides."""

import json
import socket
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import msgspec
import pytest

from tests.engine import Engine, stored
from tests.running import Client, Running
from tests.waiting import wait_until

BODY_BYTES_MAX = 20_000
ASKED = b'{"model": "m", "token_ids": [1, 2, 3, 4, 5]}'
EVENTS = "tcp://127.0.0.1:9"
TITLES = {400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed", 415: "Unsupported Media Type", 422: "Unprocessable Entity"}


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    with Engine() as engine, Running(engine.spec(), body_bytes_max=str(BODY_BYTES_MAX)) as service:
        engine.publish(stored([1], [1, 2, 3, 4]))
        service.wait_for(sequence=0, trust="live")
        yield service


class Wire:
    """One raw connection to the service."""

    def __init__(self, service: Client) -> None:
        url = httpx.URL(service.url)
        self.socket = socket.create_connection((url.host, url.port or 80), timeout=20)

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def head(self, *headers: str, method: str = "POST", path: str = "/v1/score") -> None:
        self.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: x", "Content-Type: application/json", *headers, "", ""]).encode())

    def read_until(self, mark: bytes) -> bytes:
        got = b""
        while mark not in got:
            piece = self.socket.recv(4096)
            assert piece, f"the connection ended after {got!r}"
            got += piece
        return got

    def answer(self) -> tuple[int, dict[str, str], dict[str, Any]]:
        """Status, headers and JSON body of the next answer."""
        got = self.read_until(b"\r\n\r\n")
        head, _, body = got.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        while len(body) < int(headers["content-length"]):
            body += self.socket.recv(4096)
        return int(first.split()[1]), headers, json.loads(body)

    def is_closed_by_service(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def wire(service: Client) -> Iterator[Wire]:
    with closing(Wire(service)) as opened:
        yield opened


def problem(response: httpx.Response) -> str:
    """Check the form of a problem. Returns its detail."""
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert set(body) == {"type", "title", "status", "detail"}
    assert body["status"] == response.status_code
    assert body["title"] == TITLES[response.status_code]
    assert body["type"] == "about:blank"
    assert "Traceback" not in response.text
    assert ".py" not in response.text
    assert body["detail"]
    return str(body["detail"])


def post(service: Client, body: bytes) -> httpx.Response:
    return service.http.post(f"{service.url}/v1/score", content=body, headers={"Content-Type": "application/json"})


# Score


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b"nonsense", b'{"model": "m", "token_ids": [1,]}'])
def test_a_malformed_body_is_400(service: Client, body: bytes) -> None:
    response = post(service, body)
    assert response.status_code == 400
    assert "application/json" in problem(response)


def test_a_body_nested_too_deeply_is_a_problem(service: Client) -> None:
    response = post(service, b'{"model": "m", "token_ids": [], "block_extra_keys": [[0, ' + b"[" * (BODY_BYTES_MAX - 100))
    assert response.status_code == 400
    problem(response)


def test_an_unknown_model_is_404_and_says_how_one_becomes_known(service: Client) -> None:
    response = service.http.post(f"{service.url}/v1/score", json={"model": "ghost/ü", "token_ids": [1]})
    assert response.status_code == 404
    assert "ghost/ü" in problem(response)
    assert "/v1/models" in problem(response)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"token_ids": [-1]}, "token_ids[0]"),
        ({"token_ids": [1, 2**32]}, "token_ids[1]"),
        ({"token_ids": ["1"]}, "token_ids[0]"),
        ({"limit": 0}, "limit"),
        ({"limit": 1.5}, "limit"),
        ({"pods": "pod"}, "pods"),
        ({"pod": ["a"]}, "pods"),
        ({"block_extra_keys": [[0, 1]]}, "block_extra_keys[0]"),
    ],
)
def test_a_wrong_value_is_422_and_names_its_field(service: Client, fields: dict[str, Any], field: str) -> None:
    response = service.http.post(f"{service.url}/v1/score", json={"model": "m", "token_ids": [], **fields})
    assert response.status_code == 422
    assert field in problem(response)


def test_packed_tokens_of_an_odd_length_are_422(service: Client) -> None:
    body = msgspec.msgpack.encode({"model": "m", "token_ids": b"12345"})
    response = service.http.post(f"{service.url}/v1/score", content=body, headers={"Content-Type": "application/msgpack"})
    assert response.status_code == 422
    assert "token_ids" in problem(response)


# Routes


@pytest.mark.parametrize("path", ["/v1", "/v1/scores", "/v2/score", "/v1/score/", "/%00", "/%ff", "/v1/models/m", "/redoc"])
def test_what_is_not_there_is_404(anywhere: Client, path: str) -> None:
    response = anywhere.http.get(f"{anywhere.url}{path}", follow_redirects=True)
    assert response.status_code in (404, 405)
    problem(response)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/pods", {"GET"}),
        ("PUT", "/healthz", {"GET", "HEAD"}),
        ("POST", "/readyz", {"GET", "HEAD"}),
        ("POST", "/v1/pods/pod", {"PUT", "DELETE"}),
    ],
)
def test_a_wrong_method_is_405_and_says_which_ones_are_allowed(anywhere: Client, method: str, path: str, allowed: set[str]) -> None:
    check_method_is_refused(anywhere, method, path, allowed)


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "/v1/score", {"POST"}), ("DELETE", "/v1/score", {"POST"}), ("POST", "/v1/models", {"GET"})]
)
def test_so_it_is_for_the_routes_of_one_role(service: Client, method: str, path: str, allowed: set[str]) -> None:
    check_method_is_refused(service, method, path, allowed)


def check_method_is_refused(service: Client, method: str, path: str, allowed: set[str]) -> None:
    response = service.http.request(method, f"{service.url}{path}")
    assert response.status_code == 405
    assert method in problem(response)
    assert {word.strip() for word in response.headers["allow"].split(",")} == allowed


# Pods


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"events": EVENTS}, ["model", "required"]),
        ({"model": "m"}, ["events", "required"]),
        ({"model": "", "events": EVENTS}, ["model", "required"]),
        ({"model": 1, "events": EVENTS}, ["model", "str"]),
        ({"model": "m", "events": "http://127.0.0.1:9"}, ["events", "tcp://host:port"]),
        ({"model": "m", "events": "tcp://127.0.0.1:0"}, ["events", "65535"]),
        ({"model": "m", "events": "tcp://bad!host:9"}, ["events", "bad!host"]),
        ({"model": "m", "events": EVENTS, "replay": EVENTS}, ["replay", "events"]),
        ({"model": "m", "events": EVENTS, "replay": 9}, ["replay", "str"]),
        ({"model": "m", "events": EVENTS, "ranks": 0}, ["ranks", ">= 1"]),
        ({"model": "m", "events": EVENTS, "ranks": "2"}, ["ranks", "int"]),
        ({"model": "m", "events": EVENTS, "ranks": 2, "rank": 1}, ["ranks", "rank", "not both"]),
        ({"model": "m", "events": EVENTS, "pod": "other"}, ["pod", "other", "'x'"]),
        ({"model": "m", "events": EVENTS, "event": EVENTS}, ["'event'", "unknown key", "replay"]),
        ({"model": "m", "events": EVENTS, "counting": "sets"}, ["counting", "copies"]),
        ([], ["object"]),
    ],
)
def test_a_wrong_spec_is_422_and_says_what_would_be_right(anywhere: Client, body: Any, words: list[str]) -> None:
    response = anywhere.http.put(f"{anywhere.url}/v1/pods/x", json=body)
    assert response.status_code == 422
    detail = problem(response)
    assert [word for word in words if word not in detail] == []
    assert [pod["pod"] for pod in anywhere.http.get(f"{anywhere.url}/v1/pods").json()["pods"]] == ["pod"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"model": NaN}'])
def test_a_malformed_spec_is_400(anywhere: Client, body: bytes) -> None:
    response = anywhere.http.put(f"{anywhere.url}/v1/pods/x", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    problem(response)


def test_a_refused_change_leaves_the_pod_as_it_was(anywhere: Client) -> None:
    before = anywhere.stream()
    assert anywhere.http.put(f"{anywhere.url}/v1/pods/pod", json={"model": "m", "events": "nonsense"}).status_code == 422
    after = anywhere.stream()
    assert (after["sequence"], after["connected"], after["blocks"]) == (before["sequence"], True, {"gpu": 1})


def test_a_pod_that_is_not_registered_cannot_be_deleted(anywhere: Client) -> None:
    response = anywhere.http.delete(f"{anywhere.url}/v1/pods/gh%2Fost")
    assert response.status_code == 404
    assert "gh/ost" in problem(response)


# Bodies that are too large, or never come


def test_a_body_of_just_the_limit_is_taken(service: Client) -> None:
    assert post(service, ASKED + b" " * (BODY_BYTES_MAX - len(ASKED))).status_code == 200


def test_a_body_over_the_limit_is_413(service: Client) -> None:
    before = service.metric("kv_indexer_score_requests_total", outcome="too_large")
    with closing(Wire(service)) as wire:
        wire.head(f"Content-Length: {BODY_BYTES_MAX + 1}")
        wire.send(ASKED + b" " * (BODY_BYTES_MAX + 1 - len(ASKED)))
        status, headers, body = wire.answer()
    assert (status, headers["content-type"], body["status"]) == (413, "application/problem+json", 413)
    assert str(BODY_BYTES_MAX) in body["detail"]
    assert service.metric("kv_indexer_score_requests_total", outcome="too_large") == before + 1


def test_a_huge_announced_body_is_refused_before_any_of_it_came(wire: Wire) -> None:
    wire.head("Content-Length: 10000000000000")
    status, headers, body = wire.answer()
    assert (status, body["status"]) == (413, 413)
    assert "10000000000000" in body["detail"]
    assert headers["connection"] == "close"
    assert wire.is_closed_by_service()


def test_a_huge_announced_pod_is_refused_by_every_role(anywhere: Client) -> None:
    with closing(Wire(anywhere)) as wire:
        wire.head("Content-Length: 10000000000000", method="PUT", path="/v1/pods/x")
        status, headers, body = wire.answer()
        assert (status, headers["content-type"], body["status"]) == (413, "application/problem+json", 413)
        assert wire.is_closed_by_service()


def test_a_length_beyond_all_numbers_is_refused_too(wire: Wire) -> None:
    wire.head("Content-Length: " + "9" * 5000)
    got = wire.read_until(b"\r\n\r\n")
    assert got.split()[1] in (b"400", b"413")
    assert b"Traceback" not in got


def test_a_chunked_body_is_refused_as_soon_as_it_is_over_the_limit(wire: Wire) -> None:
    wire.head("Transfer-Encoding: chunked")
    chunk = b"1000\r\n" + b" " * 0x1000 + b"\r\n"
    for _ in range(5):  # 20,480 bytes, and no end of it
        wire.send(chunk)
    status, headers, body = wire.answer()
    assert (status, headers["connection"]) == (413, "close")
    assert str(BODY_BYTES_MAX) in body["detail"]


def test_a_chunked_body_within_the_limit_is_taken(wire: Wire) -> None:
    wire.head("Transfer-Encoding: chunked")
    for piece in (ASKED[:10], ASKED[10:]):
        wire.send(b"%x\r\n%b\r\n" % (len(piece), piece))
    wire.send(b"0\r\n\r\n")
    status, _, body = wire.answer()
    assert (status, body["best"]) == (200, "pod")


def test_after_a_refused_small_request_the_connection_goes_on(wire: Wire) -> None:
    for content, status in [(b"{", 400), (ASKED, 200), (b"[]", 422), (ASKED, 200)]:
        wire.head(f"Content-Length: {len(content)}")
        wire.send(content)
        assert wire.answer()[0] == status


def test_clients_that_go_away_in_the_middle_of_a_body_harm_nobody(service: Client) -> None:
    failed = service.metric("kv_indexer_score_requests_total", outcome="failed")
    half_sent = [Wire(service) for _ in range(50)]
    for wire in half_sent:
        # The service says "continue" when it begins to read the body: from there on it waits for the rest.
        wire.head(f"Content-Length: {len(ASKED)}", "Expect: 100-continue")
        wire.read_until(b"100 Continue")
        wire.send(ASKED[:10])
    assert service.matched([1, 2, 3, 4, 5]) == 4
    for wire in half_sent:
        wire.close()
    with closing(Wire(service)) as wire:
        wire.head(f"Content-Length: {len(ASKED)}")
        wire.send(ASKED)
        assert wire.answer()[0] == 200
    wait_until(lambda: service.http.get(f"{service.url}/healthz").status_code == 200)
    assert service.metric("kv_indexer_score_requests_total", outcome="failed") == failed, "a client's going away is no failure of the service"


def test_a_body_that_comes_byte_by_byte_is_answered(wire: Wire) -> None:
    wire.head(f"Content-Length: {len(ASKED)}")
    for byte in ASKED:
        wire.send(bytes([byte]))
    assert wire.answer()[0] == 200


def test_nonsense_on_the_wire_gets_400_and_no_insides(wire: Wire) -> None:
    wire.send(b"\x16\x03\x01 this is not HTTP\r\n\r\n")
    got = wire.read_until(b"\r\n\r\n")
    assert got.startswith(b"HTTP/1.1 400")
    assert b"Traceback" not in got

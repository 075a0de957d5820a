"""A connection of HTTP/2 as hostile, slow and silent peers use it. Frames are written by hand (RFC 9113)."""

import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import hpack
import pytest

from scorer_api.gateway import connection, server
from tests import ext_proc
from tests.ext_proc import BUFFERED, FULL_DUPLEX, REQUEST_BODY, REQUEST_HEADERS
from tests.gateway import CHECK, Gateway
from tests.ports import free_port
from tests.running import Client, Running
from tests.waiting import wait_until

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS = 1, 4
SPEC = "pod=127.0.0.1:8001,model=m,events=tcp://127.0.0.1:1"
QUICK = {"load_interval_s": "0", "ready_after_s": "0.001", "gateway_notice_s": "0.001"}
PICKED = b'{"model": "m"}'


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """A header without indexing (RFC 7541, 6.2.2)."""
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


def call_headers(path: bytes = b"/envoy.service.ext_proc.v3.ExternalProcessor/Process") -> bytes:
    # 0x83: POST, 0x86: http, of the static table.
    return b"\x83\x86" + literal(b":path", path) + literal(b"content-type", b"application/grpc") + literal(b"te", b"trailers")


class Peer:
    """A connection whose frames are written by hand."""

    def __init__(self, port: int) -> None:
        self.socket = socket.socket()
        self.socket.settimeout(10)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        self.socket.connect(("127.0.0.1", port))
        self._received = b""
        self.send(PREFACE + frame(SETTINGS, 0, 0))

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def frames(self) -> Iterator[tuple[int, int, int, bytes]]:
        """Kind, flags, stream and payload of each, until the connection ends."""
        while True:
            while len(self._received) < 9 or len(self._received) < (size := 9 + int.from_bytes(self._received[:3], "big")):
                try:
                    data = self.socket.recv(65_536)
                except ConnectionResetError:
                    return
                if not data:
                    return
                self._received += data
            whole, self._received = self._received[:size], self._received[size:]
            yield whole[3], whole[4], int.from_bytes(whole[5:9], "big"), whole[9:]

    def find(self, kind: int) -> tuple[int, int, bytes]:
        """The next frame of this kind."""
        return next((flags, stream, payload) for found, flags, stream, payload in self.frames() if found == kind)

    def is_ended(self) -> bool:
        """The service closes the connection, after whatever frames."""
        for _ in self.frames():
            pass
        return True


@contextmanager
def running(**flags: str) -> Iterator[tuple[Client, int]]:
    port = free_port()
    with Running(SPEC, gateway_listen=f"127.0.0.1:{port}", **{**QUICK, **flags}) as service:
        yield service, port


@pytest.fixture(scope="module")
def service() -> Iterator[tuple[Client, int]]:
    with running() as found:
        yield found


@contextmanager
def peer_of(port: int) -> Iterator[Peer]:
    peer = Peer(port)
    try:
        yield peer
    finally:
        peer.socket.close()


@pytest.fixture
def peer(service: tuple[Client, int]) -> Iterator[Peer]:
    with peer_of(service[1]) as peer:
        yield peer


def picks(port: int) -> bool:
    with Gateway(port) as gateway:
        return gateway.pick(PICKED).set[ext_proc.DESTINATION] == "127.0.0.1:8001"


@pytest.mark.rule("G1")
@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10,
        PREFACE + b"\xff" * 100,
        PREFACE + frame(SETTINGS, 0, 0) + frame(PING, 0, 0, b"12345678") * 700 + b"\0\x40\x01\1\0\0\0\0\1",
        PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, b"\xff" * 50),
        PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, 0, 1, call_headers()) + frame(CONTINUATION, 0, 1, b"") * 1_000,
        # An entry of 4 kB, named sixteen thousand times.
        PREFACE + frame(SETTINGS, 0, 0) + frame(HEADERS, END_HEADERS, 1, b"\x40\x01a\x7f\x81\x1e" + b"x" * 4_000 + b"\xbe" * 12_000),
        PREFACE + frame(SETTINGS, 0, 0, b"\0\4\0\1\0\0") * 64,
        PREFACE + frame(SETTINGS, 0, 0) + frame(WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"),
    ],
    ids=["HTTP/1", "noise", "long frame", "no headers", "continuations", "bomb", "settings", "window"],
)
def test_what_is_no_http2_ends_its_connection_only(service: tuple[Client, int], data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", service[1]), timeout=10) as other:
        other.sendall(data)
        with suppress(ConnectionResetError):
            while other.recv(65_536):
                pass
    assert picks(service[1])


@pytest.mark.rule("G1")
def test_calls_that_are_reset_as_soon_as_they_begin_leave_nothing(service: tuple[Client, int], peer: Peer) -> None:
    metric = service[0].metric
    ended = metric("kv_indexer_gateway_calls_total", outcome="aborted")
    for start in range(0, 2_000, 100):
        numbers = [2 * number + 1 for number in range(start, start + 100)]
        peer.send(b"".join(frame(HEADERS, END_HEADERS, each, call_headers()) + frame(RST_STREAM, 0, each, b"\0\0\0\x08") for each in numbers))
    peer.send(frame(PING, 0, 0, b"12345678"))
    assert peer.find(PING)[2] == b"12345678"
    # A call that is reset before its handler had a turn never counts.
    assert metric("kv_indexer_gateway_open") == 0
    assert metric("kv_indexer_gateway_calls_total", outcome="aborted") <= ended + 2_000
    assert picks(service[1])


@pytest.mark.rule("G1")
def test_a_peer_that_takes_no_answers_is_not_read(service: tuple[Client, int], peer: Peer) -> None:
    """Each ping has an answer, which nobody takes: after what lies in buffers of the system the peer cannot send."""
    peer.socket.settimeout(0.5)
    pings = frame(PING, 0, 0, b"12345678") * 3_000_000
    with pytest.raises(TimeoutError):
        peer.send(pings)
    assert picks(service[1])


def test_a_peer_that_sends_no_more_than_its_window_gets_an_echo_of_any_length(service: tuple[Client, int]) -> None:
    """More than both windows, and nobody reads it at first."""
    body = bytes(range(256)) * 80_000
    with Gateway(service[1]) as gateway, gateway.call() as call:
        call.send(ext_proc.headers(REQUEST_HEADERS, {":path": "/v1/completions"}, more=ext_proc.modes(FULL_DUPLEX)))
        call.send(*[ext_proc.body(REQUEST_BODY, body[start : start + 2**20]) for start in range(0, len(body), 2**20)])
        call.send(ext_proc.body(REQUEST_BODY, b"", is_end=True))
        time.sleep(0.5)
        assert call.reply().kind == 1
        pieces = []
        while not (reply := call.reply()).is_end:
            pieces.append(reply.body)
        assert b"".join([*pieces, reply.body]) == body


def test_a_message_that_is_longer_than_what_is_sent_at_once_comes_whole(service: tuple[Client, int]) -> None:
    """A peer with a large window, to which it goes in steps, and one with HTTP/2's usual window."""
    body = b'{"model":"public","prompt":"%b"}' % (b"a" * 3_000_000)
    more = ext_proc.modes(BUFFERED)
    head = ext_proc.headers(REQUEST_HEADERS, {":path": "/v1/completions", "x-gateway-model-name-rewrite": "m"}, more=more)
    for window in (65_535, 2**24):
        with Gateway(service[1], **{"http2.lookahead_bytes": window, "max_receive_message_length": 2**23}) as gateway, gateway.call() as call:
            call.send(head, ext_proc.body(REQUEST_BODY, body, is_end=True))
            assert call.reply().kind == 1
            assert call.reply().replaced == body.replace(b"public", b"m")


def test_calls_over_the_limit_are_refused_so_that_they_are_made_elsewhere() -> None:
    with running(gateway_calls_max="2") as (service, port), peer_of(port) as peer:
        peer.send(b"".join(frame(HEADERS, END_HEADERS, number, call_headers()) for number in (1, 3, 5)))
        assert peer.find(RST_STREAM)[1:] == (5, b"\0\0\0\x07")
        wait_until(lambda: service.metric("kv_indexer_gateway_open") == 2)
        peer.send(frame(RST_STREAM, 0, 1, b"\0\0\0\x08"))
        wait_until(lambda: service.metric("kv_indexer_gateway_open") == 1)
        peer.send(frame(HEADERS, END_HEADERS, 7, call_headers()))
        wait_until(lambda: service.metric("kv_indexer_gateway_open") == 2)


def test_calls_that_are_refused_and_reset_at_once_end_no_connection() -> None:
    with running(gateway_calls_max="1") as (service, port), peer_of(port) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, call_headers()))
        wait_until(lambda: service.metric("kv_indexer_gateway_open") == 1)
        block = b"\x83\x86"  # the shortest: many of them are read together
        peer.send(b"".join(frame(HEADERS, END_HEADERS, number, block) + frame(RST_STREAM, 0, number, b"\0\0\0\x08") for number in range(3, 803, 2)))
        peer.send(frame(PING, 0, 0, b"are you?"))
        assert peer.find(PING)[2] == b"are you?"


def test_a_connection_that_breaks_ends_its_calls(service: tuple[Client, int], peer: Peer) -> None:
    peer.send(b"".join(frame(HEADERS, END_HEADERS, number, call_headers()) for number in range(1, 601, 2)))
    wait_until(lambda: service[0].metric("kv_indexer_gateway_open") == 300)
    peer.socket.close()
    wait_until(lambda: service[0].metric("kv_indexer_gateway_open") == 0)


def test_what_is_no_call_of_grpc_is_told_so(service: tuple[Client, int], peer: Peer) -> None:
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\x82\x86\x84"))  # GET /
    _, stream, block = peer.find(HEADERS)
    assert (stream, hpack.Decoder().decode(block)) == (1, [(":status", "415"), ("content-length", "0")])


def test_a_silent_peer_is_asked_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # As far apart as they are in use.
    monkeypatch.setattr(connection, "KEEPALIVE_S", 0.3)
    monkeypatch.setattr(connection, "SILENCE_MAX_S", 0.5)
    with running() as (_, port), peer_of(port) as peer:
        time.sleep(0.05)  # falls silent between two looks
        peer.send(frame(PING, 1, 0, bytes(8)))
        assert peer.find(PING)[2] == bytes(8)
        assert peer.is_ended()


def test_a_peer_that_answers_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(connection, "SILENCE_MAX_S", 0.5)
    with running() as (_, port), peer_of(port) as peer:
        for _ in range(4):
            peer.find(PING)
            peer.send(frame(PING, 1, 0, bytes(8)))
        peer.send(frame(PING, 0, 0, b"are you?"))
        assert any(payload == b"are you?" for kind, _, _, payload in peer.frames() if kind == PING)


def test_a_handler_whose_own_connection_breaks_ends_its_call(service: tuple[Client, int], monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str, *, is_serving: bool) -> bytes:
        raise ConnectionResetError

    monkeypatch.setattr(server, "health_of", broken)
    with Gateway(service[1]) as gateway, pytest.raises(grpc.RpcError) as error:
        gateway.channel.unary_unary(CHECK)(b"", timeout=10)
    assert error.value.code() is grpc.StatusCode.INTERNAL


def test_compressed_messages_are_refused(service: tuple[Client, int]) -> None:
    with Gateway(service[1]) as gateway, pytest.raises(grpc.RpcError) as error:
        gateway.channel.unary_unary(CHECK)(b"\x0a\x40" + b"a" * 64, timeout=10, compression=grpc.Compression.Gzip)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_peers_learn_that_no_compression_is_taken(peer: Peer) -> None:
    peer.send(frame(HEADERS, END_HEADERS | END_STREAM, 1, call_headers(b"/none")))
    headers = hpack.Decoder().decode(peer.find(HEADERS)[2])
    assert [value for name, value in headers if name in ("grpc-accept-encoding", "grpc-status")] == ["identity", "12"]


def test_a_peer_that_goes_gets_the_answers_to_its_calls(peer: Peer) -> None:
    peer.send(frame(HEADERS, END_HEADERS, 1, call_headers(CHECK.encode())) + frame(GOAWAY, 0, 0, bytes(8)))
    peer.send(frame(PING, 0, 0, b"are you?"))
    assert peer.find(PING)[2] == b"are you?"
    peer.send(frame(HEADERS, END_HEADERS, 3, call_headers()))
    assert peer.find(RST_STREAM)[1:] == (3, b"\0\0\0\x07")
    peer.send(frame(DATA, END_STREAM, 1, bytes(5)))
    found = list(peer.frames())
    assert [(kind, stream) for kind, _, stream, _ in found] == [(HEADERS, 1), (DATA, 1), (HEADERS, 1)]


def test_a_peer_that_goes_for_an_error_is_left(peer: Peer) -> None:
    peer.send(frame(HEADERS, END_HEADERS, 1, call_headers()) + frame(GOAWAY, 0, 0, bytes(7) + b"\1"))
    assert peer.is_ended()


def test_a_peer_is_told_to_go_and_may_finish_its_calls() -> None:
    """First a GOAWAY that leaves all calls, and after the answer to a ping one that names the last."""
    port = free_port()
    service = Running(SPEC, gateway_listen=f"127.0.0.1:{port}", **QUICK, gateway_drain_s="30")
    with service, peer_of(port) as peer:
        peer.send(frame(HEADERS, END_HEADERS, 1, call_headers()))
        wait_until(lambda: service.metric("kv_indexer_gateway_open") == 1)
        service.begin_to_stop()
        assert peer.find(GOAWAY)[2][:4] == b"\x7f\xff\xff\xff"
        ping = peer.find(PING)[2]
        peer.send(frame(HEADERS, END_HEADERS, 3, call_headers()) + frame(PING, 1, 0, ping))
        assert peer.find(GOAWAY)[2][:4] == b"\0\0\0\x03"
        peer.send(frame(HEADERS, END_HEADERS, 5, call_headers()))
        assert peer.find(RST_STREAM)[1:] == (5, b"\0\0\0\x07")
        for number in (1, 3):
            peer.send(frame(DATA, END_STREAM, number))
        assert peer.is_ended()

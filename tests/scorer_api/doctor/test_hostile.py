"""The doctor among hosts that mean no good, or that do nothing: it comes to its end, and what it prints is what it says."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from scorer_api.doctor.probes.asker import BODY_BYTES_MAX
from scorer_api.doctor.probes.handshake import GREETING, properties
from scorer_api.doctor.report import as_json, as_text
from tests.engine import Engine, stored
from tests.engine_server import EngineServer
from tests.running import Running
from tests.scorer_api.doctor.examined import Examined


@contextmanager
def talking(talk: Callable[[socket.socket], None]) -> Iterator[int]:
    """A port where every connection is talked to like this, in a thread of its own."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    opened: list[socket.socket] = []

    def one(connection: socket.socket) -> None:
        with suppress(OSError):
            talk(connection)

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            opened.append(connection)
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        for connection in opened:
            connection.close()


def silent(connection: socket.socket) -> None:
    """Takes what comes and says nothing."""
    while connection.recv(65_536):
        pass


def endless(connection: socket.socket) -> None:
    """Far more than anybody wants to read."""
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    for _ in range(16 * BODY_BYTES_MAX // 65_536):
        connection.sendall(b"[" * 65_536)


def garbage(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"\xff\x00\x1b[2J\x07" * 100)


def dripping(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    while True:
        connection.sendall(b"X: y\r\n")
        if threading.Event().wait(0.2):
            return


def nested(connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 200000\r\nDate: never\r\n\r\n" + b'{"data":' * 25_000)


def half_a_greeting(connection: socket.socket) -> None:
    connection.sendall(GREETING)
    connection.sendall(b"\x06" + b"\xff" * 8)
    silent(connection)


TALKS = [silent, endless, garbage, dripping, nested, half_a_greeting]


@pytest.mark.parametrize("talk", TALKS)
def test_a_service_that_means_no_good(talk: Callable[[socket.socket], None]) -> None:
    with talking(talk) as port:
        found = Examined(f"http://127.0.0.1:{port}")
    assert found.exit_code == 3
    assert found.bad() <= {"service_unreachable", "service_other"}


@pytest.mark.parametrize("talk", TALKS)
def test_an_engine_that_means_no_good(talk: Callable[[socket.socket], None]) -> None:
    """Its API and both of its sockets; another engine beside it is looked at all the same."""
    with talking(talk) as port, talking(talk) as replay, Engine() as engine, EngineServer(engine) as api:
        bad = f"pod=bad,model=m,events=tcp://127.0.0.1:{port},replay=tcp://127.0.0.1:{replay},http=http://127.0.0.1:{port}"
        with Running(bad, engine.spec(http=api.url)) as service:
            engine.publish(stored([1], range(1, 5)))
            service.wait_for(sequence=0, trust="live")
            found = Examined(service.url, model="m", prompt="one two three four five")
    assert found.exit_code == 3
    assert "check_failed" not in found.codes
    assert [each.code for each in found.findings if each.subject == "pod pod" and each.severity == "ok"] == [
        "stream_well",
        "replay_well",
        "engine_well",
    ]


def test_what_others_say_cannot_steer_the_terminal() -> None:
    name = "\x1b[2Jm\u202e\r\n" + "x" * 5_000
    with Engine() as engine, EngineServer(engine, model=name) as api, Running(engine.spec(http=api.url)) as service:
        engine.publish(stored([1], range(1, 5)))
        service.wait_for(sequence=0, trust="live")
        found = Examined(service.url)
    assert len(found.the("model_not_served").detail) <= 400
    text = as_text(found.findings)
    assert all(character.isprintable() for line in text.split("\n") for character in line)
    assert "\\u001b" not in as_json(found.findings)


@pytest.mark.parametrize(
    ("ready", "found"),
    [
        (b"\x05READY\x0bSocket-Type\x00\x00\x00\x03PUB", {"socket-type": "PUB"}),
        (b"\x05READY\x0bSocket-Type\x00\x00\x00\x06ROUTER\x08Identity\x00\x00\x00\x00", {"socket-type": "ROUTER", "identity": ""}),
        (b"\x05ERROR\x03no!", {}),
        (b"\x05READY\x0bSocket-Type\xff\xff\xff\xffPUB", {}),
        (b"\x05READY\xff", {}),
        (b"", {}),
    ],
)
def test_the_properties_of_a_ready(ready: bytes, found: dict[str, str]) -> None:
    assert properties(ready) == found

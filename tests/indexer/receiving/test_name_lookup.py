"""Names are looked up beside everything else, however long a server is silent."""

import queue
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from indexer.receiving.name_lookup import NameLookup, Outcome, Question

FOUND = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", 0))]


class Server:
    """In place of `socket.getaddrinfo`: names that end with `.silent` are answered once `speak` is set."""

    def __init__(self) -> None:
        self.speak = threading.Event()
        self.asked: Counter[str] = Counter()

    def look_up(self, host: str, *_: Any) -> list[tuple[Any, ...]]:
        self.asked[host] += 1
        if host.endswith(".silent"):
            self.speak.wait()
        if host.startswith("nobody"):
            raise socket.gaierror(socket.EAI_NONAME, "nobody of this name")
        return FOUND


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    server = Server()
    monkeypatch.setattr(socket, "getaddrinfo", server.look_up)
    yield server
    server.speak.set()


def question(host: str) -> Question:
    return host, None, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, 0


class Asking:
    """Asks, and keeps the outcomes as they come."""

    def __init__(self, threads_max: int) -> None:
        self._names = NameLookup(threads_max)
        self._outcomes: queue.SimpleQueue[tuple[str, Outcome]] = queue.SimpleQueue()

    def ask(self, *hosts: str) -> None:
        for host in hosts:
            self._names.ask(question(host), lambda outcome, host=host: self._outcomes.put((host, outcome)))

    def next(self) -> tuple[str, Outcome]:
        return self._outcomes.get(timeout=20)

    @property
    def is_told(self) -> bool:
        return not self._outcomes.empty()


def test_a_silent_name_holds_no_other_up(server: Server) -> None:
    asking = Asking(threads_max=3)
    asking.ask("1.silent", "2.silent")
    for number in range(20):
        asking.ask(f"name-{number}")
        assert asking.next() == (f"name-{number}", FOUND)
    assert not asking.is_told
    server.speak.set()
    assert sorted(asking.next()[0] for _ in range(2)) == ["1.silent", "2.silent"]


def test_a_name_is_looked_up_once_for_all_who_ask_meanwhile(server: Server) -> None:
    asking = Asking(threads_max=8)
    asking.ask(*["a.silent"] * 5)
    server.speak.set()
    assert [asking.next() for _ in range(5)] == [("a.silent", FOUND)] * 5
    assert server.asked == {"a.silent": 1}
    asking.ask("a.silent")
    asking.next()
    assert server.asked == {"a.silent": 2}


def test_beyond_the_threads_names_wait_for_their_turn(server: Server) -> None:
    asking = Asking(threads_max=2)
    asking.ask("1.silent", "2.silent", "a.name", "b.name")
    threading.Event().wait(0.05)
    assert not asking.is_told
    server.speak.set()
    assert {asking.next()[0] for _ in range(4)} == {"1.silent", "2.silent", "a.name", "b.name"}


def test_a_name_that_nobody_has_is_an_error_for_each_who_asked(server: Server) -> None:
    asking = Asking(threads_max=8)
    asking.ask("nobody.silent", "nobody.silent")
    server.speak.set()
    for _ in range(2):
        _, outcome = asking.next()
        assert isinstance(outcome, socket.gaierror)
    asking.ask("a.name")
    assert asking.next() == ("a.name", FOUND), "the threads go on"

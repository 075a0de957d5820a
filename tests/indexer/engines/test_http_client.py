"""Requests with a deadline and a limit on the bytes of the answer, to real servers."""

import asyncio
import sys
import threading
from collections.abc import Callable

import pytest

from indexer.engines.http_client import Answer, FetchError, HttpClient, Target
from tests.engine_server import EngineServer
from tests.ports import free_port


def fetch(url: str, *, timeout_s: float = 10.0, bytes_max: int = 100, error_bytes_max: int | None = None) -> Answer:
    async def ask() -> Answer:
        async with HttpClient() as client:
            return await client.fetch(Target(url), timeout_s=timeout_s, bytes_max=bytes_max, error_bytes_max=error_bytes_max)

    return asyncio.run(ask())


def refused(act: Callable[[], Answer]) -> FetchError:
    with pytest.raises(FetchError) as raised:
        act()
    return raised.value


@pytest.mark.parametrize(("size", "is_cut"), [(99, False), (100, False), (101, True), (100_000, True)])
def test_no_more_than_the_limit_is_read(size: int, is_cut: bool) -> None:
    with EngineServer(routes={"/x": lambda _: (200, b"y" * size)}) as server:
        answer = fetch(f"{server.url}/x")
    assert (answer.status, answer.body, answer.is_cut) == (200, b"y" * min(size, 100), is_cut)
    assert answer.url == f"{server.url}/x"
    assert answer.headers["content-length"] == str(size)


def test_an_error_has_a_limit_of_its_own() -> None:
    with EngineServer(routes={"/x": lambda _: (503, b"y" * 50), "/well": lambda _: (200, b"y" * 50)}) as server:
        assert (fetch(f"{server.url}/x", error_bytes_max=10).body, fetch(f"{server.url}/x").body) == (b"y" * 10, b"y" * 50)
        assert fetch(f"{server.url}/well", error_bytes_max=10).body == b"y" * 50


def test_an_answer_has_a_deadline() -> None:
    may_end = threading.Event()

    def hang(_: object) -> tuple[int, bytes]:
        may_end.wait(30)
        return 200, b""

    with EngineServer(routes={"/x": hang}) as server:
        error = refused(lambda: fetch(f"{server.url}/x", timeout_s=0.2))
        may_end.set()
    assert (error.outcome, error.why, error.is_tls_error) == ("timeout", "no answer within 0.2 s", False)


def test_what_cannot_be_reached_is_an_error_in_words() -> None:
    port = free_port()
    assert refused(lambda: fetch(f"http://127.0.0.1:{port}/x")).outcome == "unreachable"
    assert refused(lambda: fetch("http://[::1/x")).outcome == "unreachable"


def test_tls_with_a_server_that_has_none_is_told_apart() -> None:
    with EngineServer() as server:
        error = refused(lambda: fetch(server.url.replace("http:", "https:")))
    assert (error.outcome, error.is_tls_error) == ("unreachable", True)


def test_a_redirection_is_not_followed() -> None:
    with EngineServer(routes={"/x": lambda _: (302, b"there")}) as server:
        assert fetch(f"{server.url}/x").status == 302


def test_no_request_but_the_first_searches_the_disk_for_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[str] = []

    class Finder:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> None:
            searched.append(name)

    with EngineServer(routes={"/x": lambda _: (200, b"")}) as server:
        fetch(f"{server.url}/x")
        monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
        fetch(f"{server.url}/x")
    assert searched == []

"""The event loop looks names up in threads that nobody waits for."""

import asyncio
import socket
import threading
import time
from typing import Any

import pytest

from indexer.main.event_loop import EventLoop

Infos = list[tuple[Any, ...]]


def run(act: Any) -> Any:
    with asyncio.Runner(loop_factory=EventLoop) as runner:
        return runner.run(act())


async def look_up(host: str, port: int | str | bytes = 80) -> Infos:
    return await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", ("127.0.0.1", 80)), ("::1", ("::1", 80, 0, 0))])
def test_an_address_is_itself(host: str, expected: tuple[Any, ...]) -> None:
    async def act() -> Infos:
        return await look_up(host, b"80")

    assert [at for *_, at in run(act)] == [expected]


def test_a_name_has_its_addresses() -> None:
    async def act() -> tuple[Infos, str]:
        server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("localhost", port)
            assert await reader.read() == b""
            writer.close()
        return await look_up("localhost")

    assert ("127.0.0.1", 80) in [at for *_, at in run(act)]


def test_a_name_that_nobody_has_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def nobody(*_: Any) -> Infos:
        raise socket.gaierror(socket.EAI_NONAME, "nobody of this name")

    async def act() -> None:
        with pytest.raises(socket.gaierror, match="nobody"):
            await look_up("a.name")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    run(act)


def test_a_silent_name_is_not_waited_for_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    speak = threading.Event()

    def silent(*_: Any) -> Infos:
        speak.wait(60)
        return []

    async def act() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(look_up("a.name"), 0.05)

    monkeypatch.setattr(socket, "getaddrinfo", silent)
    began_s = time.monotonic()
    run(act)
    assert time.monotonic() - began_s < 30
    speak.set()

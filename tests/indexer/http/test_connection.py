"""Connections of the HTTP server, whatever it serves: here an app whose answers are as long as the path says."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from indexer.http import server as http_server
from indexer.http.connection import HEAD_BYTES_MAX, JOINED_BYTES_MAX, ConnectionGroup, JoinedWrites
from indexer.http.server import Served, serve
from tests.settings import settings_of
from tests.waiting import wait_until_async

MIB = 2**20


class Server:
    """`async with served(…) as server:`. `open`: connects to it. `begun`: requests that the app has seen; it answers once `answering` is set."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.answering = asyncio.Event()
        self.answering.set()
        self.going_on = asyncio.Event()
        """Between the head and the body of an answer."""
        self.going_on.set()
        self.begun = 0
        self.ended = False

    async def __call__(self, scope: dict[str, Any], receive: Callable[[], Awaitable[dict[str, Any]]], send: Callable[[Any], Awaitable[None]]) -> None:
        self.begun += 1
        while (await receive()).get("more_body"):
            pass
        await self.answering.wait()
        body = b"x" * int(scope["path"][1:] or 0)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())]})
        await self.going_on.wait()
        await send({"type": "http.response.body", "body": body})

    async def open(self, buffer: int = 2**16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, limit=buffer)

    async def run(self, **limits: str) -> None:
        listening: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        listening.add_done_callback(lambda url: setattr(self, "port", int(url.result().rpartition(":")[2])))
        await serve(settings_of({"port": "0", "shutdown_s": "5", **limits}), lambda: Served(self, [], []), self.stop, listening)
        self.ended = True

    port = 0


@asynccontextmanager
async def served(**limits: str) -> AsyncIterator[Server]:
    server = Server()
    running = asyncio.create_task(server.run(**limits))
    await wait_until_async(lambda: server.port)
    try:
        yield server
    finally:
        server.answering.set()
        server.stop.set()
        await asyncio.wait_for(running, 30)


def get(path: str = "/5", *headers: str) -> bytes:
    return "\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode()


async def answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and the head of one answer, whose body is read too."""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
    (length,) = (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    await reader.readexactly(length)
    return int(head.split()[1]), head.lower()


async def sent_until_refused(writer: asyncio.StreamWriter, piece: bytes, bytes_max: int) -> int:
    """How much of an endless stream of these pieces is taken."""
    sent = 0
    with suppress(ConnectionError):
        while sent < bytes_max and not writer.is_closing():
            writer.write(piece)
            await writer.drain()
            sent += len(piece)
            await asyncio.sleep(0)
    return sent


NOISE = (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"SSH-2.0-OpenSSH_9.6\r\n", b"\r\n\r\nno http\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n")

# What is sent


ENDLESS = {
    "head": (get()[:-2], b"a: b\r\n" * 100),
    "path": (b"GET /", b"x" * 1_000),
    "one header": (b"GET /5 HTTP/1.1\r\nx: ", b"x" * 1_000),
    "trailers": (b"POST /5 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 100),
    "extension of a chunk": (b"POST /5 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;x=", b"x" * 1_000),
    "extensions of small chunks": (b"POST /5 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", b"1;x=" + b"x" * 1_000 + b"\r\na\r\n"),
}


@pytest.mark.parametrize("what", list(ENDLESS))
async def test_what_does_not_end_is_refused_after_so_many_bytes(what: str) -> None:
    start, piece = ENDLESS[what]
    async with served() as server:
        reader, writer = await server.open()
        writer.write(start)
        # What is on its way when the service closes the connection was sent, too.
        assert await sent_until_refused(writer, piece, 64 * MIB) < 16 * MIB
        writer.close()

        reader, writer = await server.open()
        writer.write(start + piece * (HEAD_BYTES_MAX // len(piece) + 2))
        status, head = await answer(reader)
        assert status == 431 or (status == 400 and what == "path")
        assert b"connection: close" in head
        writer.close()


@pytest.mark.parametrize("size", [1, 2, 100])
async def test_a_body_in_small_chunks_is_taken_whatever_its_length(size: int) -> None:
    chunk = b"%x\r\n%s\r\n" % (size, b"x" * size)
    async with served() as server:
        reader, writer = await server.open()
        writer.write(b"POST /5 HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * (5 * HEAD_BYTES_MAX // len(chunk)) + b"0\r\n\r\n")
        assert (await answer(reader))[0] == 200
        writer.close()


async def test_large_bodies_on_one_connection_are_all_taken() -> None:
    body = b"x" * (3 * HEAD_BYTES_MAX)
    async with served() as server:
        reader, writer = await server.open()
        for _ in range(5):
            writer.write(b"POST /5 HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert (await answer(reader))[0] == 200
        writer.close()


async def test_what_is_no_http_is_refused_without_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async with served() as server:
        caplog.clear()
        for noise in (
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"SSH-2.0-OpenSSH_9.6\r\n",
            b"\r\n\r\nno http\r\n\r\n",
            b"GET / HTTP/9.9\r\n\r\n",
        ):
            reader, writer = await server.open()
            writer.write(noise)
            assert (await answer(reader))[0] == 400
            assert await reader.read() == b""
            writer.close()
        reader, writer = await server.open()
        writer.write(get("/5", "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"))
        assert (await answer(reader))[0] == 200, "an offer that a server may ignore"
        writer.close()
        assert [record.message for record in caplog.records if record.levelno > logging.INFO] == []


# What is not read


async def test_a_connection_whose_answer_is_not_read_is_closed_after_a_time() -> None:
    async with served(answer_timeout_s="0.3") as server:
        reader, writer = await server.open(buffer=2**10)
        writer.write(get(f"/{32 * MIB}"))
        await wait_until_async(lambda: server.begun)
        await asyncio.sleep(1.5)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await answer(reader)
        writer.close()


async def test_an_answer_that_is_read_slowly_arrives() -> None:
    async with served(answer_timeout_s="2") as server:
        reader, writer = await server.open(buffer=2**16)
        writer.write(get(f"/{24 * MIB}"))
        await reader.readuntil(b"\r\n\r\n")
        for _ in range(24):
            await reader.readexactly(MIB)
            await asyncio.sleep(0.1)
        writer.write(get())
        assert (await answer(reader))[0] == 200
        writer.close()


async def test_of_answers_that_nobody_reads_the_oldest_are_given_up_beyond_so_many_bytes() -> None:
    async with served(unread_bytes_max=str(48 * MIB)) as server:
        opened = []
        for number in range(1, 5):
            reader, writer = await server.open(buffer=2**10)
            writer.write(get(f"/{24 * MIB}"))
            await wait_until_async(lambda number=number: server.begun == number)  # type: ignore[misc]
            await asyncio.sleep(0.1)
            opened.append((reader, writer))
        outcomes = []
        for reader, writer in opened:
            try:
                outcomes.append((await answer(reader))[0])
            except (ConnectionError, asyncio.IncompleteReadError):
                outcomes.append(0)
            writer.close()
    assert outcomes[0] == 0
    assert outcomes[-2:] == [200, 200]


# The end


async def test_requests_that_have_arrived_are_answered_before_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that waits for its answer, one that comes on an idle connection, two at once, and one on a connection that is not accepted yet."""
    groups: list[ConnectionGroup] = []

    def make_group(*of: Any) -> ConnectionGroup:
        groups.append(ConnectionGroup(*of))
        return groups[-1]

    monkeypatch.setattr(http_server, "ConnectionGroup", make_group)
    async with served() as server:
        idle_reader, idle_writer = await server.open()
        idle_writer.write(get())
        assert (await answer(idle_reader))[1].count(b"connection: close") == 0
        server.answering.clear()
        busy_reader, busy_writer = await server.open()
        busy_writer.write(get())
        await wait_until_async(lambda: server.begun == 2)
        new_reader, new_writer = await server.open()
        new_writer.write(get())
        server.stop.set()
        await wait_until_async(lambda: groups[0].is_stopping)
        await asyncio.sleep(2 * http_server.ACCEPT_S)  # by then it has told the connections
        idle_writer.write(get() + get("/7"))
        await wait_until_async(lambda: server.begun == 4)
        server.answering.set()
        assert b"connection: close" in (await answer(busy_reader))[1]
        assert b"connection: close" in (await answer(new_reader))[1]
        assert b"connection: close" not in (await answer(idle_reader))[1]
        assert b"connection: close" in (await answer(idle_reader))[1]
        for reader, writer in ((idle_reader, idle_writer), (busy_reader, busy_writer), (new_reader, new_writer)):
            assert await reader.read() == b""
            writer.close()
        await wait_until_async(lambda: server.ended)


async def test_idle_connections_do_not_hold_the_end_up() -> None:
    async with served(shutdown_s="60") as server:
        opened = [await server.open() for _ in range(3)]
        opened[0][1].write(get())
        await answer(opened[0][0])
        server.stop.set()
        await wait_until_async(lambda: server.ended, 20)
        for reader, writer in opened:
            assert await reader.read() == b""
            writer.close()


# Head and body


class Written(asyncio.Transport):
    """Takes note of what is written to it, and whether it was closed."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.pieces.append(bytes(data))

    def close(self) -> None:
        self.is_closed = True

    def is_closing(self) -> bool:
        return self.is_closed


HEAD = b"HTTP/1.1 200 OK\r\n\r\n"


async def test_a_head_is_written_with_what_follows_at_once() -> None:
    transport, large = Written(), b"x" * (JOINED_BYTES_MAX + 1)
    writes = JoinedWrites(transport, asyncio.get_running_loop())
    for data in (HEAD, b"body", b"more", HEAD, b"", HEAD, large):
        writes.write(data)
    await asyncio.sleep(0)
    assert transport.pieces == [HEAD + b"body", b"more", HEAD, HEAD, large]


async def test_a_head_waits_one_turn_and_goes_before_the_end() -> None:
    transport = Written()
    writes = JoinedWrites(transport, asyncio.get_running_loop())
    writes.write(HEAD)
    assert transport.pieces == []
    await asyncio.sleep(0)
    assert transport.pieces == [HEAD]
    writes.write(HEAD)
    writes.close()
    assert (transport.pieces, writes.is_closing()) == ([HEAD, HEAD], True)


async def test_a_head_does_not_wait_for_its_body() -> None:
    async with served() as server:
        server.going_on.clear()
        reader, writer = await server.open()
        writer.write(get())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        assert head.startswith(b"HTTP/1.1 200")
        server.going_on.set()
        assert await asyncio.wait_for(reader.readexactly(5), 30) == b"xxxxx"
        writer.close()


async def test_answers_without_a_body_keep_their_order() -> None:
    async with served() as server:
        reader, writer = await server.open()
        writer.write(get("/3").replace(b"GET", b"HEAD") + get("/5") + get("/0"))
        assert b"content-length: 3" in (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).lower()
        assert [(await answer(reader))[1].count(b"content-length: %d" % length) for length in (5, 0)] == [1, 1]
        writer.close()

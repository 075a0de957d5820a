"""Two workers, here in one process, accept from one socket."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from indexer.http.acceptor import Acceptor
from indexer.workers.board import WorkerState
from indexer.workers.worker import Worker, WorkerGroup
from tests.tls import CERTIFICATE, DATA


class Named(asyncio.Protocol):
    """Says which worker has accepted it."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._worker.note_connections(1)
        transport.write(b"%d" % self._worker.number)

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker.note_connections(-1)


@asynccontextmanager
async def accepting(count: int = 2, context: ssl.SSLContext | None = None) -> AsyncIterator[tuple[int, list[Worker]]]:
    """The port, and two workers, of which so many accept."""
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        listener.setblocking(False)
        group = WorkerGroup(2, listener)
        for end in (end for pair in group.inboxes for end in pair):
            stack.enter_context(end)
        workers = [Worker(number, group) for number in range(2)]
        for worker in workers:
            group.board.set_state(worker.number, WorkerState.READY)
        # A descriptor each, as processes have.
        own = [stack.enter_context(listener.dup()) for _ in range(count)]
        acceptors = [Acceptor(end, worker, partial(Named, worker), context) for end, worker in zip(own, workers, strict=False)]
        yield listener.getsockname()[1], workers
        for acceptor in acceptors:
            acceptor.close()
            await acceptor.wait_closed()


@pytest.mark.parametrize("at_once", [False, True])
async def test_each_worker_accepts_about_as_many(at_once: bool) -> None:
    async with accepting() as (port, workers):
        if at_once:
            connections = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", port) for _ in range(10)))
        else:
            connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(10)]
        numbers = [int(await reader.read(1)) for reader, _ in connections]
        assert 4 <= numbers.count(0) <= 6
        assert [worker.connections() for worker in workers] == [numbers.count(0), numbers.count(1)]
        for _, writer in connections:
            writer.close()
            await writer.wait_closed()


async def test_a_worker_that_has_more_accepts_all_while_the_other_one_is_busy() -> None:
    async with accepting(count=1) as (port, workers):
        workers[0].note_connections(100)
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            assert await reader.read(1) == b"0"
            writer.close()
            await writer.wait_closed()


async def test_a_client_without_tls_costs_nobody_else_anything() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, DATA / "tls-key.pem")
    trusting = ssl.create_default_context(cafile=CERTIFICATE)
    trusting.check_hostname = False
    async with accepting(context=context) as (port, _):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET / HTTP/1.1\r\n\r\n" * 100)
        assert await reader.read() in (b"", b"\x15\x03\x01\x00\x02\x02F")
        writer.close()
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting)
            assert await reader.read(1) in (b"0", b"1")
            writer.close()
            await writer.wait_closed()

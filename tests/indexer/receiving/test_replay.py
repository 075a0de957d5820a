"""Requests for a replay, against a ROUTER that answers as it likes."""

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from typing import Any

import pytest
import zmq

from indexer.limits import ReceiveLimits
from indexer.receiving import replay
from indexer.receiving.replay import AHEAD_BYTES_MIN, CHUNK_BYTES_MAX, CHUNK_MAX, ReplayRequest
from indexer.receiving.room import Room

END = b"\xff" * 8
MIB = 2**20
# What an event loop reads at a stretch.
READ_BYTES_MAX = 256 * 2**10


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    with zmq.Context() as context:
        yield context


class Router:
    def __init__(self, context: zmq.Context[Any]) -> None:
        self.socket = context.socket(zmq.ROUTER)
        self.socket.linger = 0
        self.socket.sndhwm = 4
        self.socket.router_mandatory = True
        self.endpoint = f"tcp://127.0.0.1:{self.socket.bind_to_random_port('tcp://127.0.0.1')}"

    async def asked(self) -> tuple[bytes, int]:
        """Who asked, and from which number on."""
        while True:
            try:
                peer, _, start = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                await asyncio.sleep(0.005)
            else:
                return peer, int.from_bytes(start, "big")

    def reply(self, peer: bytes, number: int, payload: bytes) -> None:
        self.socket.send_multipart([peer, b"", number.to_bytes(8, "big"), payload], zmq.NOBLOCK)

    async def flood(self, peer: bytes, payload: bytes) -> None:
        """Reply as fast as it is taken."""
        number = 0
        while True:
            try:
                self.reply(peer, number, payload)
                number += 1
            except zmq.ZMQError:
                await asyncio.sleep(0.001)


@pytest.fixture
def router(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[Router]:
    router = Router(context)
    yield router
    router.socket.close()


async def all_of(request: ReplayRequest) -> AsyncIterator[list[list[bytes]]]:
    async with request, aclosing(request.replies(lambda: True)) as chunks:
        async for replies in chunks:
            yield replies


async def test_replies_come_in_order_and_in_chunks_of_a_size(context: zmq.Context[zmq.Socket[bytes]], router: Router) -> None:
    request = ReplayRequest(router.endpoint, 7, ReceiveLimits(replay_idle_s=5))
    chunks: list[list[list[bytes]]] = []
    async with request, aclosing(request.replies(lambda: True)) as found:
        peer, start = await router.asked()
        assert start == 7
        sizes = [10] * 40 + [CHUNK_BYTES_MAX] * 3 + [10] * 5
        for number, size in enumerate(sizes, start):
            while True:
                try:
                    router.reply(peer, number, b"x" * size)
                    break
                except zmq.Again:
                    await asyncio.sleep(0.001)
        await asyncio.sleep(0.2)
        async for replies in found:
            chunks.append(replies)
            if sum(map(len, chunks)) == len(sizes):
                break
    assert [int.from_bytes(frames[-2], "big") for replies in chunks for frames in replies] == list(range(7, 7 + len(sizes)))
    assert max(map(len, chunks)) <= CHUNK_MAX
    assert max(sum(len(frames[-1]) for frames in replies[:-1]) for replies in chunks) < CHUNK_BYTES_MAX


async def test_replies_that_come_faster_than_they_are_applied_wait_at_the_engine(
    context: zmq.Context[zmq.Socket[bytes]], router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "AHEAD_BYTES_MAX", 4 * MIB)
    room = Room(ReceiveLimits().inboxes_bytes_max)
    request = ReplayRequest(router.endpoint, 0, ReceiveLimits(), room)
    async with request, aclosing(request.replies(lambda: True)) as chunks:
        peer, _ = await router.asked()
        flooding = asyncio.create_task(router.flood(peer, b"x" * MIB))
        seen: list[int] = []
        ahead = 0
        async for replies in chunks:
            seen += [int.from_bytes(frames[-2], "big") for frames in replies]
            if len(seen) >= 64:
                break
            await asyncio.sleep(0.02)
            ahead = max(ahead, room.replies_bytes)
        flooding.cancel()
    assert seen == list(range(len(seen)))
    assert 2 * MIB < ahead <= 4 * MIB + 2 * READ_BYTES_MAX
    assert room.replies_bytes == 0


async def test_replies_to_all_requests_share_their_room(context: zmq.Context[zmq.Socket[bytes]], router: Router) -> None:
    room = Room(16 * MIB)
    requests = [ReplayRequest(router.endpoint, number, ReceiveLimits(), room) for number in range(3)]
    async with requests[0], requests[1], requests[2]:
        peers = [(await router.asked())[0] for _ in requests]
        floods = [asyncio.create_task(router.flood(peer, b"x" * MIB)) for peer in peers]
        await asyncio.sleep(0.5)
        for flooding in floods:
            flooding.cancel()
        assert MIB < room.replies_bytes <= room.replies_bytes_max + 3 * (AHEAD_BYTES_MIN + READ_BYTES_MAX)
    assert room.replies_bytes == 0


async def test_the_number_of_a_closed_socket_can_be_given_to_another_connection(context: zmq.Context[zmq.Socket[bytes]], router: Router) -> None:
    """A request that is cancelled closes its socket. Who has its descriptor next is watched by the event loop as any other."""
    loop = asyncio.get_running_loop()

    async def wait() -> None:
        async for _ in all_of(ReplayRequest(router.endpoint, 0, ReceiveLimits())):
            pass

    for _ in range(20):
        waiting = asyncio.create_task(wait())
        await router.asked()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        pairs = [socket.socketpair() for _ in range(20)]
        for one, other in pairs:
            one.setblocking(False)
            other.send(b"x")
        came = await asyncio.wait_for(asyncio.gather(*(loop.sock_recv(one, 1) for one, _ in pairs)), 10)
        assert came == [b"x"] * 20
        for one, other in pairs:
            one.close()
            other.close()


async def test_an_endpoint_that_does_not_answer_ends_the_request_after_a_time(context: zmq.Context[zmq.Socket[bytes]], router: Router) -> None:
    assert [replies async for replies in all_of(ReplayRequest(router.endpoint, 0, ReceiveLimits(replay_idle_s=0.2)))] == []


async def test_a_cancellation_counts_where_a_reply_comes_at_the_same_moment(context: zmq.Context[zmq.Socket[bytes]], router: Router) -> None:
    request = ReplayRequest(router.endpoint, 0, ReceiveLimits(replay_idle_s=60))

    async def wait() -> None:
        async for _ in all_of(request):
            pass

    waiting = asyncio.create_task(wait())
    await router.asked()
    await asyncio.sleep(0.02)
    request._has_come.set()
    waiting.cancel()
    await asyncio.wait([waiting], timeout=10)
    assert waiting.cancelled()

"""Asking an engine for batches again: DEALER to the publisher's ROUTER, a new socket for each request.

On a socket used twice a late end marker would read as the next request's answer, and that would pass for a restart.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import zmq

from indexer.limits import ReceiveLimits
from indexer.receiving.address_family import needs_ipv6

RECONNECT_MS = 100
# Short enough to notice soon that the caller lost interest, e.g. because the engine went away.
POLL_S = 0.1
# At most this number of replies, and about so many bytes, are handed over together, so that other tasks run in between.
CHUNK_MAX = 16
CHUNK_BYTES_MAX = 2**20
# About so many bytes are copied at a stretch.
RECEIVED_BYTES_MAX = 8 * 2**20


class ReplayRequest:
    """One request for all batches from number `start` on.

    `async with ReplayRequest(…) as request: async for replies in request.replies(…)`. Replies come in chunks, as raw frames, in the order
    of their arrival; the end marker is among them. The iterator ends when nothing came for `replay_idle_s`, after `replay_total_s`, when the
    caller's `is_wanted` says no, or after what had come when more than `inbox_bytes_max` waited to be taken. Raises zmq.ZMQError for an endpoint
    that cannot be connected to.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, start: int, limits: ReceiveLimits) -> None:
        self._context = context
        self._endpoint = endpoint
        self._start = start
        self._limits = limits
        self._waiting: deque[list[bytes]] = deque()
        self._waiting_bytes = 0
        self._has_come = asyncio.Event()

    async def __aenter__(self) -> Self:
        is_ipv6 = await needs_ipv6(self._endpoint)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.ipv6 = is_ipv6
        self._socket.rcvhwm = 0  # at a mark of ours the engine's ROUTER would drop replies
        self._socket.maxmsgsize = self._limits.frame_bytes_max
        self._socket.reconnect_ivl = RECONNECT_MS
        try:
            self._socket.connect(self._endpoint)
            self._socket.send_multipart([b"", self._start.to_bytes(8, "big")], zmq.NOBLOCK)
        except BaseException:
            self._socket.close()
            raise
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._socket.fileno(), self._has_come.set)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._close()

    def _close(self) -> None:
        """Idempotent. The event loop forgets the descriptor first: its number may be another connection's a moment later."""
        if not self._socket.closed:
            self._loop.remove_reader(self._socket.fileno())
            self._socket.close()

    async def replies(self, is_wanted: Callable[[], bool]) -> AsyncGenerator[list[list[bytes]], None]:
        clock = self._loop.time
        deadline = clock() + self._limits.replay_total_s
        silent_until = clock() + self._limits.replay_idle_s
        while is_wanted() and clock() < min(deadline, silent_until):
            is_all = False
            while not is_all:
                await asyncio.sleep(0)  # others have their turn between two chunks
                is_all = self._receive()
            if self._waiting:
                yield self._take()
                silent_until = clock() + self._limits.replay_idle_s
            elif self._socket.closed:
                return
            else:
                await self._wait()

    async def _wait(self) -> None:
        # Not asyncio.wait_for, which up to Python 3.11 may swallow a cancellation.
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._has_come.wait()

    def _receive(self) -> bool:
        """Take over what has come. Returns whether that is all. Where it comes faster than it is applied, the request ends."""
        self._has_come.clear()
        before = self._waiting_bytes
        while not self._socket.closed and self._waiting_bytes - before < RECEIVED_BYTES_MAX:
            try:
                reply = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return True
            self._waiting.append(reply)
            self._waiting_bytes += sum(map(len, reply))
            if self._waiting_bytes > self._limits.inbox_bytes_max:
                self._close()
        return self._socket.closed

    def _take(self) -> list[list[bytes]]:
        taken: list[list[bytes]] = []
        size = 0
        while self._waiting and len(taken) < CHUNK_MAX and size < CHUNK_BYTES_MAX:
            reply = self._waiting.popleft()
            size += sum(map(len, reply))
            taken.append(reply)
        self._waiting_bytes -= size
        return taken

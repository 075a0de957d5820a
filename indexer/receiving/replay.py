"""Asking an engine for batches again: DEALER to the publisher's ROUTER, a new socket for each request.

On a socket used twice a late end marker would read as the next request's answer, and that would pass for a restart.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import TracebackType
from typing import Self

import zmq
import zmq.asyncio

from indexer.limits import ReceiveLimits
from indexer.receiving.address_family import needs_ipv6

RECONNECT_MS = 100
# Short enough to notice soon that the caller lost interest, e.g. because the engine went away.
POLL_S = 0.1
# At most this number of replies is handed over together, so that other tasks run in between.
CHUNK_MAX = 16


class ReplayRequest:
    """One request for all batches from number `start` on.

    `async with ReplayRequest(…) as request: async for replies in request.replies(…)`. Replies come in chunks, as raw frames, in the order
    of their arrival; the end marker is among them. The iterator ends when nothing came for `replay_idle_s`, after `replay_total_s`, or when the
    caller's `is_wanted` says no. Raises zmq.ZMQError for an endpoint that cannot be connected to.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, start: int, limits: ReceiveLimits) -> None:
        self._context = context
        self._endpoint = endpoint
        self._start = start
        self._limits = limits

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
            self._poller = zmq.asyncio.Poller()
            self._poller.register(self._socket, zmq.POLLIN)
        except BaseException:
            self._socket.close()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._socket.close()

    async def replies(self, is_wanted: Callable[[], bool]) -> AsyncGenerator[list[list[bytes]], None]:
        clock = asyncio.get_running_loop().time
        deadline = clock() + self._limits.replay_total_s
        silent_until = clock() + self._limits.replay_idle_s
        while is_wanted() and clock() < min(deadline, silent_until):
            if await self._poller.poll(POLL_S * 1000):
                yield self._take()
                silent_until = clock() + self._limits.replay_idle_s

    def _take(self) -> list[list[bytes]]:
        taken: list[list[bytes]] = []
        try:
            while len(taken) < CHUNK_MAX:
                taken.append(self._socket.recv_multipart(zmq.NOBLOCK))
        except zmq.Again:
            pass
        return taken

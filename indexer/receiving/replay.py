"""Asking an engine for batches again: we are a DEALER, the engine's socket is a ROUTER, and each request has a connection of its own.

On a connection used twice a late end marker would read as the next request's answer, and that would pass for a restart.
"""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from types import TracebackType
from typing import Self, cast

from indexer.limits import ReceiveLimits
from indexer.receiving.addresses import SocketAddress, addresses_of, has_name, host_and_port, socket_addresses
from indexer.receiving.room import Room
from indexer.receiving.zmtp import Zmtp, ZmtpError, message

ANSWERERS = frozenset({b"ROUTER", b"DEALER", b"REP"})
RECONNECT_S = 0.1
# How long an address may take to accept a connection.
CONNECT_S = 2.0
# Short enough to notice soon that the caller lost interest, e.g. because the engine went away.
POLL_S = 0.1
# At most this number of replies, and about so many bytes, are handed over together, so that other tasks run in between.
CHUNK_MAX = 16
CHUNK_BYTES_MAX = 2**20
# So much is read before it is applied: an engine's socket drops what it cannot send. Beyond that the engine is read at the pace of applying.
AHEAD_BYTES_MAX = 128 * 2**20
# The same where the replies to all requests take too much room.
AHEAD_BYTES_MIN = 2**20


class ReplayRequest:
    """One request: for all batches from a number on, or for something else that an engine answers in the same way.

    `async with ReplayRequest(…) as request: async for replies in request.replies(…)`. Replies come in chunks, as raw frames, in the order
    of their arrival; the end marker is among them. The iterator ends when nothing came for `replay_idle_s`, after `replay_total_s`, or when the
    caller's `is_wanted` says no. Raises OSError for an endpoint that cannot be used.
    """

    def __init__(self, endpoint: str, asked: int | bytes, limits: ReceiveLimits, room: Room | None = None, answer_s: float = 0.0) -> None:
        """`asked`: the number of the first batch, or another content of the request. `room`: what the replies to all requests share.

        `answer_s`: how long the first reply may take once the request was sent, where that is longer than `replay_idle_s`.
        """
        self._endpoint = endpoint
        self._content = asked if isinstance(asked, bytes) else asked.to_bytes(8)
        self._limits = limits
        self._answer_s = answer_s
        self._room = room or Room(limits.inboxes_bytes_max)
        self._has_come = asyncio.Event()
        self._line: _Line | None = None
        self._ahead_bytes = 0
        """What of the room is taken."""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        if not has_name(self._endpoint):
            addresses_of(self._endpoint)
        self._dialling = self._loop.create_task(self._dial(), name=f"dial {self._endpoint}")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._dialling.cancel()
        self._hang_up()
        await asyncio.wait([self._dialling])

    async def replies(self, is_wanted: Callable[[], bool]) -> AsyncGenerator[list[list[bytes]], None]:
        clock = self._loop.time
        deadline = clock() + self._limits.replay_total_s
        silent_until = clock() + self._limits.replay_idle_s
        was_sent = False
        while is_wanted() and clock() < min(deadline, silent_until):
            await asyncio.sleep(0)  # others have their turn between two chunks
            self._has_come.clear()
            if replies := self._take():
                yield replies
                silent_until = clock() + self._limits.replay_idle_s
            else:
                await self._wait()
            if not was_sent and self._line is not None and self._line.is_ready:
                was_sent = True
                silent_until = max(silent_until, clock() + self._answer_s)

    async def _wait(self) -> None:
        # Not asyncio.wait_for, which up to Python 3.11 may swallow a cancellation.
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL_S):
                await self._has_come.wait()

    def _take(self) -> list[list[bytes]]:
        """The next replies, at most so many and about so many bytes."""
        line = self._line
        taken: list[list[bytes]] = []
        size = 0
        while line is not None and len(taken) < CHUNK_MAX and size < CHUNK_BYTES_MAX and (reply := line.next_reply()) is not None:
            size += sum(map(len, reply))
            taken.append(reply)
        self._note_ahead()
        return taken

    def _note_come(self) -> None:
        self._note_ahead()
        self._has_come.set()

    def _note_ahead(self) -> None:
        """Take room for what was read ahead, and read on if there is more."""
        line, room = self._line, self._room
        size = 0 if line is None else line.pending_bytes
        room.replies_bytes += size - self._ahead_bytes
        self._ahead_bytes = size
        if line is not None:
            line.read_on(AHEAD_BYTES_MAX if room.replies_bytes < room.replies_bytes_max else AHEAD_BYTES_MIN)

    # The connection

    async def _dial(self) -> None:
        """Connect and ask, again until somebody is there to answer."""
        while self._line is None or not self._line.is_ready:
            self._hang_up()
            for at in await self._addresses():
                with suppress(OSError, TimeoutError):
                    async with asyncio.timeout(CONNECT_S):
                        await self._connect(at)
                        break
            if self._line is not None:
                await self._line.over.wait()
                self._has_come.set()
            await asyncio.sleep(RECONNECT_S)

    async def _addresses(self) -> list[SocketAddress]:
        found = host_and_port(self._endpoint)
        try:
            if found is None or not has_name(self._endpoint):
                return addresses_of(self._endpoint)
            host, port = found
            return socket_addresses(await self._loop.getaddrinfo(host, None, type=socket.SOCK_STREAM), port)
        except (OSError, UnicodeError):
            return []

    async def _connect(self, address: SocketAddress) -> None:
        """Raises OSError."""
        line = _Line(self._content, self._limits.frame_bytes_max, self._note_come)
        sock = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            await self._loop.sock_connect(sock, address.at)
            connect = self._loop.create_connection if isinstance(address.at, tuple) else self._loop.create_unix_connection
            await connect(lambda: line, sock=sock)
        except BaseException:
            sock.close()
            raise
        self._line = line

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None
        self._note_ahead()


class _Line(asyncio.Protocol):
    """The connection of one request. `over` is set when it is lost; what came before can still be read."""

    def __init__(self, content: bytes, frame_bytes_max: int, note_come: Callable[[], None]) -> None:
        self._zmtp = Zmtp(b"DEALER", ANSWERERS, frame_bytes_max)
        self._content = content
        self._transport: asyncio.Transport | None = None
        self._first: deque[list[bytes]] = deque()
        """Replies that came with the end of the handshake."""
        self._is_paused = self._is_broken = False
        self._note_come: Callable[[], None] | None = note_come
        self.over = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether the request was sent."""
        return self._zmtp.is_ready

    @property
    def is_lost(self) -> bool:
        return self.over.is_set()

    @property
    def pending_bytes(self) -> int:
        """Of what was read ahead."""
        return 0 if self._is_broken else self._zmtp.pending_bytes

    def next_reply(self) -> list[bytes] | None:
        """The next one, None where there is none yet."""
        return self._first.popleft() if self._first else self._read()

    def read_on(self, bytes_max: int) -> None:
        """Read no further ahead than this, but at least the next frame, and the message that it belongs to."""
        transport, pending = self._transport, self.pending_bytes
        if transport is None or self.is_lost:
            return
        is_amid = self._zmtp.is_amid_message or pending < self._zmtp.wanted_bytes
        if not self._is_paused and pending > bytes_max and not is_amid:
            self._is_paused = True
            transport.pause_reading()
        elif self._is_paused and (pending <= bytes_max // 2 or is_amid):
            self._is_paused = False
            transport.resume_reading()

    def close(self) -> None:
        """Idempotent."""
        self._note_come = None
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not derived from it
        self._send()

    def data_received(self, data: bytes) -> None:
        self._zmtp.receive(data)
        if not self._zmtp.is_ready:
            first = self._read()
            if first is not None:
                self._first.append(first)
            if not self._zmtp.is_ready:
                return
            self._transport_write(message(b"", self._content))
        if self._note_come is not None:
            self._note_come()

    def connection_lost(self, error: Exception | None) -> None:
        self.over.set()

    def _read(self) -> list[bytes] | None:
        """The next message."""
        if self._is_broken:
            return None
        try:
            while not (found := self._zmtp.messages(1)) and self._zmtp.is_cut:
                pass
        except ZmtpError:
            self._is_broken = True
            self.close()
            return None
        self._send()
        return found[0] if found else None

    def _send(self) -> None:
        if self._zmtp.outgoing:
            self._transport_write(bytes(self._zmtp.outgoing))
            self._zmtp.outgoing.clear()

    def _transport_write(self, data: bytes) -> None:
        if self._transport is not None and not self.is_lost:
            self._transport.write(data)

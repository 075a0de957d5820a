"""One connection over which an engine publishes: we are its SUB."""

import socket
import time
from collections.abc import Callable

from indexer.limits import ReceiveLimits
from indexer.receiving.reactor import Reactor
from indexer.receiving.room import Room
from indexer.receiving.zmtp import Zmtp, ZmtpError, subscription

PUBLISHERS = frozenset({b"PUB", b"XPUB"})
# What is read at a stretch, and how many messages of it are sorted at a stretch, so that a flood from one engine delays the others little.
READ_BYTES = 65_536
TURN_MAX = 512
# Who sends more than there is room for is read again after so long. Its own socket's queue fills meanwhile, and drops what it cannot hold.
OVERFLOW_PAUSE_S = 0.01
DISCONNECTED = "disconnected"


class Connection:
    """Used by the receiving thread only. `began` is called once the peer is known to be a publisher, `take` with messages, in their order, `ended`
    with the reason, after the last message that came. `take` returns whether there was too little room for them."""

    def __init__(
        self,
        reactor: Reactor,
        sock: socket.socket,
        topic: bytes,
        limits: ReceiveLimits,
        room: Room,
        *,
        began: Callable[["Connection"], None],
        take: Callable[["Connection", list[list[bytes]]], bool],
        ended: Callable[["Connection", str], None],
    ) -> None:
        self._reactor = reactor
        self._socket = sock
        self._topic = topic
        self._limits = limits
        self._room = room
        self._began, self._take, self._ended = began, take, ended
        self._zmtp = Zmtp(b"SUB", PUBLISHERS, limits.frame_bytes_max)
        self._is_open = True
        self._is_paused = False
        self._has_begun = False
        self._heard_s = time.monotonic()
        self._pinged_s: float | None = None
        """When the first ping was sent that nothing came after."""
        sock.setblocking(False)
        if sock.family != getattr(socket, "AF_UNIX", None):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reactor.watch(sock, self._read)
        reactor.at(self._heard_s + limits.heartbeat_timeout_s, self._check_handshake)
        self._send()

    @property
    def peer_host(self) -> str:
        """The address that the peer has."""
        try:
            return str(self._socket.getpeername()[0])
        except (OSError, IndexError):
            return ""

    def close(self) -> None:
        """Nothing is called after this. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._zmtp.discard()  # timers still know this connection
            self._room.note_pending(self, 0)
            self._reactor.forget(self._socket)
            self._socket.close()

    def cut(self) -> None:
        """Close it: what it is about to send takes too much room."""
        self._end("a message that takes too much room")

    def _end(self, reason: str) -> None:
        if self._is_open:
            self.close()
            self._ended(self, reason)

    # What comes

    def _read(self) -> None:
        if self._zmtp.is_cut or self._is_paused or not self._is_open:
            return
        try:
            data = self._socket.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(DISCONNECTED if self._has_begun else self._failed("the connection was closed"))
            return
        self._heard_s, self._pinged_s = time.monotonic(), None
        self._zmtp.receive(data)
        self._sort()

    def _sort(self) -> None:
        if not self._is_open:
            return
        try:
            messages = self._zmtp.messages(TURN_MAX)
        except ZmtpError as error:
            self._end(f"{DISCONNECTED}: it sent {error}" if self._has_begun else self._failed(str(error)))
            return
        if self._zmtp.is_ready and not self._has_begun:
            self._has_begun = True
            self._zmtp.outgoing += subscription(self._topic)
            self._reactor.at(self._heard_s + self._limits.heartbeat_s, self._beat)
            self._began(self)
        self._send()
        if not messages and self._zmtp.pending_bytes <= READ_BYTES and not self._zmtp.is_cut:
            return
        is_too_much = bool(messages) and self._take(self, messages)
        self._room.note_pending(self, pending if (pending := self._zmtp.pending_bytes) > READ_BYTES else 0)
        if not self._is_open:
            return
        if is_too_much:
            self._pause()
        elif self._zmtp.is_cut:
            self._reactor.again(self._sort)

    def _pause(self) -> None:
        self._is_paused = True
        self._reactor.forget(self._socket)
        self._reactor.at(time.monotonic() + OVERFLOW_PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        if self._is_open:
            self._is_paused = False
            self._heard_s, self._pinged_s = time.monotonic(), None
            self._reactor.watch(self._socket, self._read)
            self._sort()

    # What is sent

    def _send(self) -> None:
        """Send what waits, as far as the peer takes it. The rest goes with the next heartbeat; it is a few bytes."""
        outgoing = self._zmtp.outgoing
        while outgoing:
            try:
                del outgoing[: self._socket.send(outgoing)]
            except BlockingIOError:
                return
            except OSError:
                outgoing.clear()  # reading says why

    def _check_handshake(self) -> None:
        if self._is_open and not self._has_begun:
            self._end(self._failed("no answer"))

    def _beat(self) -> None:
        """Once in each interval: is anybody there?"""
        if not self._is_open:
            return
        now_s = time.monotonic()
        self._reactor.at(now_s + self._limits.heartbeat_s, self._beat)
        if self._is_paused or self._zmtp.is_cut or now_s - self._heard_s < self._limits.heartbeat_s / 2:
            return
        if self._pinged_s is None:
            self._pinged_s = now_s
        elif now_s - self._pinged_s >= self._limits.heartbeat_timeout_s:
            self._end(DISCONNECTED)
            return
        if not self._zmtp.outgoing:
            self._zmtp.ping()
        self._send()

    @staticmethod
    def _failed(why: str) -> str:
        return f"handshake failed: {why}"

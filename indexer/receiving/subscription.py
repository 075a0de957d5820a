"""One stream's connection to its engine, made again whenever it is lost.

Each connection is an epoch of the inbox: what it brought is in there before the next one begins.
"""

import errno
import itertools
import os
import socket
import time
from collections.abc import Callable

from indexer.limits import ReceiveLimits
from indexer.receiving.addresses import SocketAddress, addresses_of, has_name, host_and_port, socket_addresses
from indexer.receiving.connection import DISCONNECTED, Connection
from indexer.receiving.inbox import Inbox
from indexer.receiving.name_lookup import Outcome
from indexer.receiving.reactor import Reactor
from indexer.receiving.room import Room

# How long an address may take to accept a connection; where a name has several, the next one is tried after it.
CONNECT_S = 2.0
# Where many engines are away, so many attempts a second are made for all of them.
ATTEMPTS_PER_S = 500
# A name is not looked up again before this.
LOOK_UP_S = 1.0


class Pace:
    """How often engines that are away are dialled."""

    def __init__(self) -> None:
        self.away = 0

    def pause_s(self, reconnect_s: float) -> float:
        """Until the next attempt."""
        return max(reconnect_s, self.away / ATTEMPTS_PER_S)


class Subscription:
    """Dials one engine and fills its stream's inbox. Used by the receiving thread only. `changed` is called with the inbox."""

    def __init__(
        self,
        reactor: Reactor,
        endpoint: str,
        topic: bytes,
        inbox: Inbox,
        limits: ReceiveLimits,
        *,
        room: Room,
        pace: Pace,
        changed: Callable[[Inbox], None],
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._topic = topic
        self._limits = limits
        self._room = room
        self._pace = pace
        self._changed = changed
        self.inbox = inbox
        self._addresses: list[SocketAddress] = []
        self._untried = 0
        """How many of the addresses were not dialled yet since they were looked up."""
        self._looked_up_s = -LOOK_UP_S
        self._dialled: socket.socket | None = None
        self._attempts = itertools.count()
        self._attempt = next(self._attempts)
        """Timers and look-ups of an earlier attempt count no more."""
        self._connection: Connection | None = None
        self._is_open = False

    def open(self) -> None:
        """Begin to dial. Raises OSError for an endpoint that cannot be used."""
        if not has_name(self._endpoint):
            self._addresses = addresses_of(self._endpoint)
        self._is_open = True
        self._pace.away += 1
        self.inbox.error = self.inbox.error or f"cannot connect to {self._endpoint} so far"
        self._dial()

    def close(self) -> None:
        """Idempotent."""
        if not self._is_open:
            return
        self._is_open = False
        self._attempt = next(self._attempts)
        self._hang_up()
        if self._connection is None or not self.inbox.connected:
            self._pace.away -= 1
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        self.inbox.connected = False

    # Dialling

    def _dial(self) -> None:
        attempt = self._attempt
        if not self._untried and has_name(self._endpoint) and time.monotonic() - self._looked_up_s >= LOOK_UP_S:
            self._looked_up_s = time.monotonic()
            host, port = host_and_port(self._endpoint) or ("", 0)
            self._reactor.look_up(host, lambda outcome: self._note_addresses(attempt, outcome, port))
            return
        if not self._addresses:
            self._retry()
            return
        self._untried = self._untried or len(self._addresses)
        address = self._addresses[-self._untried]
        self._untried -= 1
        try:
            sock = self._dialled = socket.socket(address.family, socket.SOCK_STREAM)
        except OSError as error:  # there are no more descriptors, or no IPv6
            self._fail(error.errno or errno.EMFILE)
            return
        sock.setblocking(False)
        code = sock.connect_ex(address.at)
        if code in (0, errno.EINPROGRESS):
            self._reactor.watch(sock, lambda: self._note_connected(attempt), for_writing=True)
            self._reactor.at(time.monotonic() + CONNECT_S, lambda: self._give_up(attempt))
        else:
            self._fail(code)

    def _note_addresses(self, attempt: int, outcome: Outcome, port: int) -> None:
        if attempt == self._attempt:
            self._addresses = [] if isinstance(outcome, Exception) else socket_addresses(outcome, port)
            self._untried = len(self._addresses)
            self._dial()

    def _note_connected(self, attempt: int) -> None:
        sock = self._dialled
        if attempt != self._attempt or sock is None:
            return
        if code := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._fail(code)
            return
        try:
            is_own = sock.getpeername() == sock.getsockname() and sock.family != getattr(socket, "AF_UNIX", None)
        except OSError:
            return  # not yet
        if is_own:  # who dials a port of this machine that nobody has may get that port for himself
            self._fail(errno.ECONNREFUSED)
            return
        self._reactor.forget(sock)
        self._dialled = None
        self._attempt = next(self._attempts)
        self._connection = Connection(
            *(self._reactor, sock, self._topic, self._limits, self._room), began=self._begin, take=self._take, ended=self._end
        )

    def _give_up(self, attempt: int) -> None:
        if attempt == self._attempt and self._dialled is not None:
            self._fail(errno.ETIMEDOUT)

    def _fail(self, code: int) -> None:
        self._hang_up()
        if not self.inbox.epoch:
            self.inbox.error = f"cannot connect to {self._endpoint} so far: {os.strerror(code)}"
        self._retry()

    def _hang_up(self) -> None:
        if self._dialled is not None:
            self._reactor.forget(self._dialled)
            self._dialled.close()
            self._dialled = None

    def _retry(self) -> None:
        """The next address at once, or all of them again after a pause."""
        attempt = self._attempt = next(self._attempts)
        pause_s = 0.0 if self._untried else self._pace.pause_s(self._limits.reconnect_s)
        self._reactor.at(time.monotonic() + pause_s, lambda: self._dial_again(attempt))

    def _dial_again(self, attempt: int) -> None:
        if attempt == self._attempt:
            self._dial()

    # The connection

    def _begin(self, _: Connection) -> None:
        self._pace.away -= 1
        self._untried = 0
        self.inbox.begin()
        self._changed(self.inbox)

    def _take(self, _: Connection, messages: list[list[bytes]]) -> bool:
        inbox, topic = self.inbox, self._topic
        dropped = inbox.dropped
        if topic:
            messages = [frames for frames in messages if frames[0].startswith(topic)]
        if messages:
            inbox.put_all(messages)
        self._changed(inbox)
        return inbox.dropped > dropped

    def _end(self, _: Connection, reason: str) -> None:
        self._connection = None
        inbox = self.inbox
        if inbox.connected:
            self._pace.away += 1
            inbox.connected = False
            inbox.error = reason
        else:
            inbox.error = f"{reason}: {self._endpoint} is not a ZMQ publisher" if not reason.startswith(DISCONNECTED) else reason
        self._changed(inbox)
        self._retry()

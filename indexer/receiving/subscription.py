"""One stream's SUB socket, which dials the engine.

One socket serves one connection. When that goes down the socket is emptied and replaced, so that each frame is known to belong to the
connection it came by: its epoch.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator

import zmq
from zmq.utils.monitor import parse_monitor_message

from indexer.limits import ReceiveLimits
from indexer.receiving.address_family import has_name, is_ipv6
from indexer.receiving.inbox import Inbox

Context = zmq.Context[zmq.Socket[bytes]]

# A socket gives up its turn after this number of messages, so that a flood from one engine delays the others little.
TURN_MAX = 256
# Pause before a lost connection is opened again: well below a second, to miss little.
REOPEN_S = 0.1
# How long a name is dialled in one address family before the other is tried: it may have other addresses by now. It doubles until the engine answers.
FAMILY_S = 2.0
FAMILY_MAX_S = 16.0
NEVER = float("inf")
FAILED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
MONITORED = zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED | FAILED


class SubSocket(ABC):
    """A SUB socket and its monitor, used by the receiving thread only. Both are None while it is closed."""

    def __init__(self, context: Context, endpoint: str, limits: ReceiveLimits) -> None:
        self._context = context
        self._endpoint = endpoint
        self._is_ipv6 = is_ipv6(endpoint)
        self._limits = limits
        self.socket: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None

    def open(self) -> None:
        """Raises zmq.ZMQError for an endpoint that cannot be used."""
        limits = self._limits
        sub = self._context.socket(zmq.SUB)
        try:
            sub.linger = 0
            sub.ipv6 = self._is_ipv6
            sub.rcvhwm = limits.receive_hwm
            sub.maxmsgsize = limits.frame_bytes_max
            sub.reconnect_ivl = _milliseconds(limits.reconnect_s)
            sub.heartbeat_ivl = _milliseconds(limits.heartbeat_s)
            sub.heartbeat_timeout = _milliseconds(limits.heartbeat_timeout_s)
            sub.handshake_ivl = _milliseconds(limits.heartbeat_timeout_s)
            self.monitor = sub.get_monitor_socket(MONITORED)
            self._attach(sub)
        except BaseException:
            if self.monitor is not None:
                sub.disable_monitor()
                self.monitor.close()
                self.monitor = None
            sub.close()
            raise
        self.socket = sub

    @abstractmethod
    def _attach(self, sub: "zmq.Socket[bytes]") -> None:
        """Subscribe, and connect or bind."""

    @abstractmethod
    def take(self) -> Iterable[Inbox]:
        """Take what the monitor and the socket have. Returns the inboxes that changed."""

    def close(self) -> None:
        """Idempotent."""
        if self.socket is not None and self.monitor is not None:
            self.socket.disable_monitor()
            self.monitor.close()
            self.socket.close()
        self.socket = self.monitor = None

    def _events(self) -> Iterator[tuple[int, int]]:
        """The monitor's events in order: event and value, which is a file descriptor for a disconnect."""
        while self.monitor is not None:
            try:
                message = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return
            yield message["event"], message["value"]


class Subscription(SubSocket):
    """Dials one engine and fills its stream's inbox. `reopen_at_s`: when it is due to be opened again, by the monotonic clock."""

    def __init__(self, context: Context, endpoint: str, topic: bytes, inbox: Inbox, limits: ReceiveLimits, *, needs_ipv6: bool) -> None:
        """`needs_ipv6`: whether it is dialled by IPv6 first."""
        super().__init__(context, endpoint, limits)
        self._is_ipv6 = needs_ipv6
        self._topic = topic
        self.inbox = inbox
        self.reopen_at_s = NEVER
        self._has_name = has_name(endpoint)
        self._family_s = FAMILY_S

    def _attach(self, sub: "zmq.Socket[bytes]") -> None:
        sub.subscribe(self._topic)
        sub.connect(self._endpoint)
        self.reopen_at_s = time.monotonic() + self._family_s if self._has_name else NEVER
        self.inbox.error = self.inbox.error or f"cannot connect to {self._endpoint} so far"

    def close(self) -> None:
        super().close()
        self.inbox.connected = False

    def reopen(self) -> None:
        """Open it again; in the other address family if the engine did not answer in this one. Raises zmq.ZMQError."""
        if self.socket is not None:
            self.close()
            self._is_ipv6 = not self._is_ipv6
            self._family_s = min(2 * self._family_s, FAMILY_MAX_S)
        self.open()

    def take(self) -> Iterable[Inbox]:
        # First what the monitor says: a new connection's frames must not pass for the old one's.
        for event, _ in self._events():
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.inbox.begin()
                self.reopen_at_s, self._family_s = NEVER, FAMILY_S
            else:
                self._receive(None)
                self.close()
                self.inbox.error = "disconnected" if event == zmq.EVENT_DISCONNECTED else f"handshake failed: {self._endpoint} is not a ZMQ publisher"
                self.reopen_at_s = time.monotonic() + REOPEN_S
        if self.socket is not None:
            self._receive(TURN_MAX)
        return (self.inbox,)

    def _receive(self, turn_max: int | None) -> None:
        assert self.socket is not None, "only an open subscription is read"
        count = 0
        try:
            while turn_max is None or count < turn_max:
                self.inbox.put(_message(self.socket))
                count += 1
        except zmq.Again:
            pass


def _message(socket: "zmq.Socket[bytes]") -> list[bytes]:
    """All parts of the next message. At two thirds of what recv_multipart costs: a frame knows by itself whether more follow.

    Raises zmq.Again where there is none.
    """
    frame = socket.recv(zmq.NOBLOCK, copy=False)
    parts = [frame.bytes]
    while frame.more:
        frame = socket.recv(zmq.NOBLOCK, copy=False)
        parts.append(frame.bytes)
    return parts


def _milliseconds(seconds: float) -> int:
    return max(1, int(seconds * 1000))

"""Receiving: one thread takes frames off every engine's PUB socket and does nothing else.

A SUB socket that nobody polls while it reconnects loses everything published meanwhile, so this thread never waits for decoding,
applying, a replay or a request. What it takes goes into a bounded inbox per stream; when one is full its oldest frames go, which the
sequence shows as a gap.

One socket serves one connection. When that goes down the socket is emptied and replaced, so that each frame is known to belong to the
connection it came by: its epoch.

    engine PUB ──▶ SUB + monitor ──▶ Inbox(epoch, frames) ──▶ the stream's task, woken through the event loop
"""

import asyncio
import logging
import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import zmq
from zmq.utils.monitor import parse_monitor_message

from indexer.inbox import Inbox, ReceiveLimits

log = logging.getLogger(__name__)

Context = zmq.Context[zmq.Socket[bytes]]

# A socket gives up its turn after so many messages, so that a flood from one engine delays the others by little.
TURN_MAX = 256
# Pause before a lost connection is opened again: well below a second, to miss little.
REOPEN_S = 0.1
# Pause after an error of ours, so that it does not fill the log.
AFTER_FAILURE_S = 0.1
MONITORED = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)


class _Subscription:
    """One stream's socket and its monitor; lives in the receiving thread."""

    def __init__(self, context: Context, endpoint: str, topic: bytes, inbox: Inbox, limits: ReceiveLimits) -> None:
        self._context = context
        self._endpoint = endpoint
        self._topic = topic
        self._limits = limits
        self.inbox = inbox
        self.reopen_at_s = 0.0
        self.socket: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None

    def open(self) -> None:
        """Raises zmq.ZMQError for an endpoint that cannot be connected to."""
        limits = self._limits
        sub = self._context.socket(zmq.SUB)
        try:
            sub.linger = 0
            sub.rcvhwm = limits.receive_hwm
            sub.maxmsgsize = limits.frame_bytes_max
            sub.reconnect_ivl = int(limits.reconnect_s * 1000)
            sub.heartbeat_ivl = int(limits.heartbeat_s * 1000)
            sub.heartbeat_timeout = int(limits.heartbeat_timeout_s * 1000)
            sub.handshake_ivl = int(limits.heartbeat_timeout_s * 1000)
            sub.subscribe(self._topic)
            self.monitor = sub.get_monitor_socket(MONITORED)
            sub.connect(self._endpoint)
        except BaseException:
            if self.monitor is not None:
                sub.disable_monitor()
                self.monitor.close()
                self.monitor = None
            sub.close()
            raise
        self.socket = sub

    def close(self) -> None:
        if self.socket is not None and self.monitor is not None:
            self.socket.disable_monitor()
            self.monitor.close()
            self.socket.close()
        self.socket = self.monitor = None
        self.inbox.connected = False

    def receive(self, turn_max: int | None = TURN_MAX) -> None:
        """Move messages into the inbox."""
        assert self.socket is not None, "only an open subscription is polled"
        count = 0
        try:
            while turn_max is None or count < turn_max:
                self.inbox.put(self.socket.recv_multipart(zmq.NOBLOCK))
                count += 1
        except zmq.Again:
            pass

    def watch(self) -> None:
        """Take what the monitor says: a connection came up, or went down."""
        while self.monitor is not None:
            try:
                event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self.inbox.epoch += 1
                self.inbox.connected = True
                self.inbox.error = None
            else:
                self.inbox.error = "disconnected" if event == zmq.EVENT_DISCONNECTED else "handshake failed: not a ZMQ publisher"
                self.receive(turn_max=None)
                self.close()
                self.reopen_at_s = time.monotonic() + REOPEN_S


class Subscriber:
    """The receiving thread. `async with Subscriber(context) as subscriber: await subscriber.add(…)`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._subscriptions: dict[Inbox, _Subscription] = {}
        self._closed: set[_Subscription] = set()
        self._by_socket: dict[zmq.Socket[bytes], _Subscription] = {}
        self._poller = zmq.Poller()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="receive", daemon=True)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._bell, self._listener = socket.socketpair()
        self._bell.setblocking(False)
        self._listener.setblocking(False)
        self._poller.register(self._listener, zmq.POLLIN)
        self._thread.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping = True
        self._ring()
        await asyncio.to_thread(self._thread.join)
        self._bell.close()
        self._listener.close()

    async def add(self, endpoint: str, topic: bytes, inbox: Inbox, limits: ReceiveLimits) -> None:
        """Connect to an engine and fill `inbox` from now on. Raises zmq.ZMQError for an endpoint that cannot be connected to."""
        subscription = _Subscription(self._context, endpoint, topic, inbox, limits)

        def open_subscription() -> None:
            subscription.open()
            self._subscriptions[inbox] = subscription
            self._register(subscription)

        await self._in_thread(open_subscription)

    async def remove(self, inbox: Inbox) -> None:
        """Disconnect; nothing is put into `inbox` afterwards. Idempotent."""

        def close_subscription() -> None:
            subscription = self._subscriptions.pop(inbox, None)
            if subscription is not None:
                self._closed.discard(subscription)
                self._unregister(subscription)
                subscription.close()

        await self._in_thread(close_subscription)

    async def _in_thread(self, act: Callable[[], None]) -> None:
        done: asyncio.Future[None] = self._loop.create_future()

        def report(error: BaseException | None) -> None:
            if done.done():
                return
            if error is None:
                done.set_result(None)
            else:
                done.set_exception(error)

        def command() -> None:
            try:
                act()
            except zmq.ZMQError as error:
                self._loop.call_soon_threadsafe(report, error)
            else:
                self._loop.call_soon_threadsafe(report, None)

        self._commands.put(command)
        self._ring()
        await done

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it is ringing already
            self._bell.send(b"!")

    # From here on: the receiving thread.

    def _run(self) -> None:
        try:
            while not self._stopping:
                try:
                    self._turn()
                except Exception:  # an error of ours must not end receiving for all streams
                    log.exception("receiving failed")
                    time.sleep(AFTER_FAILURE_S)
        finally:
            for subscription in self._subscriptions.values():
                subscription.close()

    def _turn(self) -> None:
        changed: set[Inbox] = set()
        for ready, _ in self._poller.poll(self._timeout_ms()):
            if ready is self._listener or ready == self._listener.fileno():
                self._obey()
                continue
            subscription = self._by_socket.get(ready)
            if subscription is None:
                continue  # closed by something earlier in this turn
            # First what the monitor says: a new connection's frames must not pass for the old one's.
            self._watch(subscription)
            if subscription.socket is not None:
                subscription.receive()
            changed.add(subscription.inbox)
        self._reopen()
        if changed:
            self._loop.call_soon_threadsafe(_wake_all, changed)

    def _timeout_ms(self) -> int | None:
        if not self._closed:
            return None
        soonest_s = min(subscription.reopen_at_s for subscription in self._closed)
        return max(0, int((soonest_s - time.monotonic()) * 1000) + 1)

    def _obey(self) -> None:
        with suppress(BlockingIOError):
            self._listener.recv(4096)
        while not self._commands.empty():
            self._commands.get()()

    def _watch(self, subscription: _Subscription) -> None:
        before = subscription.socket, subscription.monitor
        subscription.watch()
        if subscription.socket is None:
            self._closed.add(subscription)
            for gone in before:
                self._forget(gone)

    def _reopen(self) -> None:
        now_s = time.monotonic()
        for subscription in [due for due in self._closed if due.reopen_at_s <= now_s]:
            try:
                subscription.open()
            except zmq.ZMQError as error:
                subscription.inbox.error = str(error)
                subscription.reopen_at_s = now_s + 1.0
            else:
                self._closed.remove(subscription)
                self._register(subscription)

    def _register(self, subscription: _Subscription) -> None:
        for opened in (subscription.socket, subscription.monitor):
            assert opened is not None, "an open subscription has both sockets"
            self._by_socket[opened] = subscription
            self._poller.register(opened, zmq.POLLIN)

    def _unregister(self, subscription: _Subscription) -> None:
        self._forget(subscription.socket)
        self._forget(subscription.monitor)

    def _forget(self, gone: "zmq.Socket[bytes] | None") -> None:
        if gone is not None and self._by_socket.pop(gone, None) is not None:
            self._poller.unregister(gone)


def _wake_all(inboxes: set[Inbox]) -> None:
    for inbox in inboxes:
        inbox.wake()

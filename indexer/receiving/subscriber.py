"""Receiving: one thread takes frames off every engine's PUB socket and does nothing else.

A SUB socket that is not polled while it reconnects misses everything published meanwhile, so this thread never waits for decoding,
applying, a replay or a request. What it takes goes into a bounded inbox per stream; when one is full its oldest frames go, which the
sequence shows as a gap.

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

from indexer.limits import ReceiveLimits
from indexer.receiving.address_family import needs_ipv6
from indexer.receiving.inbox import Inbox
from indexer.receiving.listening import Announced, Listening
from indexer.receiving.subscription import NEVER, Context, Subscription, SubSocket

log = logging.getLogger(__name__)

# Pause after an error of ours, so that it does not fill the log.
AFTER_FAILURE_S = 0.1


class Subscriber:
    """The receiving thread. `async with Subscriber(context) as subscriber: await subscriber.add(…)`."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._commands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._subscriptions: dict[Inbox, Subscription] = {}
        self._due: set[Subscription] = set()
        """Subscriptions that are to be opened again at a time of their own."""
        self._listening: list[Listening] = []
        self._by_socket: dict[zmq.Socket[bytes], SubSocket] = {}
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
        subscription = Subscription(self._context, endpoint, topic, inbox, limits, needs_ipv6=await needs_ipv6(endpoint))

        def open_subscription() -> None:
            subscription.open()
            self._subscriptions[inbox] = subscription
            self._register(subscription)
            self._note_due(subscription)

        await self._in_thread(open_subscription)

    async def remove(self, inbox: Inbox) -> None:
        """Disconnect; nothing is put into `inbox` afterwards. Idempotent."""

        def close_subscription() -> None:
            for listening in self._listening:
                listening.remove(inbox)
                listening.unblock()
            subscription = self._subscriptions.pop(inbox, None)
            if subscription is not None:
                self._due.discard(subscription)
                self._unregister(subscription)
                subscription.close()

        await self._in_thread(close_subscription)

    async def listen(
        self, endpoint: str, rank: int, limits: ReceiveLimits, adopt: Callable[[Announced], None], refuse: Callable[[str], None]
    ) -> None:
        """Have engines dial us at this endpoint. `adopt` is called in the event loop for each pod that was not known; `refuse` in the
        receiving thread for each message that belongs to no pod.

        Raises zmq.ZMQError for an endpoint that cannot be bound.
        """

        def announce(announced: Announced) -> None:
            self._loop.call_soon_threadsafe(adopt, announced)

        listening = Listening(self._context, endpoint, rank, limits, announce, refuse)

        def open_listening() -> None:
            listening.open()
            self._listening.append(listening)
            self._register(listening)

        await self._in_thread(open_listening)

    async def expect(self, pod: str, model: str, rank: int, inbox: Inbox) -> None:
        """What a pod that dials us publishes goes into this inbox from now on."""

        def expect_pod() -> None:
            for listening in self._listening:
                if listening.rank == rank:
                    listening.expect(pod, model, inbox)

        await self._in_thread(expect_pod)

    async def block(self, inbox: Inbox) -> None:
        """Listen no more to the pod that fills this inbox."""

        def block_pod() -> None:
            for listening in self._listening:
                listening.block(inbox)

        await self._in_thread(block_pod)

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
            for opened in (*self._subscriptions.values(), *self._listening):
                opened.close()

    def _turn(self) -> None:
        changed: set[Inbox] = set()
        for ready, _ in self._poller.poll(self._timeout_ms()):
            if ready is self._listener or ready == self._listener.fileno():
                self._obey()
                continue
            source = self._by_socket.get(ready)
            if source is None:
                continue  # closed by something earlier in this turn
            sockets = source.socket, source.monitor
            changed.update(source.take())
            if isinstance(source, Subscription):
                self._note_due(source)
                if source.socket is None:
                    for gone in sockets:
                        self._forget(gone)
        self._reopen()
        if changed:
            self._loop.call_soon_threadsafe(_wake_all, changed)

    def _timeout_ms(self) -> int | None:
        if not self._due:
            return None
        soonest_s = min(subscription.reopen_at_s for subscription in self._due)
        return max(0, int((soonest_s - time.monotonic()) * 1000) + 1)

    def _obey(self) -> None:
        with suppress(BlockingIOError):
            self._listener.recv(4096)
        while not self._commands.empty():
            self._commands.get()()

    def _reopen(self) -> None:
        now_s = time.monotonic()
        for subscription in [due for due in self._due if due.reopen_at_s <= now_s]:
            self._unregister(subscription)
            try:
                subscription.reopen()
            except zmq.ZMQError as error:
                subscription.inbox.error = str(error)
                subscription.reopen_at_s = now_s + 1.0
            else:
                self._register(subscription)
                self._note_due(subscription)

    def _note_due(self, subscription: Subscription) -> None:
        if subscription.reopen_at_s < NEVER:
            self._due.add(subscription)
        else:
            self._due.discard(subscription)

    def _register(self, subscription: SubSocket) -> None:
        for opened in (subscription.socket, subscription.monitor):
            assert opened is not None, "an open subscription has both sockets"
            self._by_socket[opened] = subscription
            self._poller.register(opened, zmq.POLLIN)

    def _unregister(self, subscription: Subscription) -> None:
        self._forget(subscription.socket)
        self._forget(subscription.monitor)

    def _forget(self, gone: "zmq.Socket[bytes] | None") -> None:
        if gone is not None and self._by_socket.pop(gone, None) is not None:
            self._poller.unregister(gone)


def _wake_all(inboxes: set[Inbox]) -> None:
    for inbox in inboxes:
        inbox.wake()

"""Receiving: one thread takes frames off every engine's connection and does nothing else.

What an engine publishes while it is not read waits in its own socket's queue, which drops what it cannot hold; so this thread never waits for
decoding, applying, a replay or a request. What it takes goes into a bounded inbox per stream; when one is full its oldest frames go, which the
sequence shows as a gap.

    engine PUB ──▶ Connection ──▶ Inbox(epoch, frames) ──▶ the stream's task, woken through the event loop
"""

import asyncio
import errno
import logging
import os
import resource
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from indexer.limits import ReceiveLimits
from indexer.receiving.inbox import Inbox
from indexer.receiving.listening import Announced, Listening
from indexer.receiving.reactor import Reactor
from indexer.receiving.room import Room
from indexer.receiving.subscription import Pace, Subscription

log = logging.getLogger(__name__)

# Pause after an error of ours, so that it does not fill the log.
AFTER_FAILURE_S = 0.1
# Descriptors that engines' connections leave to all else.
DESCRIPTORS_SPARE = 64


class Subscriber:
    """The receiving thread. `async with Subscriber(room) as subscriber: await subscriber.add(…)`."""

    def __init__(self, room: Room) -> None:
        """`room`: shared with the inboxes of what is added."""
        self._room = room
        self._pace = Pace()
        self._subscriptions: dict[Inbox, Subscription] = {}
        self._listening: list[Listening] = []
        self._changed: set[Inbox] = set()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="receive", daemon=True)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._reactor = Reactor()
        self._thread.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._reactor.call(self._stop)
        await asyncio.to_thread(self._thread.join)
        self._reactor.close()

    async def add(self, endpoint: str, topic: bytes, inbox: Inbox, limits: ReceiveLimits) -> None:
        """Connect to an engine and fill `inbox` from now on. Raises OSError for an endpoint that cannot be connected to, and where the
        system allows no more open files."""
        subscription = Subscription(*(self._reactor, endpoint, topic, inbox, limits), room=self._room, pace=self._pace, changed=self._changed.add)

        def open_subscription() -> None:
            if len(self._subscriptions) + DESCRIPTORS_SPARE >= resource.getrlimit(resource.RLIMIT_NOFILE)[0]:
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            subscription.open()
            self._subscriptions[inbox] = subscription

        await self._in_thread(open_subscription)

    async def remove(self, inbox: Inbox) -> None:
        """Disconnect; nothing is put into `inbox` afterwards. Idempotent."""

        def close_subscription() -> None:
            for listening in self._listening:
                listening.remove(inbox)
                listening.unblock()
            subscription = self._subscriptions.pop(inbox, None)
            if subscription is not None:
                subscription.close()

        await self._in_thread(close_subscription)

    async def listen(
        self, endpoint: str, rank: int, limits: ReceiveLimits, adopt: Callable[[Announced], None], refuse: Callable[[str, int], None]
    ) -> None:
        """Have engines dial us at this endpoint. `adopt` is called in the event loop for each pod that was not known; `refuse` in the
        receiving thread with the number of messages that belong to no pod.

        Raises OSError for an endpoint that cannot be bound.
        """

        def announce(announced: Announced) -> None:
            self._loop.call_soon_threadsafe(adopt, announced)

        listening = Listening(*(self._reactor, endpoint, rank, limits), room=self._room, announce=announce, refuse=refuse, changed=self._changed.add)

        def open_listening() -> None:
            listening.open()
            self._listening.append(listening)

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
            except OSError as error:
                self._loop.call_soon_threadsafe(report, error)
            else:
                self._loop.call_soon_threadsafe(report, None)

        self._reactor.call(command)
        await done

    # From here on: the receiving thread.

    def _stop(self) -> None:
        self._stopping = True

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
            for listening in self._listening:
                listening.close()

    def _turn(self) -> None:
        self._reactor.turn()
        if self._changed:
            changed = self._changed.copy()
            self._changed.clear()
            self._loop.call_soon_threadsafe(_wake_all, changed)


def _wake_all(inboxes: set[Inbox]) -> None:
    for inbox in inboxes:
        inbox.wake()

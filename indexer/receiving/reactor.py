"""What the receiving thread waits for: sockets, moments, and calls from other threads. Nothing that it calls may wait."""

import heapq
import itertools
import queue
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

from indexer.receiving.name_lookup import NAMES, Outcome

Act = Callable[[], None]


class Reactor:
    """One thread's sockets and timers. A turn costs by what is ready, and not by what is watched.

    All but `call` belongs to the thread that takes the turns.
    """

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._calls: queue.SimpleQueue[Act] = queue.SimpleQueue()
        self._bell, self._listener = socket.socketpair()
        self._bell.setblocking(False)
        self._listener.setblocking(False)
        self._selector.register(self._listener, selectors.EVENT_READ, self._answer)
        self._timers: list[tuple[float, int, Act]] = []
        self._numbers = itertools.count()
        self._again: list[Act] = []

    def close(self) -> None:
        """Idempotent."""
        self._selector.close()
        self._bell.close()
        self._listener.close()

    def call(self, act: Act) -> None:
        """Have this called by the thread. From any thread."""
        self._calls.put(act)
        with suppress(BlockingIOError):  # it is ringing already
            self._bell.send(b"!")

    def look_up(self, host: str, act: Callable[[Outcome], None]) -> None:
        """Call this once the name was looked up."""

        def tell(outcome: Outcome) -> None:
            with suppress(OSError):  # it was closed meanwhile
                self.call(lambda: act(outcome))

        NAMES.ask((host, None, socket.AF_UNSPEC, socket.SOCK_STREAM, 0, 0), tell)

    def watch(self, sock: socket.socket, act: Act, *, for_writing: bool = False) -> None:
        """Call this in each turn in which the socket can be read from, or written to. Not more than one call per socket."""
        self._selector.register(sock, selectors.EVENT_WRITE if for_writing else selectors.EVENT_READ, act)

    def forget(self, sock: socket.socket) -> None:
        """Watch this socket no longer; before it is closed. Idempotent."""
        with suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    def at(self, moment_s: float, act: Act) -> None:
        """Call this at a moment of the monotonic clock. It cannot be taken back: what is called looks whether it still counts."""
        heapq.heappush(self._timers, (moment_s, next(self._numbers), act))

    def again(self, act: Act) -> None:
        """Call this in the next turn, which then waits for nothing."""
        self._again.append(act)

    def turn(self) -> None:
        """Wait until something is due, and do all of it once."""
        ready = self._selector.select(self._wait_s())
        again, self._again = self._again, []
        for key, _ in ready:
            act: Act = key.data
            act()
        for act in again:
            act()
        # After reading: who was not heard for long may only not have been listened to.
        now_s = time.monotonic()
        while self._timers and self._timers[0][0] <= now_s:
            heapq.heappop(self._timers)[2]()

    def _wait_s(self) -> float | None:
        if self._again:
            return 0.0
        return max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else None

    def _answer(self) -> None:
        with suppress(BlockingIOError):
            self._listener.recv(4096)
        while not self._calls.empty():
            self._calls.get()()

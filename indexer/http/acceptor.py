"""Accepting connections from a socket that workers share, so that each has about as many.

Left to themselves, of 8 connections one of two workers often takes 6 or all. With a socket for each worker (SO_REUSEPORT) chance spreads them,
5 to 3 or 6 to 2, and those that wait for a worker that is killed are lost. Here a worker that has more than another one waits for a moment before
it takes one.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

from indexer.workers.worker import Worker

log = logging.getLogger(__name__)

# So long the others may take a connection first: an idle one needs a tenth of that.
YIELD_S = 0.0005
# One more for each so many is no difference.
TOLERANCE = 8
# While there are too many open files.
RETRY_S = 0.1


class Acceptor:
    """It accepts until it is closed. `make_protocol`: called for each connection. `context`: for TLS."""

    def __init__(
        self, listener: socket.socket, worker: Worker, make_protocol: Callable[[], asyncio.Protocol], context: ssl.SSLContext | None
    ) -> None:
        self._listener = listener
        self._worker = worker
        self._make_protocol = make_protocol
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._starting: set[asyncio.Task[None]] = set()
        self._watch()

    def close(self) -> None:
        """Accept no more."""
        if self._timer is not None:
            self._timer.cancel()
        else:
            self._loop.remove_reader(self._listener.fileno())

    async def wait_closed(self) -> None:
        """Handshakes that have not ended are given up."""
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)

    def _watch(self) -> None:
        self._timer = None
        self._loop.add_reader(self._listener.fileno(), self._take)

    def _pause(self, time_s: float, then: Callable[[], None]) -> None:
        self._loop.remove_reader(self._listener.fileno())
        self._timer = self._loop.call_later(time_s, then)

    def _take(self) -> None:
        least = self._worker.least_connections()
        if self._worker.connections() + len(self._starting) > least + least // TOLERANCE:
            self._pause(YIELD_S, self._take_what_is_left)
        else:
            self._accept()

    def _take_what_is_left(self) -> None:
        self._watch()
        self._accept()

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was faster, or the client has gone
        except OSError as error:
            log.error("connection not accepted", extra={"error": str(error)})
            self._pause(RETRY_S, self._watch)
            return
        accepted.setblocking(False)
        task = self._loop.create_task(self._start(accepted), name="accept")
        self._starting.add(task)
        task.add_done_callback(self._starting.discard)

    async def _start(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, accepted, ssl=self._context)
        except (OSError, ssl.SSLError):
            accepted.close()  # the client has gone, or speaks no TLS

"""One HTTP connection: uvicorn's, with what uvicorn leaves to a proxy in front of it.

The head of a request has to arrive in time. A client that shuts down its writing side after its request still gets the response.
"""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol


class Connection(HttpToolsProtocol):
    """`Connection.with_timeout(…)` makes the class that uvicorn takes."""

    head_timeout_s: ClassVar[float]

    @classmethod
    def with_timeout(cls, head_timeout_s: float) -> "type[Connection]":
        """A class of connections that are closed if the head of a request takes longer to arrive."""
        return type("Connection", (cls,), {"head_timeout_s": head_timeout_s})

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_in_head = True
        self._head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn: it is a Transport
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        # Nearly always a head arrives in one piece, and costs no timer.
        if self._is_in_head and self._head_timer is None:
            self._start_head_timer()

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio looks at what is returned
        """The client sends no more. True: the connection stays open for the responses that it waits for."""
        newest = self.cycle
        if self.scheme == "https":
            return False  # TLS cannot close one direction only
        if newest is None or newest.more_body or newest.response_complete:
            return False
        newest.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_head_timer()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """The unread part of a body and the next head have to arrive in time too."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing() and self._head_timer is None:
            self._start_head_timer()

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.head_timeout_s, self.timeout_keep_alive_handler)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

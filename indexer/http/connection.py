"""One HTTP connection: uvicorn's, with what uvicorn leaves to a proxy in front of it.

- The head of a request has to arrive in time, and has a size; so has what comes in a body besides the body.
- A response has to be read in time, and all that wait to be read have a size together.
- A client that shuts down its writing side after its request still gets the response.
- While the service stops, requests that have arrived are answered, the last one of each connection with `Connection: close`.
- What is no HTTP is refused without a line in the log for each.
- The head of a response and its body are written together, in one call of the system.
- Plain requests to the busiest routes are answered at once (`indexer.http.at_once`), one for each piece that is read: others have their turn.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from indexer.http.at_once import AtOnce, Plain
from indexer.http.problems import MEDIA_TYPE, encoded_problem
from indexer.limits import HttpLimits

log = logging.getLogger(__name__)

# A request's head. Chunks of a body may come with as many bytes of lengths, extensions and trailers, and eight for each byte of the body.
HEAD_BYTES_MAX = 65_536
HEAD_START = b"HTTP/"
OVERHEAD_PER_BYTE = 8
# A response that is read at this rate or faster is being read.
READ_BYTES_MIN = 2**20
# A longer piece of a body is not copied, to be written together with the head.
JOINED_BYTES_MAX = 65_536
# An idle connection is closed only if nothing came in this time either: what came while the event loop was busy is read first.
LAST_LOOK_S = 0.02
# A body that takes longer is read by the app, which limits its time.
WHOLE_S = 0.05


class ConnectionGroup:
    """The connections of one server. `is_stopping`: no connection is kept alive any more. `unread`: those whose responses are not read, the one that
    has waited longest first."""

    def __init__(self, limits: HttpLimits, drain_s: float, note_change: Callable[[int], None] | None = None, at_once: AtOnce | None = None) -> None:
        """`drain_s`: how long an idle connection may still send a request once the server stops. `note_change`: called with 1 and -1 as connections
        come and go. `at_once`: answers to plain requests, if any.
        """
        self.at_once = at_once
        self.limits = limits
        self.drain_s = drain_s
        self.note_change = note_change
        self.is_stopping = False
        self.unread: dict[Connection, None] = {}

    def add_unread(self, connection: "Connection") -> None:
        """Its response is not read as fast as it is written. The responses that have waited longest are given up where there are too many bytes."""
        self.unread[connection] = None
        waiting = sum(other.unread_bytes for other in self.unread)
        for other in list(self.unread):
            if waiting <= self.limits.unread_bytes_max:
                return
            waiting -= other.unread_bytes
            other.transport.abort()
            self.unread.pop(other, None)


class JoinedWrites:
    """A transport to which one response is written. A head waits for what is written next, but not for longer than a turn of the event loop."""

    __slots__ = ("_held", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held = b""

    def write(self, data: bytes) -> None:
        if self._held:
            if len(data) <= JOINED_BYTES_MAX:
                data, self._held = self._held + data, b""
            else:
                self.flush()
            self._transport.write(data)
        elif data.startswith(HEAD_START):
            self._held = data
            self._loop.call_soon(self.flush)
        else:
            self._transport.write(data)

    def flush(self) -> None:
        """Write what waits. Idempotent."""
        if self._held:
            held, self._held = self._held, b""
            self._transport.write(held)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Connection(HttpToolsProtocol):
    """`Connection.of(…)` makes the class that uvicorn takes."""

    group: ClassVar[ConnectionGroup]

    @classmethod
    def of(cls, group: ConnectionGroup) -> "type[Connection]":
        """A class of the connections of one server."""
        return type("Connection", (cls,), {"group": group})

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._is_in_head = True
        self._head_timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._bytes_left = HEAD_BYTES_MAX
        """What may come before the head is complete, or before more of the body comes."""
        self._counted = 0
        """Bytes of the piece that is being parsed, as far as no earlier request has them."""
        self._plain: Plain | None = None
        """The request that is being read, if it may be answered at once."""
        self._plain_timer: asyncio.TimerHandle | None = None
        self._may_answer = True
        """Whether no request of the piece that is being parsed was answered at once."""
        self._head: tuple[object, bytes] = (None, b"")
        """uvicorn's headers of every response, and the beginning of one with them."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn: it is a Transport
        super().connection_made(transport)
        if self.group.note_change is not None:
            self.group.note_change(1)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.group.note_change is not None:
            self.group.note_change(-1)
        self._hand_over()
        self._stop_head_timer()
        self._stop_unread_timer()
        super().connection_lost(exc)

    # Requests

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        self._bytes_left -= len(data)
        self._counted = len(data)
        self._may_answer = True
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # an offer that a server may ignore
        except httptools.HttpParserError:
            self._refuse(400, "this is not HTTP/1.1")
            return
        if self._bytes_left < 0:
            self._refuse(431, f"a request's head, or what comes in its body besides the body, may have {HEAD_BYTES_MAX} bytes")
        # Nearly always a head arrives in one piece, and costs no timer.
        elif self._is_in_head and self._head_timer is None:
            self._start_head_timer()
        elif self._plain is not None and self._plain_timer is None:
            self._plain_timer = self.loop.call_later(WHOLE_S, self._hand_over)

    def eof_received(self) -> bool:  # type: ignore[override]  # asyncio looks at what is returned
        """The client sends no more. True: the connection stays open for the responses that it waits for."""
        self._hand_over()
        newest = self.cycle
        if self.scheme == "https":
            return False  # TLS cannot close one direction only
        if newest is None or newest.more_body or newest.response_complete:
            return False
        newest.keep_alive = False
        return True

    def on_message_begin(self) -> None:
        """What else uvicorn makes here is for ASGI."""
        self.url, self.headers, self.expect_100_continue = b"", [], False
        self._is_in_head = True
        self._bytes_left = HEAD_BYTES_MAX - self._counted

    def on_headers_complete(self) -> None:
        self._is_in_head = False
        self._stop_head_timer()
        self._plain = self._plain_request()
        if self._plain is None:
            self._start_cycle()

    def on_body(self, body: bytes) -> None:
        self._bytes_left = min(self._bytes_left + (1 + OVERHEAD_PER_BYTE) * len(body), HEAD_BYTES_MAX + OVERHEAD_PER_BYTE * len(body))
        if self._plain is None:
            super().on_body(body)
        elif not self._plain.add(body):
            self._hand_over()

    def on_message_complete(self) -> None:
        self._bytes_left, self._counted = HEAD_BYTES_MAX, 0
        if self._plain is None or not self._answer_at_once(self._plain):
            super().on_message_complete()

    def _start_cycle(self) -> None:
        """Call the app with the request whose head was read."""
        url, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.headers += headers
        self.url, self.expect_100_continue = url, expects
        previous = self.cycle
        super().on_headers_complete()
        if self.cycle is not previous:  # an upgrade has none
            self.cycle.transport = JoinedWrites(self.transport, self.loop)  # type: ignore[assignment]  # as far as a cycle uses one
        if self.group.is_stopping:
            self.cycle.keep_alive = False
            if previous is not None and not previous.response_started:
                previous.keep_alive = True  # the connection is closed after the last response

    # Answers at once

    def _plain_request(self) -> Plain | None:
        """The request whose head was read, if nothing about it or the connection is special."""
        at_once, parser = self.group.at_once, self.parser
        if at_once is None or not self._may_answer or self.group.is_stopping or self.flow.write_paused:
            return None
        if (self.cycle is not None and not self.cycle.response_complete) or parser.get_method() != b"POST" or not parser.should_keep_alive():
            return None
        return at_once.plain(self.url, self.headers) if parser.get_http_version() == "1.1" and not parser.should_upgrade() else None

    def _answer_at_once(self, plain: Plain) -> bool:
        """Answer the request that was read. False if the app has it now."""
        try:
            body = plain.answer()
        except Exception:
            log.debug("not answered at once", exc_info=True)  # the app fails too, and its failures are counted
            body = None
        if body is None:
            self._hand_over()
            return False
        self._may_answer = False
        self._close_plain()
        headers = self.server_state.default_headers
        if self._head[0] is not headers:
            self._head = headers, b"".join([STATUS_LINE[200], *(b"%b: %b\r\n" % header for header in headers), b"content-length: "])
        self.transport.write(b"%b%d%b%b" % (self._head[1], len(body), plain.tail, body))
        super().on_response_complete()
        return True

    def _hand_over(self) -> None:
        """Let the app have the request that is being read. Idempotent."""
        if (plain := self._plain) is not None:
            self._close_plain()
            self._start_cycle()
            for piece in plain.pieces:
                super().on_body(piece)

    def _close_plain(self) -> None:
        if self._plain is not None:
            self._plain.close()
            self._plain = None
        if self._plain_timer is not None:
            self._plain_timer.cancel()
            self._plain_timer = None

    def on_response_complete(self) -> None:
        """The unread part of a body and the next head have to arrive in time too."""
        super().on_response_complete()
        if self.cycle.response_complete and self.cycle.more_body and not self.transport.is_closing() and self._head_timer is None:
            self._start_head_timer()

    def _refuse(self, status: int, detail: str) -> None:
        """Answer with a problem, and close."""
        body = encoded_problem(status, detail)
        head = [STATUS_LINE[status], b"content-type: ", MEDIA_TYPE.encode(), b"\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)]
        if self.cycle is not None and isinstance(self.cycle.transport, JoinedWrites):
            self.cycle.transport.flush()
        if not self.transport.is_closing():
            self.transport.write(b"".join([*head, body]))
            self.transport.close()

    # Time

    def timeout_keep_alive_handler(self) -> None:
        """The connection was idle for long. What was sent meanwhile and is not read yet still counts."""
        self.timeout_keep_alive_task = self.loop.call_later(LAST_LOOK_S, super().timeout_keep_alive_handler)

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.group.limits.head_timeout_s, super().timeout_keep_alive_handler)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    # Responses that are not read

    @property
    def unread_bytes(self) -> int:
        """Bytes of responses that the client has not taken yet."""
        return int(self.transport.get_write_buffer_size())

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_unread_timer()
        self.group.add_unread(self)

    def resume_writing(self) -> None:
        self._stop_unread_timer()
        super().resume_writing()

    def _start_unread_timer(self) -> None:
        self._unread_timer = self.loop.call_later(self.group.limits.answer_timeout_s, self._check_unread, self.unread_bytes)

    def _stop_unread_timer(self) -> None:
        self.group.unread.pop(self, None)
        if self._unread_timer is not None:
            self._unread_timer.cancel()
            self._unread_timer = None

    def _check_unread(self, before: int) -> None:
        """`before`: what was unread when the time began."""
        if before - self.unread_bytes >= READ_BYTES_MIN:
            self._start_unread_timer()
        else:
            self.transport.abort()

    # The end

    def shutdown(self) -> None:
        """The server stops. An idle connection may have a request under way."""
        self._hand_over()
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(self.group.drain_s, self.timeout_keep_alive_handler)

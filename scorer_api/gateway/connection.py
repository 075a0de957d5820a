"""A connection of HTTP/2 whose requests are calls of gRPC. The framing and its checks are h2's; this is the I/O and the bounds.

What a peer sends is read in small pieces with turns for others between, and not at all while it does not take what is sent to it.
"""

import asyncio
import contextlib
import math
import time
from collections.abc import Callable
from typing import cast

import h2.errors
import h2.events
import h2.exceptions
import h2.settings
from hyperframe.frame import GoAwayFrame

from indexer.http.body_room import BodyRoom
from scorer_api.gateway.grpc_call import GrpcCall, Headers, StatusError, trailers_of
from scorer_api.gateway.http2 import DATA_FRAME_BYTES_MAX, FrameHeads, Http2

STEP_S = 0.005
WINDOW_BYTES = 2**20
# As HTTP/2 counts them, with 32 bytes for each besides its own. gRPC's usual limit.
HEADERS_BYTES_MAX = 16_384
# Of a connection, which must not hold up calls: those have windows of their own.
CONNECTION_WINDOW_BYTES = 2**30
# Of one message. Then others have their turn, and it is known how much the peer takes.
SEND_AT_ONCE_BYTES = 2**18
# How long a peer may take to hear that the service ends, and to take its last bytes.
FAREWELL_S = 1.0
RESETS_AT_ONCE = 100
# Each may change the windows of all streams. Peers send one or two.
SETTINGS_MAX = 64
KEEPALIVE_S = 30.0
SILENCE_MAX_S = 50.0
DRAIN_PING = b"draining"
LAST_STREAM = 2**31 - 1
_RESPONSE = [(b":status", b"200"), (b"content-type", b"application/grpc"), (b"grpc-accept-encoding", b"identity")]


class Stream:
    """One call's stream."""

    def __init__(self, connection: "Connection", number: int) -> None:
        self._connection = connection
        self._number = number
        self.has_begun = False
        self.has_ended = False

    def acknowledge(self, size: int) -> None:
        """The peer may send so many bytes more."""
        self._connection.acknowledge(self._number, size)

    async def send(self, data: bytes) -> None:
        """Send it once the peer takes it. Raises ConnectionResetError where the stream has ended."""
        at = 0
        while True:
            if self.has_ended:
                raise ConnectionResetError("the peer has ended the call")
            sent = self._connection.send(self, self._number, data, at)
            at += sent
            if at >= len(data):
                return
            if sent:
                await asyncio.sleep(0)
            elif not self.has_ended:
                await self._connection.progress()

    def finish(self, error: StatusError | None) -> None:
        """End the call with its status. Idempotent."""
        if not self.has_ended:
            self._connection.finish(self, self._number, error)


class Connections:
    """Those of one server. `calls_max`: calls at once of each. `serve` begins to answer a call of a path: it sets `task`, which ends the stream."""

    def __init__(self, serve: Callable[[GrpcCall, Stream, bytes], None], room: BodyRoom, message_bytes_max: int, calls_max: int) -> None:
        self.serve = serve
        self.room = room
        self.message_bytes_max = message_bytes_max
        self.calls_max = calls_max
        self._open: set[Connection] = set()
        self._closed = asyncio.Event()

    def connect(self) -> "Connection":
        """The protocol of a new one."""
        return Connection(self)

    def add(self, connection: "Connection") -> None:
        """It is open."""
        self._open.add(connection)

    def discard(self, connection: "Connection") -> None:
        """It is closed."""
        self._open.discard(connection)
        if not self._open:
            self._closed.set()

    async def close(self, grace_s: float) -> None:
        """Close each once its calls have ended, and after the time of grace all."""
        for connection in list(self._open):
            connection.drain(FAREWELL_S)
        await self._wait_closed(grace_s)
        for connection in list(self._open):
            connection.end()
        await self._wait_closed(FAREWELL_S)

    async def _wait_closed(self, most_s: float) -> None:
        self._closed.clear()
        if self._open:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), most_s)


class Connection(asyncio.Protocol):
    """Calls of one peer."""

    def __init__(self, owner: Connections) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._h2 = Http2()
        self._heads = FrameHeads()
        self._calls: dict[int, tuple[GrpcCall, Stream]] = {}
        self._unread = b""
        self._is_flushing = False
        self._is_paused = False
        self._progress: asyncio.Future[None] | None = None
        self._heard_s = time.monotonic()
        self._asked_s = -math.inf
        self._newest = 0
        self._settings_left = SETTINGS_MAX
        self._is_draining = False
        self._takes_calls = True
        self._timers: list[asyncio.TimerHandle] = []

    # The transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own, which is none by type
        self._owner.add(self)
        codes = h2.settings.SettingCodes
        told: dict[h2.settings.SettingCodes | int, int] = {
            codes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            codes.MAX_CONCURRENT_STREAMS: self._owner.calls_max,
            codes.MAX_HEADER_LIST_SIZE: HEADERS_BYTES_MAX,
            codes.MAX_FRAME_SIZE: DATA_FRAME_BYTES_MAX,
        }
        self._h2.initiate_connection()
        self._h2.update_settings(told)
        # A peer that never takes note of the settings is held to them all the same.
        self._h2.decoder.max_header_list_size = HEADERS_BYTES_MAX
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES)
        self._timers = [self._loop.call_later(KEEPALIVE_S, self._keep_alive)]
        self._flush()

    def connection_lost(self, error: Exception | None) -> None:
        self._owner.discard(self)
        self._takes_calls = False
        for timer in self._timers:
            timer.cancel()
        self._unread = b""
        self._reset_calls()
        self._tell_progress()

    def _reset_calls(self) -> None:
        """Some now, and the others after everybody else had a turn."""
        for _ in range(min(len(self._calls), RESETS_AT_ONCE)):
            _, (call, stream) = self._calls.popitem()
            stream.has_ended = True
            call.reset()
        if self._calls:
            self._loop.call_soon(self._reset_calls)

    def data_received(self, data: bytes) -> None:
        self._heard_s = time.monotonic()
        if self._unread:
            self._unread += data
            return
        self._read(data)

    def eof_received(self) -> None:
        """The connection closes."""

    def pause_writing(self) -> None:
        """The peer reads too slowly: it is not read either, since much of what comes has to be answered."""
        self._is_paused = True
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_paused = False
        if not self._unread:
            self._transport.resume_reading()
        self._tell_progress()

    def _read(self, data: bytes) -> None:
        """Read pieces for a while, and the others after everybody else had a turn."""
        until_s = time.perf_counter() + STEP_S
        at = 0
        while at < len(data) and not self._transport.is_closing():
            if at and time.perf_counter() > until_s:
                self._unread = data[at:]
                self._transport.pause_reading()
                self._loop.call_soon(self._read_on)
                break
            try:
                end = self._heads.piece_end(data, at)
                events = self._h2.receive_data(data[at:end])
            except h2.exceptions.ProtocolError:
                self._flush()
                self._transport.close()
                return
            for event in events:
                self._take(event)
            at = end
        self._flush()

    def _read_on(self) -> None:
        data, self._unread = self._unread, b""
        if data and not self._transport.is_closing():
            if not self._is_paused:
                self._transport.resume_reading()
            self._read(data)

    def _flush_soon(self) -> None:
        """What several calls send goes in one write."""
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        if (data := self._h2.data_to_send()) and not self._transport.is_closing():
            self._transport.write(data)

    # What comes

    def _take(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.DataReceived():
                if (found := self._calls.get(event.stream_id)) is None:
                    self.acknowledge(event.stream_id, event.flow_controlled_length)
                else:
                    found[0].receive(event.data, event.flow_controlled_length)
            case h2.events.StreamEnded():
                if (found := self._calls.get(event.stream_id)) is not None:
                    found[0].end()
            case h2.events.RequestReceived():
                self._begin(event.stream_id, cast(Headers, event.headers))
            case h2.events.StreamReset():
                if (found := self._calls.pop(event.stream_id, None)) is not None:
                    found[1].has_ended = True
                    found[0].reset()
                    self._tell_progress()
            case h2.events.WindowUpdated():
                self._tell_progress()
            case h2.events.RemoteSettingsChanged():
                self._settings_left -= 1
                if not self._settings_left:
                    self._transport.close()
                self._tell_progress()
            case h2.events.PingAckReceived(ping_data=ping) if ping == DRAIN_PING:
                self._refuse_calls()
            case h2.events.ConnectionTerminated(error_code=h2.errors.ErrorCodes.NO_ERROR):
                self._is_draining, self._takes_calls = True, False
                self._close_if_drained()
            case h2.events.ConnectionTerminated():
                self._transport.close()

    def _begin(self, number: int, headers: Headers) -> None:
        self._newest = number
        if not self._takes_calls or len(self._calls) >= self._owner.calls_max:
            with contextlib.suppress(h2.exceptions.ProtocolError):  # the peer may have reset it already
                self._h2.reset_stream(number, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        values = dict(headers)
        if values.get(b":method") != b"POST" or not values.get(b"content-type", b"").startswith(b"application/grpc"):
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.send_headers(number, [(b":status", b"415"), (b"content-length", b"0")], end_stream=True)
                self._h2.reset_stream(number, h2.errors.ErrorCodes.NO_ERROR)
            return
        stream = Stream(self, number)
        call = GrpcCall(stream, headers, self._owner.room, self._owner.message_bytes_max)
        self._calls[number] = call, stream
        self._owner.serve(call, stream, values.get(b":path", b""))

    # What is sent

    def acknowledge(self, number: int, size: int) -> None:
        """The peer may send so many bytes more."""
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.acknowledge_received_data(size, number)
            self._flush_soon()

    def send(self, stream: Stream, number: int, data: bytes, at: int) -> int:
        """Send some of the data from there, as far as the peer takes it now. Returns how much."""
        if self._is_paused:
            return 0
        start, end = at, min(len(data), at + SEND_AT_ONCE_BYTES)
        try:
            if not stream.has_begun:
                stream.has_begun = True
                self._h2.send_headers(number, _RESPONSE)
            while at < end:
                size = min(self._h2.local_flow_control_window(number), self._h2.max_outbound_frame_size, end - at)
                if size <= 0:
                    break
                self._h2.send_data(number, data[at : at + size])
                at += size
        except h2.exceptions.ProtocolError:
            stream.has_ended = True
            return 0
        self._flush_soon()
        return at - start

    def finish(self, stream: Stream, number: int, error: StatusError | None) -> None:
        """End the stream."""
        stream.has_ended = True
        call, _ = self._calls.pop(number)
        call.close()
        with contextlib.suppress(h2.exceptions.ProtocolError):
            trailers = trailers_of(error)
            self._h2.send_headers(number, trailers if stream.has_begun else [*_RESPONSE, *trailers], end_stream=True)
            # A peer that has more to send need not do so.
            if not call.has_ended:
                self._h2.reset_stream(number, h2.errors.ErrorCodes.NO_ERROR)
        self._flush_soon()
        self._close_if_drained()

    async def progress(self) -> None:
        """Wait until the peer may take more, or a stream has ended."""
        if self._progress is None:
            self._progress = self._loop.create_future()
        await asyncio.shield(self._progress)

    def _tell_progress(self) -> None:
        progress, self._progress = self._progress, None
        if progress is not None and not progress.done():
            progress.set_result(None)

    def _keep_alive(self) -> None:
        """Ask a silent peer whether it is there, and give it up where it does not say so."""
        now_s = time.monotonic()
        if (silent_s := now_s - self._heard_s) < KEEPALIVE_S:
            wait_s = KEEPALIVE_S - silent_s
        elif self._asked_s <= self._heard_s:
            self._asked_s = now_s
            wait_s = SILENCE_MAX_S - KEEPALIVE_S
            with contextlib.suppress(h2.exceptions.ProtocolError):
                self._h2.ping(bytes(8))
                self._flush()
        else:
            self._transport.abort()
            return
        self._timers[0] = self._loop.call_later(wait_s, self._keep_alive)

    # The end

    def drain(self, answer_s: float) -> None:
        """Tell the peer to make its calls elsewhere. The connection closes after its last call.

        The peer's answer to a ping says that it knows, and makes no call that would be lost. It has so long to do so.
        """
        if self._is_draining or self._transport.is_closing():
            return
        self._is_draining = True
        self._go_away(LAST_STREAM)
        with contextlib.suppress(h2.exceptions.ProtocolError):
            self._h2.ping(DRAIN_PING)
        self._flush()
        self._timers.append(self._loop.call_later(answer_s, self._refuse_calls))

    def end(self) -> None:
        """End the calls that are left, and the connection."""
        for call, stream in list(self._calls.values()):
            if call.task is not None:
                call.task.cancel()
            stream.finish(StatusError("UNAVAILABLE", "the service ends"))
        self._flush()
        self._transport.close()

    def _refuse_calls(self) -> None:
        if self._takes_calls:
            self._takes_calls = False
            self._go_away(self._newest)
            self._close_if_drained()

    def _close_if_drained(self) -> None:
        if self._is_draining and not self._takes_calls and not self._calls:
            self._flush()
            self._transport.close()

    def _go_away(self, last: int) -> None:
        """By hand: h2 takes a connection for closed once it has said so."""
        self._flush()
        self._transport.write(GoAwayFrame(0, last_stream_id=last).serialize())

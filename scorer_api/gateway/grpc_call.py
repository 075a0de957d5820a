"""A call of gRPC over HTTP/2, as its handler sees it: messages come and go (github.com/grpc/grpc, doc/PROTOCOL-HTTP2.md)."""

import asyncio
import binascii
from base64 import b64decode, b64encode
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol, Self
from urllib.parse import quote

from indexer.http.body_room import BodyRoom
from scorer_api.rpc.problems import CODES, DETAILS

# A message has a flag, whether it is compressed, and its length in front.
PREFIX_BYTES = 5
# After so many messages that came at once others have their turn. No more are split off before they are asked for.
MESSAGES_AT_ONCE = 16
# Names of headers that are HTTP/2's, or gRPC's own.
_RESERVED = (b":", b"grpc-")
_PRINTABLE = " !\"#$&'()*+,/:;<=>?@[\\]^`{|}"

Headers = Sequence[tuple[bytes, bytes]]


class StatusError(Exception):
    """The call ends with this status. `code`: its name. `details`: an encoded google.rpc.Status, empty for none."""

    def __init__(self, code: str, message: str, details: bytes = b"") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details


class Stream(Protocol):
    """The call's stream of HTTP/2."""

    def acknowledge(self, size: int) -> None:
        """The peer may send so many bytes more."""

    async def send(self, data: bytes) -> None:
        """Send it once the peer takes it. Raises ConnectionResetError where the stream has ended."""


class GrpcCall:
    """`async for message in call`, and `await call.write(message)`. `task`: the one that answers it. `has_ended`: the peer sends nothing more.

    Messages that the handler has not taken are bounded by the window of the stream, all of the process together by `room`.
    """

    def __init__(self, stream: Stream, headers: Headers, room: BodyRoom, message_bytes_max: int) -> None:
        self.task: asyncio.Task[None] | None = None
        self._stream = stream
        self._headers = headers
        self._room = room
        self._message_bytes_max = message_bytes_max
        self._part = bytearray()
        self._messages: deque[bytes] = deque()
        self._held = 0
        self._unacknowledged = 0
        self.has_ended = False
        self._error: StatusError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_at_end = False
        self._at_once = 0

    @property
    def metadata(self) -> list[tuple[str, str | bytes]]:
        """The headers that are not HTTP's or gRPC's own. Names that end in -bin have bytes."""
        return [
            (name.decode("latin-1"), _binary(value) if name.endswith(b"-bin") else value.decode("latin-1"))
            for name, value in self._headers
            if not name.startswith(_RESERVED)
        ]

    # What the handler does

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        """Raises StatusError for what is no message, or too long."""
        while not self._messages:
            if self._error is not None:
                raise self._error
            if self.has_ended:
                self._is_at_end = True
                raise StopAsyncIteration
            self._at_once = 0
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self._at_once == MESSAGES_AT_ONCE:
            self._at_once = 0
            await asyncio.sleep(0)
        self._at_once += 1
        message = self._messages.popleft()
        self._release(len(message))
        if not self._messages:
            self._split()
        if not self._messages:
            self._acknowledge()
        return message

    async def write(self, message: bytes) -> None:
        """Raises ConnectionResetError where the call has ended."""
        await self._stream.send(b"\0%b%b" % (len(message).to_bytes(4, "big"), message))

    # What comes

    def receive(self, data: bytes, window_bytes: int) -> None:
        """A piece of what the peer sends, which takes so many bytes of the window."""
        if self._error is not None:
            self._stream.acknowledge(window_bytes)
            return
        if len(data) > self._room.bytes_left:
            self._stream.acknowledge(window_bytes)
            self._fail("RESOURCE_EXHAUSTED", "the messages that are received now leave no room; try again")
            return
        self._room.bytes_left -= len(data)
        self._held += len(data)
        self._take_messages(data)
        if self._messages:
            self._unacknowledged += window_bytes
            self._wake()
        else:
            self._stream.acknowledge(window_bytes)

    def end(self) -> None:
        """The peer sends nothing more."""
        self.has_ended = True
        self._wake()

    def reset(self) -> None:
        """The peer, or the connection, ended the call. To a handler that has nothing to do that is its end in good order: so gateways end calls."""
        is_idle = not self._messages and (self._waiter is not None or self._is_at_end)
        if is_idle:
            self.end()
        elif self.task is not None:
            self.task.cancel()
        self.close()

    def close(self) -> None:
        """What was held of messages is given back, and the window with it: that of the connection outlives the call. Idempotent."""
        self._messages.clear()
        self._part.clear()
        self._release(self._held)
        self._acknowledge()

    def _take_messages(self, data: bytes) -> None:
        """Move messages from what has come to `_messages`."""
        if not self._part and len(data) >= PREFIX_BYTES and int.from_bytes(data[1:PREFIX_BYTES], "big") == len(data) - PREFIX_BYTES and not data[0]:
            self._room.bytes_left += PREFIX_BYTES
            self._held -= PREFIX_BYTES
            self._messages.append(data[PREFIX_BYTES:])
            return
        self._part += data
        self._split()

    def _split(self) -> None:
        """Move some whole messages from `_part` to `_messages`."""
        while len(self._part) >= PREFIX_BYTES and len(self._messages) < MESSAGES_AT_ONCE:
            size = int.from_bytes(self._part[1:PREFIX_BYTES], "big")
            if self._part[0]:
                self._fail("UNIMPLEMENTED", "compressed messages are not taken")
                return
            if size > self._message_bytes_max:
                self._fail("RESOURCE_EXHAUSTED", f"a message of {size} bytes; at most {self._message_bytes_max} are taken")
                return
            end = PREFIX_BYTES + size
            if len(self._part) < end:
                return
            self._messages.append(bytes(memoryview(self._part)[PREFIX_BYTES:end]))
            del self._part[:end]
            self._release(PREFIX_BYTES)

    def _fail(self, code: str, message: str) -> None:
        """The handler learns of it after the messages before."""
        self._error = StatusError(code, message)
        self._held -= len(self._part)
        self._room.bytes_left += len(self._part)
        self._part.clear()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _acknowledge(self) -> None:
        size, self._unacknowledged = self._unacknowledged, 0
        if size:
            self._stream.acknowledge(size)

    def _release(self, size: int) -> None:
        self._held -= size
        self._room.bytes_left += size


Handler = Callable[[GrpcCall], Awaitable[None]]
"""Answers a call. Raises StatusError."""


def trailers_of(error: StatusError | None) -> list[tuple[bytes, bytes]]:
    """What ends a call, in good order where there is no error."""
    if error is None:
        return [(b"grpc-status", b"0")]
    found = [(b"grpc-status", str(CODES[error.code]).encode()), (b"grpc-message", quote(error.message, safe=_PRINTABLE).encode())]
    return [*found, (DETAILS.encode(), b64encode(error.details).rstrip(b"="))] if error.details else found


def _binary(value: bytes) -> bytes:
    """What is no base64 matches nothing."""
    try:
        return b64decode(value + b"=" * (-len(value) % 4))
    except binascii.Error:
        return b""

"""ZMTP 3, what ZeroMQ's sockets speak over a connection: the bytes of one connection in, messages out. Pure.

libzmq is not used for reading. It aborts the process where a receive queue that is full meets a connection that ends and a heartbeat (libzmq issues
3937, 4364, 4767), and without a mark it takes everything that a peer sends, however slowly it is used.

    greeting ⇄ greeting, READY ⇄ READY, then messages of one or more frames, and commands (PING, PONG) between them
"""

from collections import deque
from collections.abc import Set as AbstractSet
from io import BytesIO

from indexer.compiled import core

GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
MORE, LONG, COMMAND = 1, 2, 4
PING, PONG, READY, ERROR = b"\x04PING", b"\x04PONG", b"\x05READY", b"\x05ERROR"
# A ping has a time to live of two bytes, which we do not limit, and a context of at most 16.
PING_SENT = PING + bytes(2)
PING_CONTEXT = slice(7, 23)
COMMAND_BYTES_MAX = 4_096
# What a peer does not read of our answers. Ten thousand pongs.
UNSENT_BYTES_MAX = 65_536
# A frame counts as so many bytes more, so that a message of a million empty ones has a bound too.
FRAME_OVERHEAD = 64
# Room for the other frames beside one of the largest size.
MESSAGE_OVERHEAD = 2**20
# Shorter pieces that come are put together, so that single bytes take no more than a byte each.
PIECE_BYTES = 16_384
# A longer frame is put together as it comes: at its end 32 MiB would be copied twice, which takes 20 to 40 ms.
LARGE_BYTES_MIN = 2**20


class ZmtpError(Exception):
    """The peer does not speak ZMTP 3 with mechanism NULL, is of another socket type, or sends more than it may."""


class _LargeFrame:
    """One that is put together as it comes. `left`: bytes that are still to come."""

    def __init__(self, flags: int, length: int) -> None:
        self.flags, self.length, self.left = flags, length, length
        self._content = BytesIO()

    def take(self, data: bytes | bytearray | memoryview) -> memoryview:
        """Add what belongs to it. Returns the rest."""
        view = memoryview(data)
        self._content.write(view[: self.left])
        rest = view[self.left :]
        self.left -= len(view) - len(rest)
        return rest

    def content(self) -> bytes:
        """The buffer itself, not a copy."""
        return self._content.getvalue()


class Zmtp:
    """Our side of one connection. `outgoing`: bytes to send, to be emptied by the caller."""

    def __init__(self, socket_type: bytes, peers: AbstractSet[bytes], frame_bytes_max: int) -> None:
        """`peers`: the socket types that the peer may be."""
        self._peers = peers
        self._frame_bytes_max = frame_bytes_max
        ready = frame(READY + _property(b"Socket-Type", socket_type) + _property(b"Identity", b""), COMMAND)
        # Who has no mechanism to choose need not wait for the peer's greeting.
        self.outgoing = bytearray(GREETING + ready)
        self.is_greeted = False
        self.is_ready = False
        self._buffer = b""
        self._position = 0
        """Where in the buffer the next frame begins."""
        self._tail: deque[bytes | bytearray] = deque()
        """What came after that, in pieces."""
        self._tail_bytes = 0
        self._large: _LargeFrame | None = None
        """While bytes of it are still to come there is nothing in the buffer and the tail."""
        self.wanted_bytes = 1
        """Bytes that the next frame takes, as far as is known."""
        self._left = 0
        """How much more the present call of `messages` may read."""
        self._parts: list[bytes] = []
        self._parts_bytes = 0
        self.is_cut = False
        """Whether the last call of `messages` ended before all that came was looked at."""

    @property
    def pending_bytes(self) -> int:
        """Bytes that have come and make no message yet, or were not looked at."""
        large = 0 if self._large is None else self._large.length - self._large.left
        return len(self._buffer) - self._position + self._tail_bytes + self._parts_bytes + large

    @property
    def is_amid_message(self) -> bool:
        """Whether some frames of a message have come, or the beginning of a long one, and not all of it."""
        return bool(self._parts) or (self._large is not None and self._large.left > 0)

    def receive(self, data: bytes) -> None:
        """Bytes have come."""
        if self._large is not None and self._large.left:
            data = self._large.take(data).tobytes()
            if not data:
                return
        if not self._tail and self._position == len(self._buffer):
            self._buffer, self._position = data, 0
            return
        last = self._tail[-1] if self._tail else b""
        if isinstance(last, bytearray) and len(last) < PIECE_BYTES:
            last += data
        else:
            self._tail.append(data if len(data) >= PIECE_BYTES else bytearray(data))
        self._tail_bytes += len(data)

    def discard(self) -> None:
        """Throw away what came and makes no message yet."""
        self._buffer, self._position, self._tail_bytes, self._parts_bytes = b"", 0, 0, 0
        self._tail.clear()
        self._large = None
        self._parts = []
        self.is_cut = False

    def ping(self) -> None:
        """Ask for a sign of life."""
        self.outgoing += frame(PING_SENT, COMMAND)

    def messages(self, count_max: int) -> list[list[bytes]]:
        """The next messages. At most so many, commands counted; then `is_cut` says whether there may be more. Raises ZmtpError."""
        self._left = count_max
        found: list[list[bytes]] = []
        while True:
            if self.is_greeted or self._greet():
                self._read(found)
            is_whole = self._large is not None and not self._large.left
            if not self._left:
                self.is_cut = is_whole or self._position < len(self._buffer) or bool(self._tail)
                return found
            if is_whole:
                continue
            if not self._refill():
                self.is_cut = False
                return found

    def _refill(self) -> bool:
        """Move what came into the buffer, as far as the next frame takes it. Returns whether it is there."""
        size = len(self._buffer) - self._position
        if not self._tail or size + self._tail_bytes < self.wanted_bytes:
            return False
        pieces: list[bytes | bytearray | memoryview] = [memoryview(self._buffer)[self._position :]]
        while size < self.wanted_bytes:
            piece = self._tail.popleft()
            self._tail_bytes -= len(piece)
            size += len(piece)
            pieces.append(piece)
        self._buffer, self._position = b"".join(pieces), 0
        return True

    def _greet(self) -> bool:
        """Returns whether the peer's greeting is complete."""
        found = self._buffer
        if not found:
            return False
        if found[0] != 0xFF or (len(found) > 9 and not found[9] & 1):
            raise ZmtpError("no greeting of ZMTP 3")
        if len(found) > 10 and found[10] < 3:
            raise ZmtpError("an older version of ZMTP")
        if len(found) < len(GREETING):
            self.wanted_bytes = len(GREETING)
            return False
        if found[12:32] != GREETING[12:32]:
            raise ZmtpError("another mechanism than NULL")
        self.is_greeted = True
        self._position, self.wanted_bytes = len(GREETING), 1
        return True

    def _read(self, found: list[list[bytes]]) -> None:
        """Read the frames in the buffer."""
        if self._large is not None:
            if self._large.left:
                return
            self._end_large(self._large, found)
        buffer, position, parts = self._buffer, self._position, self._parts
        size, frame_bytes_max, left, wanted = len(buffer), self._frame_bytes_max, self._left, 1
        # The compiled core takes the messages that are whole, wherever one begins.
        begins = core is not None
        while left:
            if begins and not parts and self.is_ready:
                taken, begins = len(found), False
                position = core.take_messages(buffer, position, frame_bytes_max, frame_bytes_max + MESSAGE_OVERHEAD, left, found)
                left -= len(found) - taken
                continue
            if position + 2 > size:
                wanted = 2
                break
            flags = buffer[position]
            if flags & LONG:
                body = position + 9
                if body > size:
                    wanted = 9
                    break
                length = int.from_bytes(buffer[position + 1 : body])
            else:
                body = position + 2
                length = buffer[position + 1]
            if length > frame_bytes_max:
                raise ZmtpError(f"a frame of {length} bytes")
            end = body + length
            if end > size:
                if length < LARGE_BYTES_MIN or flags & ~(MORE | LONG) or not self.is_ready:
                    wanted = end - position
                    break
                self._begin_large(_LargeFrame(flags, length), memoryview(buffer)[body:])
                position = size
                break
            if flags & ~(MORE | LONG) or not self.is_ready:
                self._obey(flags, buffer[body:end])
                left -= 1
            else:
                parts.append(buffer[body:end])
                if flags & MORE:
                    self._note_part(length)
                else:
                    found.append(parts)
                    parts = self._parts = []
                    self._parts_bytes = 0
                    left -= 1
                    begins = core is not None
            position = end
        self._buffer, self._position = (b"", 0) if position == size else (buffer, position)
        self._left, self.wanted_bytes = left, wanted

    def _begin_large(self, large: _LargeFrame, begun: memoryview) -> None:
        """A long frame begins. All that came belongs to it, or comes behind it in the tail."""
        self._large = large
        large.take(begun)
        while large.left and self._tail:
            piece = self._tail.popleft()
            self._tail_bytes -= len(piece)
            if rest := large.take(piece).tobytes():
                self._tail.appendleft(rest)
                self._tail_bytes += len(rest)

    def _end_large(self, large: _LargeFrame, found: list[list[bytes]]) -> None:
        """All of it has come."""
        self._large = None
        self._parts.append(large.content())
        if large.flags & MORE:
            self._note_part(large.length)
            return
        found.append(self._parts)
        self._parts, self._parts_bytes = [], 0
        self._left -= 1

    def _note_part(self, length: int) -> None:
        self._parts_bytes += length + FRAME_OVERHEAD
        if self._parts_bytes > self._frame_bytes_max + MESSAGE_OVERHEAD:
            raise ZmtpError("a message of too many bytes")

    def _obey(self, flags: int, body: bytes) -> None:
        """A frame that is no part of a message."""
        if flags & ~(MORE | LONG | COMMAND) or not flags & COMMAND or flags & MORE or len(body) > COMMAND_BYTES_MAX:
            raise ZmtpError("a frame that has no place here")
        if not self.is_ready:
            self._shake(body)
        elif body.startswith(PING):
            self.outgoing += frame(PONG + body[PING_CONTEXT], COMMAND)
            if len(self.outgoing) > UNSENT_BYTES_MAX:
                raise ZmtpError("pings whose answers are not read")

    def _shake(self, body: bytes) -> None:
        if body.startswith(ERROR):
            raise ZmtpError("the peer refuses the connection")
        if not body.startswith(READY) or _properties(body[len(READY) :]).get(b"socket-type") not in self._peers:
            raise ZmtpError("a socket of another type")
        self.is_ready = True


def frame(body: bytes, flags: int = 0) -> bytes:
    """One frame, as it is sent."""
    if len(body) > 255:
        return bytes([flags | LONG]) + len(body).to_bytes(8) + body
    return bytes([flags, len(body)]) + body


def message(*parts: bytes) -> bytes:
    """A message of these frames, as it is sent."""
    return b"".join(frame(part, MORE) for part in parts[:-1]) + frame(parts[-1])


def subscription(topic: bytes) -> bytes:
    """The message by which a SUB socket subscribes."""
    return message(b"\x01" + topic)


def _property(name: bytes, value: bytes) -> bytes:
    return bytes([len(name)]) + name + len(value).to_bytes(4) + value


def _properties(text: bytes) -> dict[bytes, bytes]:
    """The metadata of a READY command; names do not differ in case. What is cut off is left out."""
    found: dict[bytes, bytes] = {}
    while text:
        name, rest = text[1 : 1 + text[0]], text[1 + text[0] :]
        length = int.from_bytes(rest[:4])
        found[name.lower()] = rest[4 : 4 + length]
        text = rest[4 + length :]
    return found

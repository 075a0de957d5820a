"""HTTP/2 by h2, for a server that many streams of one peer are open at, and that trusts no peer."""

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
from hyperframe.frame import Frame, GoAwayFrame

STREAMS_BETWEEN_LOOKS = 64
# HTTP/2's own, RFC 9113.
DATA, SETTINGS = 0, 4
PREFACE_BYTES, HEAD_BYTES, FRAME_BYTES_MAX = 24, 9, 16_384
# Each frame costs some thirty microseconds. gRPC's own clients make theirs as large as they may.
DATA_FRAME_BYTES_MAX = 2**18
# What reading one frame takes, in the time for one byte of a header, and the most for a piece: two milliseconds or so.
FRAME_WORK, PIECE_WORK = 8, 2_048
_CONFIG = h2.config.H2Configuration(
    client_side=False,
    header_encoding=None,
    # Of what a peer sends, the few headers that are read are checked here.
    validate_inbound_headers=False,
    normalize_inbound_headers=False,
    validate_outbound_headers=False,
    normalize_outbound_headers=False,
)


class Http2(h2.connection.H2Connection):
    """Looks through its streams now and then: h2 does so for each new one, which takes as long as there are streams.

    How many there may be is not its concern: it would end a connection with more than 100 until the peer has taken note of another number.
    """

    def __init__(self) -> None:
        super().__init__(_CONFIG)
        self._begun = 0

    @property
    def open_inbound_streams(self) -> int:
        self._begun += 1
        if self._begun % STREAMS_BETWEEN_LOOKS == 0:
            _ = super().open_inbound_streams  # forgets the closed ones
        return 0

    def _receive_goaway_frame(self, frame: GoAwayFrame) -> tuple[list[Frame], list[h2.events.Event]]:
        """h2 would end the calls that run, which a peer that goes in good order waits for (RFC 9113, 6.8)."""
        if frame.error_code != h2.errors.ErrorCodes.NO_ERROR:
            return super()._receive_goaway_frame(frame)
        event = h2.events.ConnectionTerminated()
        event.error_code = h2.errors.ErrorCodes.NO_ERROR
        return [], [event]


class FrameHeads:
    """Follows the heads of frames in what comes: where a piece ends whose reading takes a short time.

    Frames that are longer than allowed are found by their heads, too: h2 refuses them, but only once it has all of them.
    """

    def __init__(self) -> None:
        self._left = PREFACE_BYTES
        self._head = b""

    def piece_end(self, data: bytes, at: int) -> int:
        """Where the piece that begins there ends. Raises FrameTooLargeError."""
        end, work = len(data), 0
        at += self._left
        while at < end and work < PIECE_WORK:
            missing = HEAD_BYTES - len(self._head)
            self._head += data[at : at + missing]
            at += missing
            if len(self._head) < HEAD_BYTES:
                break
            head, self._head = self._head, b""
            size = int.from_bytes(head[:3], "big")
            if size > (DATA_FRAME_BYTES_MAX if head[3] == DATA else FRAME_BYTES_MAX):
                raise h2.exceptions.FrameTooLargeError
            # A byte of anything but data may be a header. New windows are set for all streams.
            work += PIECE_WORK if head[3] == SETTINGS else FRAME_WORK if head[3] == DATA else FRAME_WORK + size
            at += size
        if at > end:
            self._left = 0 if self._head else at - end
            return end
        self._left = 0
        return at

"""HTTP/2 by h2, for a server that many streams of one peer are open at, and that trusts no peer."""

import h2.config
import h2.connection

STREAMS_BETWEEN_COUNTS = 64
# HTTP/2's own, RFC 9113.
PREFACE_BYTES, HEAD_BYTES, FRAME_BYTES_MAX = 24, 9, 16_384
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
    """Counts its streams now and then: h2 does so for each new one, which takes as long as there are streams."""

    def __init__(self) -> None:
        super().__init__(_CONFIG)
        self._begun = 0

    @property
    def open_inbound_streams(self) -> int:
        self._begun += 1
        return super().open_inbound_streams if self._begun % STREAMS_BETWEEN_COUNTS == 0 else 0


class FrameLengths:
    """Finds frames that are longer than allowed by their heads: h2 refuses them, but only once it has all of them."""

    def __init__(self) -> None:
        self._left = PREFACE_BYTES
        self._head = b""

    def is_too_long(self, data: bytes) -> bool:
        """Whether a frame that begins in this piece is."""
        at, end = self._left, len(data)
        while at < end:
            missing = HEAD_BYTES - len(self._head)
            self._head += data[at : at + missing]
            if len(self._head) < HEAD_BYTES:
                at = end
                break
            size = int.from_bytes(self._head[:3], "big")
            self._head = b""
            if size > FRAME_BYTES_MAX:
                return True
            at += missing + size
        self._left = at - end
        return False

"""What a stream is called, and how far its content can be relied on."""

from enum import StrEnum

from msgspec import Struct


class StreamKey(Struct, frozen=True, cache_hash=True):
    """Names one stream: the events of one rank of one pod that serves one model."""

    model: str
    pod: str
    rank: int


class Trust(StrEnum):
    """How far a stream's content can be relied on."""

    LIVE = "live"
    """Complete since its start or a complete replay."""
    PARTIAL = "partial"
    """What is known is right, some is missing."""
    STALE = "stale"
    """Not confirmed at present: disconnected, or a gap not yet closed."""
    EXPIRED = "expired"
    """Dropped."""

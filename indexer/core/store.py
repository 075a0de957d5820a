"""Where the changes of a stream go."""

from typing import Protocol

from msgspec import Struct

from indexer.core.change import Change
from indexer.core.groups import CacheShape
from indexer.core.names import StreamKey, Trust


class StreamPosition(Struct, frozen=True, gc=False):
    """A stream's position between two batches. `complete`: nothing is missing, as far as is known."""

    sequence: int | None
    fingerprint: bytes | None
    complete: bool
    trust: Trust
    is_simulator: bool


class Store(Protocol):
    """What a stream's owner writes to. No call but `room` waits for anything."""

    has_limits: bool
    """Whether it may fall behind, so that the stream has to await `room` now and then."""
    needs_records: bool
    """Whether a change has to say what became of each engine hash, in `Change.records`, and where the stream stands after it."""

    def open(self, stream: StreamKey) -> None:
        """Make the stream known, holding nothing."""

    def append(self, stream: StreamKey, shape: CacheShape | None, change: Change, position: StreamPosition | None) -> None:
        """One batch was applied, whether it changed anything or not. `shape`: how the stream's blocks are cut, None before any block.

        `position`: that after the batch; None for a store that needs no records.
        """

    def drop(self, stream: StreamKey, position: StreamPosition) -> None:
        """Hold nothing of the stream any more; it stays known."""

    def set_trust(self, stream: StreamKey, trust: Trust, position: StreamPosition) -> None:
        """Say how far the stream's content can be relied on."""

    def close(self, stream: StreamKey) -> None:
        """Forget the stream. Idempotent."""

    async def room(self, stream: StreamKey) -> None:
        """Wait, not for long, while too many of the stream's changes wait to be written."""

"""Where the changes of a stream go."""

from typing import Protocol

from msgspec import Struct

from indexer.core.change import Change
from indexer.core.names import StreamKey, Trust


class Point(Struct, frozen=True):
    """Where a stream stands between two batches. `complete`: nothing is missing, as far as is known."""

    sequence: int | None
    fingerprint: bytes | None
    complete: bool
    trust: Trust
    is_simulator: bool


class Store(Protocol):
    """What a stream's owner writes to. No call but `room` waits for anything."""

    has_limits: bool
    """Whether it may fall behind, so that whoever writes has to await `room` now and then."""

    def open(self, stream: StreamKey) -> None:
        """Make the stream known, holding nothing."""

    def append(self, stream: StreamKey, block_size: int, change: Change) -> None:
        """Apply the change of one batch. `block_size`: tokens per block."""

    def recorded(self, stream: StreamKey) -> None:
        """A batch was applied, whether it changed anything or not: the stream's sequence went on."""

    def drop(self, stream: StreamKey) -> None:
        """Hold nothing of the stream any more; it stays known."""

    def vouch(self, stream: StreamKey, trust: Trust) -> None:
        """Say how far the stream's content can be relied on."""

    def close(self, stream: StreamKey) -> None:
        """Forget the stream. Idempotent."""

    async def room(self, stream: StreamKey) -> None:
        """Wait, not for long, while too many of the stream's changes wait to be written."""

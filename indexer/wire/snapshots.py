"""How an engine is asked for all that it holds now, and how it answers: one dialect for each way in which engines do that.

A snapshot is batches of events that make its state out of nothing, each with the number of the first live batch that is not in it.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from msgspec import Struct

from indexer.errors import Refused
from indexer.wire.frames import split_reply


class SnapshotBatch(Struct, frozen=True):
    """A part of a snapshot. `resume`: the number of the first live batch that is not in the snapshot, the same in all parts."""

    resume: int
    payload: bytes


class SnapshotDialect(Protocol):
    """A way to ask. `request`: the content of the message that asks."""

    request: bytes

    def read(self, frames: Sequence[bytes]) -> SnapshotBatch | None:
        """One reply; None for the end. Raises Refused."""


class OnReplaySocket:
    """`snapshot` at the replay endpoint in place of a number, answered in the frames of a replay (github.com/vllm-project/vllm/pull/50134).

    An engine that does not know it reads the eight bytes as a number that it never reaches, and answers with the end alone.
    """

    request = b"snapshot"

    def read(self, frames: Sequence[bytes]) -> SnapshotBatch | None:
        """See `SnapshotDialect`."""
        reply = split_reply(frames)
        return None if reply is None else SnapshotBatch(*reply)


DIALECTS: Mapping[str, SnapshotDialect] = {"replay": OnReplaySocket()}


class SnapshotReading:
    """The parts of one snapshot, in their order. `resume`: None before the first one."""

    def __init__(self, dialect: SnapshotDialect, bytes_max: int) -> None:
        self._dialect = dialect
        self._bytes_left = bytes_max
        self.resume: int | None = None

    def read(self, frames: Sequence[bytes]) -> bytes | None:
        """The payload of the next part; None at the end. Raises Refused for what is no part of it, and for one that is too large."""
        part = self._dialect.read(frames)
        if part is None:
            return None
        self._bytes_left -= len(part.payload)
        if self._bytes_left < 0:
            raise Refused("snapshot_size")
        if self.resume is not None and part.resume != self.resume:
            raise Refused("frame_sequence")
        self.resume = part.resume
        return part.payload

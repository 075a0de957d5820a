"""How an engine is asked for all that it holds now, and how it answers: one dialect for each way in which engines do that.

A snapshot is batches of events that make its state out of nothing, each with the number of the first live batch that is not in it.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from msgspec import Struct

from indexer.core.events import Event, Removed, Stored, Tier
from indexer.errors import Refused
from indexer.wire.frames import split_reply

NUMBER_BYTES = 8
PUBLISHER_ID_BYTES = 16
# The number of the last batch in a snapshot: before the first one, and where there is no snapshot at present.
NOTHING_PUBLISHED = -1


class SnapshotBatch(Struct, frozen=True):
    """A part of a snapshot. `resume`: the number of the first live batch that is not in the snapshot, the same in all parts."""

    resume: int
    payload: bytes


class UnavailableError(Exception):
    """The engine makes no snapshot at present, and may make one later."""


class SnapshotDialect(Protocol):
    """A way to ask. `request`: the content of the message that asks. `is_one_message`: whether all comes in one message, which the engine first has
    to make, and which is of no use before its end."""

    request: bytes
    is_one_message: bool

    def parts(self, frames: Sequence[bytes]) -> Iterable[SnapshotBatch | None]:
        """What is in one reply; None for the end. Raises Refused, UnavailableError."""

    def filter(self, *, counts_copies: bool) -> Callable[[Event], bool] | None:
        """Says of each event of a snapshot, in their order, whether it counts; None where all do. `counts_copies`: whether the stream counts the
        copies of a block on the gpu."""


class OnReplaySocket:
    """`snapshot` at the replay endpoint in place of a number, answered in the frames of a replay (github.com/vllm-project/vllm/pull/50134).

    An engine that does not know it reads the eight bytes as a number that it never reaches, and answers with the end alone.
    """

    request = b"snapshot"
    is_one_message = False

    def parts(self, frames: Sequence[bytes]) -> Iterable[SnapshotBatch | None]:
        """See `SnapshotDialect`."""
        reply = split_reply(frames)
        return [None if reply is None else SnapshotBatch(*reply)]

    def filter(self, *, counts_copies: bool) -> None:
        """See `SnapshotDialect`."""


class AtOwnEndpoint:
    """`snapshot` at an endpoint of its own, answered in one message (github.com/vllm-project/vllm/pull/57789): the number of the last batch in it,
    signed, what identifies the publisher's process, and the payloads.

    The events announce each block with its tokens, the parents first; remove those that are held nowhere; announce each copy that there is, by hash
    alone; and remove one copy of each block that is held, which is the first announcement's.
    """

    request = b"snapshot"
    is_one_message = True

    def parts(self, frames: Sequence[bytes]) -> Iterable[SnapshotBatch | None]:
        """See `SnapshotDialect`."""
        if len(frames) < 3 or frames[0]:
            raise Refused("frame_count")
        number, publisher_id = frames[1], frames[2]
        if len(number) != NUMBER_BYTES or len(publisher_id) != PUBLISHER_ID_BYTES:
            raise Refused("frame_sequence")
        last = int.from_bytes(number, "big", signed=True)
        if last < NOTHING_PUBLISHED:
            raise UnavailableError
        # One without blocks has no payload, and begins with its number all the same.
        payloads = frames[3:] or [EMPTY]
        return [*(SnapshotBatch(last + 1, payload) for payload in payloads), None]

    def filter(self, *, counts_copies: bool) -> Callable[[Event], bool]:
        """See `SnapshotDialect`. Where one copy counts, however often it is announced, the removals at the end would take it."""
        are_copies_announced = False

        def keeps(event: Event) -> bool:
            nonlocal are_copies_announced
            if isinstance(event, Stored) and not event.tokens and not event.sparse_tokens:
                are_copies_announced = True
            if not isinstance(event, Removed) or not are_copies_announced:
                return True
            return counts_copies and event.tier is Tier.GPU

        return keeps


# A batch without events.
EMPTY = b"\x93\xca\x00\x00\x00\x00\x90\xc0"
ON_REPLAY_SOCKET, AT_OWN_ENDPOINT = OnReplaySocket(), AtOwnEndpoint()


class SnapshotReading:
    """The parts of one snapshot, in their order. `resume`: None before the first one."""

    def __init__(self, dialect: SnapshotDialect, bytes_max: int, *, counts_copies: bool = True) -> None:
        self.parts = dialect.parts
        self.keeps = dialect.filter(counts_copies=counts_copies)
        self._bytes_left = bytes_max
        self.resume: int | None = None

    def read(self, part: SnapshotBatch) -> bytes:
        """The payload of the next part. Raises Refused for one that does not belong to it, or makes it too large."""
        self._bytes_left -= len(part.payload)
        if self._bytes_left < 0:
            raise Refused("snapshot_size")
        if self.resume is not None and part.resume != self.resume:
            raise Refused("frame_sequence")
        self.resume = part.resume
        return part.payload

"""The room that everything received has together until it is applied: the messages in all inboxes, parts of messages, and replies to replays."""

import asyncio
import threading
from typing import Protocol

# What Python keeps around a message and around each of its frames.
MESSAGE_OVERHEAD = 200
FRAME_OVERHEAD = 48
# A share of the room is for what makes no whole message yet, and another for replies.
PENDING_SHARE = REPLIES_SHARE = 0.25
# Where there is no room left, each inbox keeps at most so much of what its equal share would be.
KEPT_SHARE = 0.75

# So many snapshots that come as one message each are received at a time.
WHOLE_SNAPSHOTS_MAX = 4


def cost(frames: list[bytes]) -> int:
    """Bytes that a message takes in memory, about."""
    return sum(map(len, frames)) + costs_besides(1, len(frames))


def costs_besides(messages: int, frames: int) -> int:
    """Bytes that so many messages of so many frames take besides their bytes."""
    return MESSAGE_OVERHEAD * messages + FRAME_OVERHEAD * frames


class Trimmed(Protocol):
    """Holds messages. `cost`: the sum of theirs, changed by the holder under the room's lock."""

    cost: int

    def trim(self, cost_max: int) -> None:
        """Drop the oldest messages until the rest costs at most so much. With the lock held."""


class Cuttable(Protocol):
    """Receives parts of a message."""

    def cut(self) -> None:
        """Receive no more, and give up what came."""


class Room:
    """`used`: what all inboxes cost together, changed under `lock` only. Parts of messages and replies come on top."""

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.lock = threading.Lock()
        self.used = 0
        self._holders: set[Trimmed] = set()
        self._pending: dict[Cuttable, int] = {}
        self._pending_bytes = 0
        self.replies_bytes = 0
        """Of replies to replays; used by the event loop only."""
        self.whole_snapshots = asyncio.Semaphore(WHOLE_SNAPSHOTS_MAX)
        """Held while a snapshot is received that is of no use before its last byte."""

    @property
    def replies_bytes_max(self) -> int:
        """What replies to all replays together may take before they are read at the pace of applying."""
        return int(self.bytes_max * REPLIES_SHARE)

    def enter(self, holder: Trimmed) -> None:
        """This one holds something now. With the lock held."""
        self._holders.add(holder)

    def leave(self, holder: Trimmed) -> None:
        """This one holds nothing any more. With the lock held."""
        self._holders.discard(holder)

    def make(self, holder: Trimmed) -> None:
        """Called by who holds more now. Where all hold too much together, those with more than an equal share give theirs up, the present one
        first. With the lock held."""
        if self.used <= self.bytes_max:
            return
        share = int(self.bytes_max * KEPT_SHARE) // max(1, len(self._holders))
        if holder.cost > share:
            holder.trim(max(share, holder.cost - (self.used - self.bytes_max)))
        if self.used > self.bytes_max:
            for other in tuple(self._holders):
                if other.cost > share:
                    other.trim(share)

    def note_pending(self, connection: Cuttable, size: int) -> None:
        """So much of what came over this connection makes no message yet. Where all have too much, the one with most is cut."""
        self._pending_bytes += size - self._pending.pop(connection, 0)
        if size:
            self._pending[connection] = size
        while self._pending_bytes > self.bytes_max * PENDING_SHARE and len(self._pending) > 1:
            max(self._pending, key=self._pending.__getitem__).cut()

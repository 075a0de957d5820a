"""Frames between the receiving thread and a stream's task."""

from collections import deque
from collections.abc import Callable
from itertools import chain, repeat

from indexer.limits import ReceiveLimits
from indexer.receiving.room import Room, cost, costs_besides


class Inbox:
    """Frames of one stream between the receiving thread and the stream's task, with the state of the connection.

    `epoch` counts connections; `connected` says whether the newest one is up. The receiving thread alone writes these and appends; the
    stream's task alone takes. `bytes`: of the frames; `cost`: with what is kept around them.
    """

    def __init__(self, limits: ReceiveLimits, wake: Callable[[], None] | None = None, room: Room | None = None) -> None:
        """`room`: what it shares with other inboxes."""
        self._limits = limits
        self.wake: Callable[[], None] = wake or _nobody
        self._frames: deque[tuple[int, list[bytes]]] = deque()
        self._room = room or Room(limits.inboxes_bytes_max)
        self._lock = self._room.lock
        self.bytes = 0
        self.cost = 0
        self.dropped = 0
        self.epoch = 0
        self.connected = False
        self.error: str | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def begin(self) -> None:
        """A new connection is up."""
        self.epoch += 1
        self.connected = True
        self.error = None

    def put(self, frames: list[bytes]) -> None:
        """Add one message of the present connection; the oldest go where there is no room."""
        self.put_all([frames])

    def put_all(self, messages: list[list[bytes]]) -> None:
        """Add these messages of the present connection, at least one; the oldest go where there is no room."""
        size, room = sum(map(len, chain.from_iterable(messages))), self._room
        taken = size + costs_besides(len(messages), sum(map(len, messages)))
        with self._lock:
            if not self._frames:
                room.enter(self)
            self._frames.extend(zip(repeat(self.epoch), messages))
            self.bytes += size
            self.cost += taken
            room.used += taken
            while len(self._frames) > self._limits.inbox_frames_max or (self.bytes > self._limits.inbox_bytes_max and len(self._frames) > 1):
                self._pop()
                self.dropped += 1
            if room.used > room.bytes_max:
                room.make(self)

    def trim(self, cost_max: int) -> None:
        """Drop the oldest until the rest costs at most so much. With the room's lock held."""
        while self.cost > cost_max and self._frames:
            self._pop()
            self.dropped += 1

    def limit(self, limits: ReceiveLimits) -> None:
        """Hold as much as this from now on."""
        self._limits = limits

    def kept(self) -> list[tuple[int, list[bytes]]]:
        """All messages that wait, oldest first, each with the epoch it came in, left where they are."""
        with self._lock:
            return list(self._frames)

    def pass_over(self, message: list[bytes]) -> None:
        """Throw away this message and all before it."""
        while (oldest := self.take()) is not None and oldest[1] is not message:
            pass

    def peek(self) -> tuple[int, list[bytes]] | None:
        """The oldest message with the epoch it came in, left where it is."""
        try:
            return self._frames[0]
        except IndexError:
            return None

    def take(self) -> tuple[int, list[bytes]] | None:
        """The oldest message with the epoch it came in."""
        with self._lock:
            return self._pop() if self._frames else None

    def take_some(self, epoch: int, count_max: int, bytes_max: int) -> list[list[bytes]]:
        """The oldest messages, as far as they came in this epoch: so many, and no more once they have so many bytes."""
        taken: list[list[bytes]] = []
        waiting = self._frames
        with self._lock:
            left = self.bytes - bytes_max
            while waiting and waiting[0][0] == epoch and len(taken) < count_max and (self.bytes > left or not taken):
                taken.append(self._pop()[1])
        return taken

    def put_back(self, epoch: int, messages: list[list[bytes]]) -> None:
        """Messages that were taken and are not done with: they are the oldest again. Nothing goes to make room for them before the next one comes."""
        with self._lock:
            for frames in reversed(messages):
                if not self._frames:
                    self._room.enter(self)
                taken = cost(frames)
                self._frames.appendleft((epoch, frames))
                self.bytes += sum(map(len, frames))
                self.cost += taken
                self._room.used += taken

    def clear(self) -> None:
        """Throw everything away."""
        with self._lock:
            while self._frames:
                self._pop()

    def discard_before(self, epoch: int) -> None:
        """Throw away what older connections brought."""
        with self._lock:
            while self._frames and self._frames[0][0] < epoch:
                self._pop()

    def _pop(self) -> tuple[int, list[bytes]]:
        """Take out the oldest. With the lock held."""
        oldest = self._frames.popleft()
        frames = oldest[1]
        taken = cost(frames)
        self.bytes -= sum(map(len, frames))
        self.cost -= taken
        self._room.used -= taken
        if not self._frames:
            self._room.leave(self)
        return oldest


def _nobody() -> None:
    """Used until an inbox has a reader: there is none to wake."""

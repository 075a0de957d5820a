"""What waits for something else to be announced, by engine hash: bounded in number, in bytes and in time, the oldest goes first."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from indexer.core.event_pieces import Steps


class Waiting(Protocol):
    """`since_s`: when it came. `size`: bytes of tokens and keys that it holds."""

    since_s: float

    @property
    def size(self) -> int: ...


T = TypeVar("T", bound=Waiting)


class WaitingList(Generic[T]):
    """`entries`: engine hash → what waits, the oldest first; to read. Who changes the size of one says so: `resized`."""

    def __init__(self, count_max: int, bytes_max: int) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self.entries: OrderedDict[int, T] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self.entries)

    def add(self, engine_hash: int, waiting: T) -> None:
        """This hash does not wait yet."""
        self.entries[engine_hash] = waiting
        self.bytes += waiting.size

    def pop(self, engine_hash: int) -> T | None:
        """Take it out; None where it does not wait."""
        waiting = self.entries.pop(engine_hash, None)
        if waiting is not None:
            self.bytes -= waiting.size
        return waiting

    def resized(self, former_size: int, size: int) -> None:
        """The size of an entry has changed."""
        self.bytes += size - former_size

    def drop_excess(self, remove: Callable[[int], object]) -> int:
        """Remove the oldest above the limits of their number and bytes. `remove`: takes one out, by `pop`. Returns how many."""
        dropped = 0
        while self.entries and (len(self.entries) > self._count_max or self.bytes > self._bytes_max):
            remove(next(iter(self.entries)))
            dropped += 1
        return dropped

    def drop_before(self, since_s: float, remove: Callable[[int], object]) -> Steps[int]:
        """The same with those that came before this time."""
        dropped = 0
        while self.entries and self.entries[oldest := next(iter(self.entries))].since_s < since_s:
            remove(oldest)
            dropped += 1
            yield
        return dropped

    def clear(self) -> None:
        """Nothing waits any more."""
        self.entries.clear()
        self.bytes = 0

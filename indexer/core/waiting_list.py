"""What waits for something else to be announced, by engine hash: bounded in number, in bytes and in time, the oldest goes first."""

from collections import OrderedDict
from typing import Generic, Protocol, TypeVar


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

    def excess(self) -> int | None:
        """The hash that has waited longest, if there are too many or too large ones."""
        return next(iter(self.entries), None) if len(self.entries) > self._count_max or self.bytes > self._bytes_max else None

    def expired(self, since_s: float) -> int | None:
        """The hash that has waited longest, if it came before this time."""
        oldest = next(iter(self.entries.items()), None)
        return oldest[0] if oldest is not None and oldest[1].since_s < since_s else None

    def clear(self) -> None:
        """Nothing waits any more."""
        self.entries.clear()
        self.bytes = 0

"""A pod's KV cache in blocks, as vLLM keeps it: blocks of running requests, and blocks that only the cache keeps, the oldest of which go first.

A request gives its blocks back from its last one to its first. So of one prompt the last blocks are evicted first, and what is left is a prefix.
"""

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockCache:
    """`capacity`: in blocks. Each block is used by requests, kept by the cache alone, or empty."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._users: dict[int, int] = {}
        self._kept: OrderedDict[int, None] = OrderedDict()
        self._used = 0
        self.evicted: list[int] = []
        """The hashes of blocks that were evicted since somebody emptied this list."""

    @property
    def used(self) -> int:
        """Blocks that requests use."""
        return self._used

    @property
    def free(self) -> int:
        """Blocks that a request can have: empty ones, and those of the cache alone."""
        return self.capacity - self._used

    def __contains__(self, block: int) -> bool:
        return block in self._users or block in self._kept

    def __len__(self) -> int:
        """Blocks that have a hash."""
        return len(self._users) + len(self._kept)

    def match(self, hashes: Sequence[int], most: int) -> int:
        """How many of these blocks, from the first, are there; at most `most`."""
        for number, block in enumerate(hashes[:most]):
            if block not in self:
                return number
        return min(most, len(hashes))

    def kept(self, hashes: Iterable[int]) -> int:
        """How many of these only the cache keeps: using them makes as many fewer free."""
        return sum(block in self._kept for block in hashes)

    def share(self, hashes: Iterable[int]) -> None:
        """One more request uses these blocks, which are there."""
        users, kept = self._users, self._kept
        for block in hashes:
            if block in users:
                users[block] += 1
            else:
                del kept[block]
                users[block] = 1
                self._used += 1

    def allocate(self, count: int) -> None:
        """A request uses so many more blocks, which have no hash yet. Raises ValueError where there are not so many free ones."""
        if count > self.free:
            raise ValueError(f"{count} blocks are not free, {self.free} are")
        self._used += count
        excess = self._used + len(self._kept) - self.capacity
        for _ in range(excess):
            self.evicted.append(self._kept.popitem(last=False)[0])

    def name(self, hashes: Iterable[int]) -> list[int]:
        """Blocks that were allocated are full now, and have these hashes. Returns those that are new: the others were computed by two at once."""
        new = []
        for block in hashes:
            if block in self._users:
                self._users[block] += 1
                self._used -= 1
            elif block in self._kept:
                del self._kept[block]
                self._users[block] = 1
            else:
                self._users[block] = 1
                new.append(block)
        return new

    def release(self, hashes: Sequence[int], unnamed: int) -> None:
        """A request ends, or is preempted: it used these blocks, from its first on, and so many without a hash."""
        users = self._users
        for block in reversed(hashes):
            count = users[block] - 1
            if count:
                users[block] = count
            else:
                del users[block]
                self._kept[block] = None
                self._used -= 1
        self._used -= unnamed

    def clear(self) -> None:
        """The engine restarts."""
        self._users.clear()
        self._kept.clear()
        self._used = 0
        self.evicted.clear()

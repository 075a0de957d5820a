"""Blocks announced before their parent: parked until it appears.

A late subscriber sees these all the time. They are kept one by one, oldest first, and found by their own hash or by their parent's.
"""

from collections.abc import Iterable, Iterator

from indexer.core.events import Tier
from indexer.core.parts import PARKED, Touched


class Parked:
    """A block that waits for its parent. `copies`: tier → copies announced so far. `tokens`, `extra`: what its key will be made of."""

    __slots__ = ("copies", "extra", "parent", "since_s", "tokens")

    def __init__(self, parent: int, tokens: bytes, extra: bytes, since_s: float) -> None:
        self.parent = parent
        self.tokens = tokens
        self.extra = extra
        self.since_s = since_s
        self.copies: dict[Tier, int] = {}


class Orphans:
    """All parked blocks of one stream, by engine hash, in the order in which they came.

    `touched`: where to note the hashes that come, go or change; None for nowhere.
    """

    def __init__(self, touched: Touched | None = None) -> None:
        self.touched = touched
        self._parked: dict[int, Parked] = {}
        self._children: dict[int, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def __contains__(self, engine_hash: int) -> bool:
        return engine_hash in self._parked

    def __iter__(self) -> Iterator[int]:
        return iter(self._parked)

    def get(self, engine_hash: int) -> Parked | None:
        """The parked block of this hash."""
        return self._parked.get(engine_hash)

    def items(self) -> Iterable[tuple[int, Parked]]:
        """All parked blocks with their hashes."""
        return self._parked.items()

    def touch(self, engine_hash: int) -> None:
        """The copies of this block changed."""
        if self.touched is not None:
            self.touched[PARKED].append(engine_hash)

    def children(self, parent: int) -> list[int]:
        """The hashes that wait for this parent."""
        return list(self._children.get(parent, ()))

    def park(self, engine_hash: int, parent: int, tokens: bytes, extra: bytes, now_s: float) -> Parked:
        """Keep a block that is not parked yet; the caller adds its copies."""
        parked = self._parked[engine_hash] = Parked(parent, tokens, extra, now_s)
        self._children.setdefault(parent, {})[engine_hash] = None
        self.touch(engine_hash)
        return parked

    def pop(self, engine_hash: int) -> Parked:
        """Take a parked block out."""
        parked = self._parked.pop(engine_hash)
        self.touch(engine_hash)
        siblings = self._children[parked.parent]
        del siblings[engine_hash]
        if not siblings:
            del self._children[parked.parent]
        return parked

    def pop_descendants(self, parent: int) -> Iterator[tuple[int, Parked]]:
        """Take out the blocks that wait for this hash, and those that wait for them, parents first."""
        waiting = self.children(parent)
        while waiting:
            child = waiting.pop()
            yield child, self.pop(child)
            waiting.extend(self.children(child))

    def drop_over(self, count_max: int) -> int:
        """Drop the oldest above the limit. Returns how many."""
        over = max(0, len(self._parked) - count_max)
        for _ in range(over):
            self.pop(next(iter(self._parked)))
        return over

    def drop_before(self, since_s: float) -> int:
        """Drop what was parked before this time. Returns how many went."""
        dropped = 0
        while self._parked and self._parked[oldest := next(iter(self._parked))].since_s < since_s:
            self.pop(oldest)
            dropped += 1
        return dropped

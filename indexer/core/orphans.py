"""Blocks whose key is not known yet: parked until it is.

    announced before their parent    the key follows from the parent's; a late subscriber sees these all the time
    named without their tokens       by a group or tier that announces only hashes, before the announcement that has the tokens

They are kept one by one, oldest first, and found by their own hash or by their parent's.
"""

from collections.abc import Iterable, Iterator

from indexer.core.events import Tier
from indexer.core.places import PARKED, Touched, place_of, slot_and_part


def group_and_tier(number: int, tier: Tier) -> int:
    """Names the tier of a group in `Parked.copies`: like a place, by the group's number, since its slot may not be known yet."""
    return place_of(number, tier)


def number_and_tier(of: int) -> tuple[int, Tier]:
    """What `group_and_tier` made a number of."""
    number, part = slot_and_part(of)
    return number, Tier(part)


class Parked:
    """A block that waits for its key. `copies`: `group_and_tier` → copies announced so far. `tokens`, `extra`: what its key will be made of, with the
    key of its parent; without tokens it waits for its own announcement."""

    __slots__ = ("copies", "extra", "parent", "since_s", "tokens")

    def __init__(self, parent: int | None, tokens: bytes, extra: bytes, since_s: float) -> None:
        self.parent = parent
        self.tokens = tokens
        self.extra = extra
        self.since_s = since_s
        self.copies: dict[int, int] = {}


class Orphans:
    """All parked blocks of one stream, by engine hash, in the order in which they came.

    `parked`: by engine hash; to read. `touched`: where to note the hashes that come, go or change; None for nowhere.
    """

    def __init__(self, touched: Touched | None = None) -> None:
        self.touched = touched
        self.parked: dict[int, Parked] = {}
        self._children: dict[int, dict[int, None]] = {}

    def __len__(self) -> int:
        return len(self.parked)

    def __contains__(self, engine_hash: int) -> bool:
        return engine_hash in self.parked

    def __iter__(self) -> Iterator[int]:
        return iter(self.parked)

    def get(self, engine_hash: int) -> Parked | None:
        """The parked block of this hash."""
        return self.parked.get(engine_hash)

    def items(self) -> Iterable[tuple[int, Parked]]:
        """All parked blocks with their hashes."""
        return self.parked.items()

    def touch(self, engine_hash: int) -> None:
        """The copies of this block changed."""
        if self.touched is not None:
            self.touched[PARKED].append(engine_hash)

    def children(self, parent: int) -> list[int]:
        """The hashes that wait for this parent."""
        return list(self._children.get(parent, ()))

    def park(self, engine_hash: int, parent: int | None, tokens: bytes, extra: bytes, now_s: float) -> Parked:
        """Keep a block that is not parked yet; the caller adds its copies."""
        parked = self.parked[engine_hash] = Parked(parent, tokens, extra, now_s)
        if parent is not None:
            self._children.setdefault(parent, {})[engine_hash] = None
        self.touch(engine_hash)
        return parked

    def announce(self, engine_hash: int, parked: Parked, parent: int, tokens: bytes, extra: bytes) -> None:
        """A parked block whose tokens were not known is announced with them."""
        parked.parent, parked.tokens, parked.extra = parent, tokens, extra
        self._children.setdefault(parent, {})[engine_hash] = None
        self.touch(engine_hash)

    def pop(self, engine_hash: int) -> Parked:
        """Take a parked block out."""
        parked = self.parked.pop(engine_hash)
        self.touch(engine_hash)
        if parked.parent is not None:
            siblings = self._children[parked.parent]
            del siblings[engine_hash]
            if not siblings:
                del self._children[parked.parent]
        return parked

    def drop_over(self, count_max: int) -> int:
        """Drop the oldest above the limit. Returns how many."""
        over = max(0, len(self.parked) - count_max)
        for _ in range(over):
            self.pop(next(iter(self.parked)))
        return over

    def drop_before(self, since_s: float) -> int:
        """Drop what was parked before this time. Returns how many went."""
        dropped = 0
        while self.parked and self.parked[oldest := next(iter(self.parked))].since_s < since_s:
            self.pop(oldest)
            dropped += 1
        return dropped

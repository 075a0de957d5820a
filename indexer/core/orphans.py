"""Blocks whose key is not known yet: parked until it is.

    announced before their parent    the key follows from the parent's; a late subscriber sees these all the time
    named without their tokens       by a group or tier that announces only hashes, before the announcement that has the tokens

They are kept one by one, oldest first, and found by their own hash or by their parent's.
"""

from collections.abc import Iterable, Iterator

from indexer.core.event_pieces import Steps
from indexer.core.events import Tier
from indexer.core.places import PARKED, Touched, place_of, slot_and_part
from indexer.core.waiting_list import WaitingList
from indexer.limits import StateLimits

# In so many tiers of groups copies of a parked block are counted: no engine has as many.
PLACES_MAX = 64


def group_and_tier(number: int, tier: Tier) -> int:
    """Names the tier of a group in `Parked.copies`: like a place, by the group's number, since its slot may not be known yet."""
    return place_of(number, tier)


def _is_on_gpu(of: int) -> bool:
    return number_and_tier(of)[1] is Tier.GPU


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

    @property
    def size(self) -> int:
        """Bytes that its tokens and extra keys take."""
        return len(self.tokens) + len(self.extra)


class Orphans:
    """All parked blocks of one stream, by engine hash, in the order in which they came.

    `parked`: by engine hash; to read. `touched`: where to note the hashes that come, go or change; None for nowhere.
    """

    def __init__(self, touched: Touched | None = None, limits: StateLimits | None = None, copies_max: int | None = None) -> None:
        """`copies_max`: instead of that of the limits."""
        limits = limits or StateLimits()
        self._copies_max = copies_max or limits.copies_max
        self.touched = touched
        self._list: WaitingList[Parked] = WaitingList(limits.parked_max, limits.parked_bytes_max)
        self.parked = self._list.entries
        self.awaited: dict[int, dict[int, None]] = {}
        """Parent → the hashes that wait for it; to read."""
        self._with_copies: dict[bool, dict[int, None]] = {True: {}, False: {}}
        """Whether on the gpu → the hashes that have copies there, so that clearing costs what was added."""

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
        return list(self.awaited.get(parent, ()))

    def park(self, engine_hash: int, parent: int | None, tokens: bytes, extra: bytes, now_s: float) -> Parked:
        """Keep a block that is not parked yet; the caller adds its copies."""
        parked = Parked(parent, tokens, extra, now_s)
        self._list.add(engine_hash, parked)
        if parent is not None:
            self.awaited.setdefault(parent, {})[engine_hash] = None
        self.touch(engine_hash)
        return parked

    def add_copies(self, engine_hash: int, of: int, count: int = 1) -> None:
        """More copies of a parked block. `of`: see `group_and_tier`."""
        copies = self.parked[engine_hash].copies
        if of not in copies and len(copies) >= PLACES_MAX:
            return
        # Below the gpu a block is there or not, as where its key is known: one removal ends it.
        copies[of] = min(copies.get(of, 0) + count, self._copies_max if _is_on_gpu(of) else 1)
        self._with_copies[_is_on_gpu(of)][engine_hash] = None
        self.touch(engine_hash)

    def clear_copies(self, *, of_gpu: bool) -> Steps[None]:
        """The copies on the gpu are gone, or those below it."""
        for engine_hash in self._with_copies[of_gpu]:
            copies = self.parked[engine_hash].copies
            for of in [of for of in copies if _is_on_gpu(of) is of_gpu]:
                del copies[of]
            self.touch(engine_hash)
            yield
        self._with_copies[of_gpu].clear()

    def announce(self, engine_hash: int, parked: Parked, parent: int, tokens: bytes, extra: bytes) -> None:
        """A parked block whose tokens were not known is announced with them."""
        former_size = parked.size
        parked.parent, parked.tokens, parked.extra = parent, tokens, extra
        self._list.resized(former_size, parked.size)
        self.awaited.setdefault(parent, {})[engine_hash] = None
        self.touch(engine_hash)

    def pop(self, engine_hash: int) -> Parked:
        """Take a parked block out."""
        parked = self._list.pop(engine_hash)
        assert parked is not None, "the caller knows that it is parked"
        for hashes in self._with_copies.values():
            hashes.pop(engine_hash, None)
        self.touch(engine_hash)
        if parked.parent is not None:
            siblings = self.awaited[parked.parent]
            del siblings[engine_hash]
            if not siblings:
                del self.awaited[parked.parent]
        return parked

    def drop_excess(self) -> int:
        """Drop the oldest above the limits of their number and bytes. Returns how many."""
        return self._list.drop_excess(self.pop)

    def drop_before(self, since_s: float) -> Steps[int]:
        """Drop what was parked before this time. Returns how many went."""
        return self._list.drop_before(since_s, self.pop)

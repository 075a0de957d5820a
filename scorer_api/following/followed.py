"""What is known of one stream that is followed, and what an entry of the log means for it."""

from collections import deque
from enum import Enum, auto

from indexer.core.names import StreamKey, Trust
from indexer.store.reader import START, Place, Stand, State
from indexer.store.records import Entry, Kind
from indexer.streams.stream import ToldStatus

# Entries that wait while their stream is loaded; beyond this it is loaded again.
KEPT_BYTES_MAX = 32 * 2**20
# What an entry costs besides its keys.
ENTRY_BYTES = 512


class Verdict(Enum):
    """What to do with an entry."""

    APPLY = auto()
    EMPTY = auto()
    """A new generation that holds nothing."""
    LOAD = auto()
    """What is held was right until now: it goes on serving until the new content is loaded."""
    LOST = auto()
    """Entries before this one are missing: what is held may be wrong."""
    CLOSE = auto()
    """The stream is deleted."""


def judge(stand: Stand | None, entry: Entry) -> Verdict:
    """What an entry means for a stream of which the state at `stand` is held."""
    match entry.kind:
        case Kind.GONE:
            return Verdict.CLOSE
        case Kind.DROP:
            return Verdict.EMPTY
    if stand is None:
        return Verdict.LOAD
    if entry.generation != stand.generation:
        return Verdict.LOAD if entry.kind is Kind.RELOAD else Verdict.LOST
    # A state that was read between a new owner's claim and its first entry has its fence already.
    follows = entry.after_number == stand.number and stand.fence in (entry.after_fence, entry.fence)
    if not follows:
        return Verdict.LOST
    return Verdict.LOAD if entry.kind is Kind.RELOAD else Verdict.APPLY


def stand_after(entry: Entry) -> Stand:
    """The state after an entry."""
    return Stand(entry.generation, entry.fence, entry.number)


class Followed:
    """One stream. `stand`: the state that is held, None for none; `place`: entries up to there are in it.

    `kept`: entries since its load began, None while none has.
    """

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.stand: Stand | None = None
        self.place: Place = START
        self.trust = Trust.STALE
        self.is_lost = False
        """Whether what is held may be wrong."""
        self.is_newer = False
        """Whether it may be newer than what Redis has, which went back: then its owner will write it again."""
        self.has_moved = False
        """Whether it was read from another server than is Redis now, which may lack the last of it."""
        self.vouched_until_s = float("-inf")
        self.status: bytes | None = None
        self.status_at_s = 0.0
        self.told_in: bytes | None = None
        self.told: ToldStatus | None = None
        """What was read of a status, and which."""
        self.incarnation: bytes | None = None
        """What the model's was when the stream's state was last seen; empty where that is known to be another Redis's."""
        self.missing_since_s: float | None = None
        self.kept: deque[tuple[Place, Entry]] | None = None
        self.must_load_again = False
        self._kept_bytes = 0
        self._doubted: Stand | None = None

    def begin_keeping(self) -> None:
        """Entries from now on belong on top of what is about to be read."""
        self.kept = deque()
        self._kept_bytes = 0
        self.must_load_again = False

    def keep(self, place: Place, entry: Entry) -> None:
        """Keep an entry for the end of the load, or know that the load is in vain."""
        assert self.kept is not None, "entries are kept while a load runs"
        self._kept_bytes += ENTRY_BYTES + sum(len(held) + len(gone) for held, gone in entry.tiers)
        if self._kept_bytes > KEPT_BYTES_MAX:
            self.must_load_again = True
        if self.must_load_again:
            self.kept.clear()
        else:
            self.kept.append((place, entry))

    def stop_keeping(self) -> None:
        """The load ended."""
        self.kept = None
        self.must_load_again = False

    def differs(self, state: State) -> bool:
        """Whether a surveyed state shows that what is held is not what it should be.

        A new owner's fence is in the state before its first entry is in the log: a difference in that alone counts when it stays.
        """
        seen, doubted, self._doubted = state.stand, self._doubted, None
        if seen is None or self.stand is None or seen == self.stand:
            return seen != self.stand
        if (seen.generation, seen.number) != (self.stand.generation, self.stand.number):
            return True
        self._doubted = seen
        return seen == doubted

    def is_ahead(self, state: State) -> bool:
        """Whether what is held is newer than a surveyed state that differs from it: loading that would only make it worse."""
        seen, held = state.stand, self.stand
        if seen is None or held is None:
            return False
        if self.has_moved and (seen.generation, seen.fence) == (held.generation, held.fence):
            return seen.number < held.number
        if not self.is_newer:
            return False
        return seen.generation != held.generation or seen.number < held.number

    def note_status(self, status: bytes | None, now_s: float) -> None:
        """What the owner says of it."""
        if status != self.status:
            self.status, self.status_at_s = status, now_s

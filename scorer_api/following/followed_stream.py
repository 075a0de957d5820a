"""What is known of one stream that is followed, and what an entry of the log means for it."""

from collections import deque
from enum import Enum, auto

import msgspec

from indexer.core.names import StreamKey, Trust
from indexer.engines.spec import is_http_base
from indexer.store.reader import LOG_START, LogOffset, StateVersion, SurveyedState
from indexer.store.records import Entry, Kind
from indexer.streams.status import PublishedStatus

# Entries are buffered while their stream is loaded; beyond this it is loaded again.
BUFFERED_BYTES_MAX = 32 * 2**20
# What an entry costs besides its keys.
ENTRY_BYTES = 512

_decode_status = msgspec.json.Decoder(PublishedStatus).decode


class Verdict(Enum):
    """What to do with an entry."""

    APPLY = auto()
    EMPTY = auto()
    """A new generation that holds nothing."""
    LOAD = auto()
    """What is held was right until now: it keeps serving until the new content is loaded."""
    LOST = auto()
    """Entries before this one are missing: what is held may be wrong."""
    CLOSE = auto()
    """The stream is deleted."""


def judge(held: StateVersion | None, entry: Entry) -> Verdict:
    """What an entry means for a stream of which this version is held."""
    match entry.kind:
        case Kind.GONE:
            return Verdict.CLOSE
        case Kind.DROP:
            return Verdict.EMPTY
    if held is None:
        return Verdict.LOAD
    if entry.generation != held.generation:
        return Verdict.LOAD if entry.kind is Kind.RELOAD else Verdict.LOST
    # A state that was read between a new owner's claim and its first entry has its fence already.
    follows = entry.after_number == held.number and held.fence in (entry.after_fence, entry.fence)
    if not follows:
        return Verdict.LOST
    return Verdict.LOAD if entry.kind is Kind.RELOAD else Verdict.APPLY


def published_status(stream: "FollowedStream") -> PublishedStatus | None:
    """What the owner of a stream published of it last; None where that is nothing, or unreadable."""
    if stream.decoded_from is not stream.status:
        stream.decoded_from, stream.decoded_status = stream.status, _decoded(stream.status)
    return stream.decoded_status


def _decoded(status: bytes | None) -> PublishedStatus | None:
    try:
        published = _decode_status(status or b"")
    except msgspec.MsgspecError:
        return None
    return published if published.http is None or is_http_base(published.http) else msgspec.structs.replace(published, http=None)


def version_after(entry: Entry) -> StateVersion:
    """The version of the state after an entry."""
    return StateVersion(entry.generation, entry.fence, entry.number)


class FollowedStream:
    """One stream.

    version, offset    the state that is held, None for none, and the log offset up to which entries are in it
    trust              the owner's statement, which counts until `trusted_until_s` of the monotonic clock, unless `is_lost`
    buffered           entries since a load began, None while none runs
    """

    def __init__(self, key: StreamKey) -> None:
        self.key = key
        self.version: StateVersion | None = None
        self.offset: LogOffset = LOG_START
        self.trust = Trust.STALE
        self.trusted_until_s = float("-inf")
        self.is_lost = False
        """Whether what is held may be wrong."""
        self.may_be_newer = False
        """Whether what is held may be newer than Redis, which went back: then its owner will write it again."""
        self.confirmed_until_ms: int | None = None
        """Until when, by Redis's clock, it was trusted as Redis went back: another time is a new word of its owner."""
        self.is_of_former_server = False
        """Whether it was read from another server than is Redis now, which may lack the last of it."""
        self.incarnation: bytes | None = None
        """What the model's was when the stream's state was last seen; empty where that is known to be another Redis's."""
        self.missing_since_s: float | None = None
        self.status: bytes | None = None
        """What the owner published of it last, undecoded, and when that was first seen by the monotonic clock."""
        self.status_at_s = 0.0
        self.decoded_status: PublishedStatus | None = None
        self.decoded_from: bytes | None = None
        """The status that was last decoded."""
        self.buffered: deque[tuple[LogOffset, Entry]] | None = None
        self.must_load_again = False
        self._buffered_bytes = 0
        self._other_fence: StateVersion | None = None
        """What the last survey saw, where it differed in the fence alone."""

    def begin_buffering(self) -> None:
        """A load begins: entries from now on are applied on top of what it reads."""
        self.buffered = deque()
        self._buffered_bytes = 0
        self.must_load_again = False

    def buffer(self, offset: LogOffset, entry: Entry) -> None:
        """Keep an entry for the end of the load, or note that the load is in vain."""
        assert self.buffered is not None, "entries are buffered while a load runs"
        self._buffered_bytes += ENTRY_BYTES + sum(len(held) + len(gone) for held, gone in entry.tiers)
        if self._buffered_bytes > BUFFERED_BYTES_MAX:
            self.must_load_again = True
        if self.must_load_again:
            self.buffered.clear()
        else:
            self.buffered.append((offset, entry))

    def stop_buffering(self) -> None:
        """The load ended."""
        self.buffered = None
        self.must_load_again = False

    def differs(self, state: SurveyedState) -> bool:
        """Whether a surveyed state shows that what is held is not what it should be.

        A new owner's fence is in the state before its first entry is in the log: a difference in that alone counts when it stays.
        """
        surveyed, before, self._other_fence = state.version, self._other_fence, None
        if surveyed is None or self.version is None or surveyed == self.version:
            return surveyed != self.version
        if (surveyed.generation, surveyed.number) != (self.version.generation, self.version.number):
            return True
        self._other_fence = surveyed
        return surveyed == before

    def is_ahead_of(self, state: SurveyedState) -> bool:
        """Whether what is held is newer than a surveyed state that differs from it: loading that would only make it worse."""
        surveyed, held = state.version, self.version
        if surveyed is None or held is None:
            return False
        if self.is_of_former_server and (surveyed.generation, surveyed.fence) == (held.generation, held.fence):
            return surveyed.number < held.number
        if not self.may_be_newer:
            return False
        return surveyed.generation != held.generation or surveyed.number < held.number

    def note_status(self, status: bytes | None, now_s: float) -> None:
        """What the owner publishes of it, seen now."""
        if status != self.status:
            self.status, self.status_at_s = status, now_s

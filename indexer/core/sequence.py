"""The publisher's counter: what follows, what is missing, what is a restart.

A publisher process counts its batches from 0. Nothing else distinguishes two processes, so a number alone proves little: a regress against a
number received on the same connection is a restart, and on a new connection the payload behind the last number is compared with the
fingerprint of the one that was applied (docs/explanation/wire-format.md, "What a subscriber survives").
"""

from enum import Enum, auto

from msgspec import Struct
from xxhash import xxh3_128_digest


class Verdict(Enum):
    """What a live batch is to what was applied before it."""

    NEXT = auto()
    DUPLICATE = auto()
    GAP = auto()
    RESTART = auto()


# Returned for every batch, and an enum's member costs as much to name as several look-ups.
_NEXT = Verdict.NEXT


class Sequence:
    """How far one stream was applied. `last`: the last applied number, None where nothing of this process was."""

    def __init__(self) -> None:
        self.last: int | None = None
        self.fingerprint: bytes | None = None
        self._last_live: int | None = None

    @property
    def expected(self) -> int:
        """The number that continues what was applied."""
        return 0 if self.last is None else self.last + 1

    @property
    def has_live_batch(self) -> bool:
        """Whether a live batch of the present connection was taken."""
        return self._last_live is not None

    @property
    def goes_on_live(self) -> bool:
        """Whether the number that is expected is later than all live ones of the present connection."""
        return self.last is not None and (self._last_live is None or self._last_live <= self.last)

    def judge(self, number: int) -> Verdict:
        """What to do with a live batch of this number."""
        if self._last_live is not None and number <= self._last_live:
            return Verdict.RESTART
        expected = 0 if self.last is None else self.last + 1
        if number == expected:
            return _NEXT
        return Verdict.DUPLICATE if number < expected else Verdict.GAP

    def note_live(self, number: int) -> None:
        """A live batch of this number was taken from the present connection."""
        self._last_live = number

    def applied(self, number: int, payload: bytes) -> None:
        """A batch was applied, from wherever it came."""
        self.last = number
        self.fingerprint = xxh3_128_digest(payload)

    def adopt(self, payload: bytes) -> None:
        """This is the payload of the last number, which was applied as a part of something else."""
        self.fingerprint = xxh3_128_digest(payload)

    def resume(self, last: int | None, fingerprint: bytes | None) -> None:
        """Go on from what a former owner of the stream recorded."""
        self.last, self.fingerprint, self._last_live = last, fingerprint, None

    def connected(self) -> None:
        """A new connection: numbers of the old one say nothing about this one."""
        self._last_live = None

    def forget(self) -> None:
        """Nothing of what was applied counts any more."""
        self.last = self.fingerprint = self._last_live = None

    def is_same(self, payload: bytes) -> bool:
        """Whether this payload is the one that was applied last."""
        return self.fingerprint == xxh3_128_digest(payload)


class Step(Enum):
    """What to do with one reply of a replay."""

    APPLY = auto()
    SKIP = auto()
    RESTARTED = auto()
    """Another process answers: forget everything, ask from 0."""
    LOST = auto()
    """History starts later than asked: hold nothing any more, then apply this reply and go on."""
    HOLE = auto()
    """A reply is missing in the middle: stop, ask again from the next one expected."""


class ReplayProgress:
    """Reads the replies to one replay request.

    With `verify` the request is for the last applied number, to see whether the same process answers. So it is after a snapshot, which has no
    payload of that number: then this process's is taken, and nothing is missing where the replies begin with the next one.
    """

    def __init__(self, sequence: Sequence, *, verify: bool) -> None:
        self._sequence = sequence
        self._verify = verify
        self._adopts = not verify and sequence.last is not None and sequence.fingerprint is None
        self.start = sequence.last if (verify or self._adopts) and sequence.last is not None else sequence.expected
        self._expected = self.start
        self.replies = 0

    def reply(self, number: int, payload: bytes) -> Step:
        """What to do with this reply. After APPLY and LOST the caller applies it."""
        if number < self._expected:
            return Step.SKIP
        is_first = not self.replies
        self.replies += 1
        if is_first and number == self.start and self._verify:
            if not self._sequence.is_same(payload):
                return Step.RESTARTED
            self._expected += 1
            return Step.SKIP
        if is_first and self._adopts:
            self._expected += 1
            if number == self.start:
                self._sequence.adopt(payload)
                return Step.SKIP
        if number > self._expected and not is_first:
            return Step.HOLE
        was_expected = number == self._expected
        self._expected = number + 1
        return Step.APPLY if was_expected else Step.LOST

    def ended(self) -> Step:
        """What the end marker says: a process that does not know the last applied number is another one."""
        return Step.RESTARTED if self._verify and not self.replies else Step.SKIP


class Overlap(Enum):
    """How frames that were kept lie to the batch that a former owner recorded as its last."""

    FOUND = auto()
    """It is among them: nothing is missing."""
    RESTARTED = auto()
    """They are another process's."""
    AFTER = auto()
    """They begin after it: judge the first one as any other."""
    BEFORE = auto()
    """They end before it: it may be on its way, or this is another process."""


class KeptMatch(Struct, frozen=True):
    """`done`: this many of the frames, from the oldest, need not be applied."""

    overlap: Overlap
    done: int


def match_kept(recorded: Sequence, batches: list[tuple[int, bytes]]) -> KeptMatch:
    """Find the recorded batch among kept ones: number and payload, oldest first, at least one.

    Numbers that fall back begin another process: what lies before is done with, where the recorded batch is not among them.
    """
    assert recorded.last is not None, "without a recorded batch there is nothing to find"
    restarted_at = 0
    for position, (number, payload) in enumerate(batches):
        if position and number <= batches[position - 1][0]:
            restarted_at = position
        if number == recorded.last and recorded.is_same(payload):
            return KeptMatch(Overlap.FOUND, position + 1)
    if restarted_at or any(number == recorded.last for number, _ in batches):
        return KeptMatch(Overlap.RESTARTED, restarted_at)
    if batches[-1][0] < recorded.last:
        return KeptMatch(Overlap.BEFORE, 0)
    after = next(position for position, (number, _) in enumerate(batches) if number > recorded.last)
    return KeptMatch(Overlap.AFTER, after)

"""What entries and surveys mean for a stream of which one state is held."""

import pytest

from indexer.core.groups import CacheShape
from indexer.core.names import StreamKey, Trust
from indexer.store.reader import StateVersion, SurveyedState
from indexer.store.records import Entry, Kind
from scorer_api.following import followed_stream
from scorer_api.following.followed_stream import FollowedStream, Verdict, judge, version_after

GENERATION, OTHER_GENERATION, FENCE, NEW_FENCE = 11, 12, 21, 22
HELD = StateVersion(GENERATION, FENCE, 5)


def entry(
    kind: Kind = Kind.CHANGE,
    generation: int = GENERATION,
    fence: int = FENCE,
    number: int = 6,
    after: tuple[int, int] = (FENCE, 5),
    tiers: tuple[tuple[bytes, bytes], ...] = (),
) -> Entry:
    return Entry("0:a", kind, generation, fence, number, *after, Trust.LIVE, CacheShape(16), False, tiers)


@pytest.mark.parametrize(
    ("held", "seen", "verdict"),
    [
        (HELD, entry(), Verdict.APPLY),
        (HELD, entry(fence=NEW_FENCE), Verdict.APPLY),
        # The state was read when the new owner had claimed it and not yet written: its first entry names the former one.
        (StateVersion(GENERATION, NEW_FENCE, 5), entry(fence=NEW_FENCE), Verdict.APPLY),
        (HELD, entry(after=(FENCE, 4), number=5), Verdict.LOST),
        (HELD, entry(after=(FENCE, 6), number=7), Verdict.LOST),
        (HELD, entry(fence=NEW_FENCE, after=(NEW_FENCE, 5)), Verdict.LOST),
        (HELD, entry(generation=OTHER_GENERATION), Verdict.LOST),
        (HELD, entry(Kind.RELOAD), Verdict.LOAD),
        (HELD, entry(Kind.RELOAD, after=(FENCE, 7), number=8), Verdict.LOST),
        (HELD, entry(Kind.RELOAD, OTHER_GENERATION, NEW_FENCE, 90, (NEW_FENCE, 88)), Verdict.LOAD),
        (HELD, entry(Kind.DROP, OTHER_GENERATION, NEW_FENCE, 90, (NEW_FENCE, 88)), Verdict.EMPTY),
        (HELD, entry(Kind.GONE), Verdict.CLOSE),
        (None, entry(), Verdict.LOAD),
        (None, entry(Kind.RELOAD), Verdict.LOAD),
        (None, entry(Kind.DROP), Verdict.EMPTY),
        (None, entry(Kind.GONE), Verdict.CLOSE),
    ],
)
def test_what_an_entry_means(held: StateVersion | None, seen: Entry, verdict: Verdict) -> None:
    assert judge(held, seen) is verdict


def test_the_state_after_an_entry() -> None:
    assert version_after(entry(fence=NEW_FENCE)) == StateVersion(GENERATION, NEW_FENCE, 6)


def holding(version: StateVersion | None = HELD) -> FollowedStream:
    made = FollowedStream(StreamKey("m", "a", 0))
    made.version = version
    return made


def surveyed(generation: int = GENERATION, fence: int = FENCE, number: int = 5) -> SurveyedState:
    return SurveyedState(StateVersion(generation, fence, number), None)


def test_a_difference_in_number_or_generation_counts_at_once() -> None:
    assert not holding().differs(surveyed())
    assert holding().differs(surveyed(number=6))
    assert holding().differs(surveyed(number=4))
    assert holding().differs(surveyed(generation=OTHER_GENERATION))
    assert holding(None).differs(surveyed())


def test_a_difference_in_the_fence_alone_counts_when_it_stays() -> None:
    stream = holding()
    assert [stream.differs(surveyed(fence=fence)) for fence in (NEW_FENCE, NEW_FENCE)] == [False, True]
    stream = holding()
    assert [stream.differs(surveyed(fence=fence)) for fence in (NEW_FENCE, FENCE, NEW_FENCE, 23, 23)] == [False, False, False, False, True]


def test_only_after_redis_went_back_what_is_held_can_be_newer() -> None:
    stream = holding()
    assert not stream.is_ahead_of(surveyed(number=4))
    stream.may_be_newer = True
    assert stream.is_ahead_of(surveyed(number=4))
    assert stream.is_ahead_of(surveyed(generation=OTHER_GENERATION, number=90))
    assert not stream.is_ahead_of(surveyed(number=6))


def test_entries_are_buffered_up_to_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_stream, "BUFFERED_BYTES_MAX", 5_000)
    stream = holding()
    stream.begin_buffering()
    large = entry(tiers=((bytes(1_000), bytes(1_000)),))
    stream.buffer((1, 0), large)  # 2,512 bytes
    assert not stream.must_load_again
    stream.buffer((1, 1), large)
    assert stream.buffered is not None
    assert (len(stream.buffered), stream.must_load_again) == (0, True)
    stream.buffer((1, 2), entry())
    assert (len(stream.buffered), stream.must_load_again) == (0, True)
    stream.begin_buffering()
    stream.buffer((1, 3), entry())
    assert (len(stream.buffered), stream.must_load_again) == (1, False)
    stream.stop_buffering()
    assert (stream.buffered, stream.must_load_again) == (None, False)

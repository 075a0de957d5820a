"""What numbers say: the live ones, and those of replies to a replay."""

import pytest

from indexer.core.sequence import KeptMatch, Overlap, ReplayProgress, Sequence, Step, Verdict, match_kept


def sequence(last: int | None = None, last_live: int | None = None) -> Sequence:
    """A stream of which the batches up to `last` were applied, each with its number as payload."""
    made = Sequence()
    if last is not None:
        made.applied(last, b"%d" % last)
    if last_live is not None:
        made.note_live(last_live)
    return made


@pytest.mark.parametrize(
    ("last", "last_live", "number", "verdict"),
    [
        (None, None, 0, Verdict.NEXT),
        (None, None, 1, Verdict.GAP),
        (None, 4, 5, Verdict.GAP),
        (None, 4, 4, Verdict.RESTART),
        (7, None, 8, Verdict.NEXT),
        (7, None, 7, Verdict.DUPLICATE),
        (7, None, 0, Verdict.DUPLICATE),
        (7, None, 9, Verdict.GAP),
        (7, None, 2**64 - 2, Verdict.GAP),
        (7, 7, 8, Verdict.NEXT),
        (7, 7, 9, Verdict.GAP),
        (7, 7, 7, Verdict.RESTART),
        (7, 7, 0, Verdict.RESTART),
        (9, 5, 6, Verdict.DUPLICATE),
        (9, 5, 9, Verdict.DUPLICATE),
        (9, 5, 10, Verdict.NEXT),
        (9, 5, 5, Verdict.RESTART),
    ],
)
def test_a_live_number_is_judged_by_what_was_applied_and_heard(last: int | None, last_live: int | None, number: int, verdict: Verdict) -> None:
    assert sequence(last, last_live).judge(number) is verdict


def test_a_regress_on_a_new_connection_alone_is_no_restart() -> None:
    stream = sequence(last=7, last_live=7)
    stream.connected()
    assert not stream.has_live_batch
    assert stream.judge(7) is Verdict.DUPLICATE
    assert stream.judge(8) is Verdict.NEXT


def test_a_new_connection_remembers_what_was_applied() -> None:
    stream = sequence(last=7, last_live=7)
    stream.connected()
    assert stream.last == 7
    assert stream.is_same(b"7")


def test_what_is_forgotten_starts_from_0() -> None:
    stream = sequence(last=7, last_live=7)
    stream.forget()
    assert (stream.last, stream.expected, stream.has_live_batch) == (None, 0, False)
    assert not stream.is_same(b"7")
    assert stream.judge(0) is Verdict.NEXT


def test_the_fingerprint_is_of_the_payload_that_was_applied_last() -> None:
    stream = sequence(last=7)
    stream.applied(8, b"eight")
    assert stream.is_same(b"eight")
    assert not stream.is_same(b"7")
    assert not stream.is_same(b"eight ")
    assert not stream.is_same(b"")


def test_nothing_is_the_same_as_nothing_applied() -> None:
    assert not Sequence().is_same(b"")


# Replays. A reply is (number, payload); the payload of a life's batch is its number.


def steps(progress: ReplayProgress, *replies: int | tuple[int, bytes]) -> list[Step]:
    taken = [progress.reply(*(reply if isinstance(reply, tuple) else (reply, b"%d" % reply))) for reply in replies]
    return [*taken, progress.ended()]


def test_a_gap_is_replayed_from_the_next_number() -> None:
    progress = ReplayProgress(sequence(last=7), verify=False)
    assert progress.start == 8
    assert steps(progress, 8, 9, 10) == [Step.APPLY, Step.APPLY, Step.APPLY, Step.SKIP]
    assert progress.replies == 3


def test_a_first_replay_starts_at_0() -> None:
    progress = ReplayProgress(sequence(), verify=False)
    assert progress.start == 0
    assert steps(progress, 0, 1) == [Step.APPLY, Step.APPLY, Step.SKIP]


def test_the_end_marker_alone_closes_no_gap_and_loses_nothing() -> None:
    progress = ReplayProgress(sequence(last=7), verify=False)
    assert steps(progress) == [Step.SKIP]
    assert progress.replies == 0


def test_what_was_applied_already_is_dropped() -> None:
    assert steps(ReplayProgress(sequence(last=7), verify=False), 6, 7, 8) == [Step.SKIP, Step.SKIP, Step.APPLY, Step.SKIP]


def test_a_reply_that_comes_twice_is_dropped() -> None:
    assert steps(ReplayProgress(sequence(last=7), verify=False), 8, 8, 9) == [Step.APPLY, Step.SKIP, Step.APPLY, Step.SKIP]


def test_a_replay_that_starts_later_than_asked_has_lost_history() -> None:
    assert steps(ReplayProgress(sequence(last=7), verify=False), 12, 13) == [Step.LOST, Step.APPLY, Step.SKIP]


def test_a_first_replay_that_starts_later_than_0_has_lost_history() -> None:
    assert steps(ReplayProgress(sequence(), verify=False), 1, 2) == [Step.LOST, Step.APPLY, Step.SKIP]


def test_a_reply_missing_in_the_middle_is_a_hole() -> None:
    assert steps(ReplayProgress(sequence(last=7), verify=False), 8, 10)[:2] == [Step.APPLY, Step.HOLE]
    assert steps(ReplayProgress(sequence(last=7), verify=True), 7, 9)[:2] == [Step.SKIP, Step.HOLE]
    assert steps(ReplayProgress(sequence(last=7), verify=False), 12, 14)[:2] == [Step.LOST, Step.HOLE]


def test_a_reconnect_asks_for_the_last_number() -> None:
    assert ReplayProgress(sequence(last=7), verify=True).start == 7
    assert ReplayProgress(sequence(last=0), verify=True).start == 0


def test_the_same_payload_behind_the_last_number_is_the_same_life() -> None:
    progress = ReplayProgress(sequence(last=7), verify=True)
    assert steps(progress, 7, 8, 9) == [Step.SKIP, Step.APPLY, Step.APPLY, Step.SKIP]


def test_the_last_number_alone_confirms_the_same_life() -> None:
    assert steps(ReplayProgress(sequence(last=7), verify=True), 7) == [Step.SKIP, Step.SKIP]


def test_another_payload_behind_the_last_number_is_another_life() -> None:
    assert steps(ReplayProgress(sequence(last=7), verify=True), (7, b"other"))[0] is Step.RESTARTED


def test_an_end_marker_alone_where_the_last_number_was_asked_for_is_another_life() -> None:
    assert ReplayProgress(sequence(last=7), verify=True).ended() is Step.RESTARTED


def test_a_history_without_the_last_number_cannot_be_told_and_is_lost() -> None:
    assert steps(ReplayProgress(sequence(last=7), verify=True), 9, 10) == [Step.LOST, Step.APPLY, Step.SKIP]
    assert steps(ReplayProgress(sequence(last=7), verify=True), 8)[0] is Step.LOST


def test_the_payload_is_compared_where_the_request_verifies_only() -> None:
    stream = sequence(last=7)
    stream.applied(8, b"eight")
    assert steps(ReplayProgress(stream, verify=False), (9, b"any")) == [Step.APPLY, Step.SKIP]


# KeptMatch what was kept to what a former owner recorded


def kept(*numbers: int, life: bytes = b"") -> list[tuple[int, bytes]]:
    return [(number, life + b"%d" % number) for number in numbers]


@pytest.mark.parametrize(
    ("batches", "overlap", "done"),
    [
        # The recorded batch, 7, is there: what comes behind it is new.
        (kept(5, 6, 7), Overlap.FOUND, 3),
        (kept(5, 6, 7, 8, 9), Overlap.FOUND, 3),
        (kept(7), Overlap.FOUND, 1),
        (kept(6, 7) + kept(0, 1, life=b"new "), Overlap.FOUND, 2),
        (kept(0, 1, life=b"old ") + kept(6, 7, 8), Overlap.FOUND, 4),
        (kept(7, life=b"old ") + kept(7, 8), Overlap.FOUND, 2),
        # A batch of its number with another payload, or numbers that fall back: another life.
        (kept(7, 8, life=b"new "), Overlap.RESTARTED, 0),
        (kept(6, 7, 8, life=b"new "), Overlap.RESTARTED, 0),
        (kept(5, 6) + kept(0, 1, 2, life=b"new "), Overlap.RESTARTED, 2),
        (kept(8, 9) + kept(0, life=b"new "), Overlap.RESTARTED, 2),
        (kept(3, life=b"a ") + kept(3, life=b"b ") + kept(1, life=b"c "), Overlap.RESTARTED, 2),
        # What was kept begins behind it: the next one, or a gap.
        (kept(8), Overlap.AFTER, 0),
        (kept(8, 9), Overlap.AFTER, 0),
        (kept(12, 13), Overlap.AFTER, 0),
        (kept(5, 6, 8), Overlap.AFTER, 2),
        (kept(5, 9), Overlap.AFTER, 1),
        # It has not come yet, or never will.
        (kept(6), Overlap.BEFORE, 0),
        (kept(0, 1, 2), Overlap.BEFORE, 0),
    ],
)
def test_kept_batches_are_joined_where_the_recorded_one_is(batches: list[tuple[int, bytes]], overlap: Overlap, done: int) -> None:
    assert match_kept(sequence(last=7), batches) == KeptMatch(overlap, done)


def test_a_sequence_goes_on_from_what_was_recorded() -> None:
    stream = Sequence()
    stream.note_live(3)
    recorded = sequence(last=7)
    stream.resume(recorded.last, recorded.fingerprint)
    assert (stream.expected, stream.has_live_batch, stream.is_same(b"7"), stream.is_same(b"8")) == (8, False, True, False)


def after_snapshot(resume: int = 8) -> Sequence:
    """A stream that took a snapshot: what came before `resume` is in it, and no payload is known."""
    made = Sequence()
    made.resume(resume - 1, None)
    return made


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((7, 8), [Step.SKIP, Step.APPLY]),
        ((8, 9), [Step.APPLY, Step.APPLY]),  # the engine retains nothing older, and nothing is missing
        ((9,), [Step.LOST]),
        ((7, 9), [Step.SKIP, Step.HOLE]),
    ],
)
def test_after_a_snapshot_replies_begin_with_its_last_number_or_the_next(numbers: tuple[int, ...], expected: list[Step]) -> None:
    progress = ReplayProgress(after_snapshot(), verify=False)
    assert progress.start == 7
    assert [progress.reply(number, b"%d" % number) for number in numbers] == expected


def test_the_payload_of_its_last_number_is_remembered_to_know_the_process_again() -> None:
    found = after_snapshot()
    progress = ReplayProgress(found, verify=False)
    progress.reply(7, b"7")
    assert progress.ended() is Step.SKIP
    assert found.is_same(b"7")
    assert ReplayProgress(found, verify=True).reply(7, b"other") is Step.RESTARTED


def test_an_end_alone_after_a_snapshot_is_no_restart() -> None:
    assert ReplayProgress(after_snapshot(), verify=False).ended() is Step.SKIP


def test_a_snapshot_of_before_a_reconnect_proves_nothing() -> None:
    assert ReplayProgress(after_snapshot(), verify=True).reply(7, b"7") is Step.RESTARTED

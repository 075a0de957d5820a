"""Who takes which stream: every decision without Redis and without waiting."""

from collections import Counter
from collections.abc import Sequence
from itertools import permutations

import pytest

from indexer.core.names import StreamKey
from indexer.ownership.assignment import Assignment, Duty, ObservedStream, ranking

LEASE_S = 3.0
NEVER = float("-inf")
STREAMS = [StreamKey("m", f"pod-{number}", rank) for number in range(250) for rank in range(4)]
MEMBERS = ("a", "b", "c", "d")


def stream_of(*order: str) -> StreamKey:
    """A stream that falls to these members in this order."""
    return next(stream for stream in STREAMS if ranking(stream, order) == list(order))


def duty(
    seen: ObservedStream, me: str = "me", members: Sequence[str] = ("me", "other"), *, now_s: float = 100.0, outage_ended_s: float = NEVER
) -> Duty:
    """What is decided at first sight."""
    return Assignment(me, LEASE_S).decide([seen], members, now_s, outage_ended_s)[seen.stream]


MINE, OTHERS = stream_of("me", "other"), stream_of("other", "me")


# Rendezvous


def test_members_win_even_shares() -> None:
    won = Counter(ranking(stream, MEMBERS)[0] for stream in STREAMS)
    # 1,000 throws at four: 250 each, give or take four times the standard deviation of 13.7.
    assert set(won) == set(MEMBERS)
    assert all(195 <= count <= 305 for count in won.values()), won


def test_the_ranks_of_a_pod_do_not_stick_together() -> None:
    pods = {stream.pod for stream in STREAMS}
    together = sum(len({ranking(StreamKey("m", pod, rank), MEMBERS)[0] for rank in range(4)}) == 1 for pod in pods)
    # All four to one of four members: one in 64, of 250 pods about four.
    assert together <= 15


def test_all_come_to_the_same_ranking_whatever_order_they_see() -> None:
    for stream in STREAMS[:20]:
        assert len({tuple(ranking(stream, order)) for order in permutations(MEMBERS)}) == 1


def test_when_a_member_goes_only_its_streams_move_to_those_next_in_line() -> None:
    left = [member for member in MEMBERS if member != "b"]
    for stream in STREAMS:
        before = ranking(stream, MEMBERS)
        assert ranking(stream, left) == [member for member in before if member != "b"]


def test_when_a_member_comes_streams_move_to_it_only() -> None:
    moved = [stream for stream in STREAMS if ranking(stream, MEMBERS)[0] != ranking(stream, (*MEMBERS, "e"))[0]]
    assert 145 <= len(moved) <= 255  # a fifth of 1,000, give or take four standard deviations
    assert {ranking(stream, (*MEMBERS, "e"))[0] for stream in moved} == {"e"}


def test_models_pods_and_ranks_are_told_apart() -> None:
    alike = [StreamKey("m", "p1", 0), StreamKey("m", "p", 10), StreamKey("mp", "", 10), StreamKey("m", "p", 1)]
    members = [f"member-{number}" for number in range(50)]
    assert len({tuple(ranking(stream, members)) for stream in alike}) == len(alike)


# Decisions


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        # It runs here.
        (ObservedStream(MINE, runs_here=True), Duty.KEEP),
        (ObservedStream(OTHERS, runs_here=True), Duty.KEEP),  # nobody asks: whoever would win does not know the engine
        (ObservedStream(OTHERS, runs_here=True, wanted_by="other"), Duty.HAND_OVER),
        (ObservedStream(MINE, runs_here=True, wanted_by="other"), Duty.KEEP),  # it asks in vain: it does not see me yet
        (ObservedStream(OTHERS, runs_here=True, wanted_by="stranger"), Duty.KEEP),
        (ObservedStream(MINE, runs_here=True, wanted_by="me"), Duty.KEEP),
        # Somebody has it.
        (ObservedStream(MINE, owner="other"), Duty.ASK),
        (ObservedStream(MINE, owner="dead"), Duty.ASK),
        (ObservedStream(OTHERS, owner="other"), Duty.NOTHING),
        (ObservedStream(OTHERS, owner="other", has_replay=False), Duty.STAND_BY),
        (ObservedStream(OTHERS, owner="stranger", has_replay=False), Duty.NOTHING),  # next in line is the other
        (ObservedStream(OTHERS, owner="me"), Duty.TAKE),  # a lease of ours without a stream that runs: a takeover that broke off
        # Nobody has it.
        (ObservedStream(MINE), Duty.ASK),
        (ObservedStream(OTHERS), Duty.NOTHING),
        (ObservedStream(OTHERS, has_replay=False), Duty.STAND_BY),
    ],
)
def test_each_situation_has_its_duty(seen: ObservedStream, expected: Duty) -> None:
    assert duty(seen) is expected


def test_third_in_line_keeps_nothing() -> None:
    stream = stream_of("x", "y", "me")
    members = ("me", "x", "y")
    assert duty(ObservedStream(stream, has_replay=False, owner="x"), members=members) is Duty.NOTHING
    assert duty(ObservedStream(stream, has_replay=False, owner="y"), members=members) is Duty.NOTHING
    assert duty(ObservedStream(stream, has_replay=False), members=members) is Duty.NOTHING
    # The owner died, and was a member still a moment ago: what is kept is not thrown away now.
    assert duty(ObservedStream(stream, has_replay=False, stands_by=True), members=members) is Duty.STAND_BY


def test_next_in_line_is_counted_without_the_owner_who_may_not_be_the_winner() -> None:
    stream = stream_of("x", "me", "y")
    members = ("me", "x", "y")
    assert duty(ObservedStream(stream, has_replay=False, owner="x"), members=members) is Duty.STAND_BY
    # The winner does not know the engine, or is about to ask for it: it would be the next owner.
    assert duty(ObservedStream(stream, has_replay=False, owner="y"), members=members) is Duty.NOTHING


def test_a_stream_that_its_winner_leaves_alone_is_taken_after_a_lease() -> None:
    assignment = Assignment("me", LEASE_S)
    seen = ObservedStream(OTHERS)

    def at(now_s: float, seen: ObservedStream = seen) -> Duty:
        return assignment.decide([seen], ("me", "other"), now_s, NEVER)[seen.stream]

    assert at(100.0) is Duty.NOTHING
    assert at(103.0) is Duty.NOTHING
    assert at(103.1) is Duty.TAKE
    # Once somebody has it the time counts anew.
    assert at(103.2, ObservedStream(OTHERS, owner="other")) is Duty.NOTHING
    assert at(103.3) is Duty.NOTHING
    assert at(106.2) is Duty.NOTHING
    assert at(106.4) is Duty.TAKE


def test_a_lone_indexer_takes_everything_at_once() -> None:
    taken = Assignment("me", LEASE_S).decide([ObservedStream(stream) for stream in STREAMS], (), 0.0, NEVER)
    assert set(taken.values()) == {Duty.ASK}


def test_nothing_is_taken_for_one_lease_after_an_outage() -> None:
    for seen in (ObservedStream(MINE), ObservedStream(MINE, owner="other")):
        assert duty(seen, now_s=102.9, outage_ended_s=100.0) is Duty.NOTHING
        assert duty(seen, now_s=103.0, outage_ended_s=100.0) is Duty.ASK
    assignment = Assignment("me", LEASE_S)
    for now_s, expected in ((90.0, Duty.NOTHING), (102.9, Duty.NOTHING), (103.1, Duty.TAKE)):
        assert assignment.decide([ObservedStream(OTHERS)], ("me", "other"), now_s, 100.0)[OTHERS] is expected


def test_after_an_outage_own_streams_are_kept_and_taken_up_again() -> None:
    assert duty(ObservedStream(MINE, runs_here=True), now_s=100.0, outage_ended_s=100.0) is Duty.KEEP
    assert duty(ObservedStream(MINE, owner="me"), now_s=100.0, outage_ended_s=100.0) is Duty.TAKE
    # Frames are kept meanwhile where nobody can be asked for them.
    assert duty(ObservedStream(MINE, has_replay=False), now_s=100.0, outage_ended_s=100.0) is Duty.STAND_BY


def test_two_indexers_that_see_the_same_never_both_take_or_both_leave_a_stream() -> None:
    for stream in STREAMS[:100]:
        duties = [duty(ObservedStream(stream), me=me, members=MEMBERS) for me in MEMBERS]
        assert sorted(each.name for each in duties) == ["ASK", "NOTHING", "NOTHING", "NOTHING"]


# A stream whose node of a Cluster is away


def test_a_stream_that_nobody_can_ask_about_stays_as_it_is() -> None:
    for seen in (
        ObservedStream(MINE, is_hidden=True),
        ObservedStream(OTHERS, is_hidden=True, stands_by=True, has_replay=False),
        ObservedStream(MINE, runs_here=True),
    ):
        assert duty(seen) is Duty.KEEP


def test_what_was_hidden_counts_as_free_only_since_it_was_seen_to_be() -> None:
    assignment = Assignment("me", LEASE_S)
    found = [
        assignment.decide([ObservedStream(OTHERS, is_hidden=is_hidden)], ("me", "other"), now_s, NEVER)[OTHERS]
        for now_s, is_hidden in ((100.0, False), (102.0, True), (104.0, False), (106.9, False), (107.1, False))
    ]
    assert found == [Duty.NOTHING, Duty.KEEP, Duty.NOTHING, Duty.NOTHING, Duty.TAKE]


def test_each_stream_has_its_own_outages() -> None:
    seen = [ObservedStream(MINE, outage_ended_s=99.0), ObservedStream(OTHERS, outage_ended_s=99.0)]
    assert Assignment("me", LEASE_S).decide(seen, ("me",), 101.0, NEVER) == {MINE: Duty.NOTHING, OTHERS: Duty.NOTHING}
    seen = [ObservedStream(MINE, outage_ended_s=99.0), ObservedStream(OTHERS, outage_ended_s=90.0)]
    assert Assignment("me", LEASE_S).decide(seen, ("me",), 101.0, NEVER) == {MINE: Duty.NOTHING, OTHERS: Duty.ASK}

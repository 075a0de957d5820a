"""Who takes which stream, and which pods there are: every decision without Redis and without waiting."""

from collections import Counter
from collections.abc import Sequence
from itertools import permutations

import pytest

from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec
from indexer.ownership.assignment import Duty, Owners, Pods, Seen, ranking

LEASE_S = 3.0
NEVER = float("-inf")
STREAMS = [StreamKey("m", f"pod-{number}", rank) for number in range(250) for rank in range(4)]
MEMBERS = ("a", "b", "c", "d")


def stream_of(*order: str) -> StreamKey:
    """A stream that falls to these members in this order."""
    return next(stream for stream in STREAMS if ranking(stream, order) == list(order))


def duty(seen: Seen, me: str = "me", members: Sequence[str] = ("me", "other"), *, now_s: float = 100.0, outage_ended_s: float = NEVER) -> Duty:
    """What is decided at first sight."""
    return Owners(me, LEASE_S).decide([seen], members, now_s, outage_ended_s)[seen.stream]


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
        (Seen(MINE, runs_here=True), Duty.KEEP),
        (Seen(OTHERS, runs_here=True), Duty.KEEP),  # nobody asks: whoever would win does not know the engine
        (Seen(OTHERS, runs_here=True, wanted_by="other"), Duty.HAND_OVER),
        (Seen(MINE, runs_here=True, wanted_by="other"), Duty.KEEP),  # it asks in vain: it does not see me yet
        (Seen(OTHERS, runs_here=True, wanted_by="stranger"), Duty.KEEP),
        (Seen(MINE, runs_here=True, wanted_by="me"), Duty.KEEP),
        # Somebody has it.
        (Seen(MINE, owner="other"), Duty.ASK),
        (Seen(MINE, owner="dead"), Duty.ASK),
        (Seen(OTHERS, owner="other"), Duty.NOTHING),
        (Seen(OTHERS, owner="other", has_replay=False), Duty.STAND_BY),
        (Seen(OTHERS, owner="stranger", has_replay=False), Duty.NOTHING),  # next in line is the other
        (Seen(OTHERS, owner="me"), Duty.TAKE),  # a lease of ours without a stream that runs: a takeover that broke off
        # Nobody has it.
        (Seen(MINE), Duty.ASK),
        (Seen(OTHERS), Duty.NOTHING),
        (Seen(OTHERS, has_replay=False), Duty.STAND_BY),
    ],
)
def test_each_situation_has_its_duty(seen: Seen, expected: Duty) -> None:
    assert duty(seen) is expected


def test_third_in_line_keeps_nothing() -> None:
    stream = stream_of("x", "y", "me")
    members = ("me", "x", "y")
    assert duty(Seen(stream, has_replay=False, owner="x"), members=members) is Duty.NOTHING
    assert duty(Seen(stream, has_replay=False, owner="y"), members=members) is Duty.NOTHING
    assert duty(Seen(stream, has_replay=False), members=members) is Duty.NOTHING
    # The owner died, and was a member still a moment ago: what is kept is not thrown away now.
    assert duty(Seen(stream, has_replay=False, stands_by=True), members=members) is Duty.STAND_BY


def test_next_in_line_is_counted_without_the_owner_who_may_not_be_the_winner() -> None:
    stream = stream_of("x", "me", "y")
    members = ("me", "x", "y")
    assert duty(Seen(stream, has_replay=False, owner="x"), members=members) is Duty.STAND_BY
    # The winner does not know the engine, or is about to ask for it: it would be the next owner.
    assert duty(Seen(stream, has_replay=False, owner="y"), members=members) is Duty.NOTHING


def test_a_stream_that_its_winner_leaves_alone_is_taken_after_a_lease() -> None:
    owners = Owners("me", LEASE_S)
    seen = Seen(OTHERS)

    def at(now_s: float, seen: Seen = seen) -> Duty:
        return owners.decide([seen], ("me", "other"), now_s, NEVER)[seen.stream]

    assert at(100.0) is Duty.NOTHING
    assert at(103.0) is Duty.NOTHING
    assert at(103.1) is Duty.TAKE
    # Once somebody has it the time counts anew.
    assert at(103.2, Seen(OTHERS, owner="other")) is Duty.NOTHING
    assert at(103.3) is Duty.NOTHING
    assert at(106.2) is Duty.NOTHING
    assert at(106.4) is Duty.TAKE


def test_a_lone_indexer_takes_everything_at_once() -> None:
    taken = Owners("me", LEASE_S).decide([Seen(stream) for stream in STREAMS], (), 0.0, NEVER)
    assert set(taken.values()) == {Duty.ASK}


def test_nothing_is_taken_for_one_lease_after_an_outage() -> None:
    for seen in (Seen(MINE), Seen(MINE, owner="other")):
        assert duty(seen, now_s=102.9, outage_ended_s=100.0) is Duty.NOTHING
        assert duty(seen, now_s=103.0, outage_ended_s=100.0) is Duty.ASK
    owners = Owners("me", LEASE_S)
    for now_s, expected in ((90.0, Duty.NOTHING), (102.9, Duty.NOTHING), (103.1, Duty.TAKE)):
        assert owners.decide([Seen(OTHERS)], ("me", "other"), now_s, 100.0)[OTHERS] is expected


def test_after_an_outage_own_streams_are_kept_and_taken_up_again() -> None:
    assert duty(Seen(MINE, runs_here=True), now_s=100.0, outage_ended_s=100.0) is Duty.KEEP
    assert duty(Seen(MINE, owner="me"), now_s=100.0, outage_ended_s=100.0) is Duty.TAKE
    # Frames are kept meanwhile where nobody can be asked for them.
    assert duty(Seen(MINE, has_replay=False), now_s=100.0, outage_ended_s=100.0) is Duty.STAND_BY


def test_two_indexers_that_see_the_same_never_both_take_or_both_leave_a_stream() -> None:
    for stream in STREAMS[:100]:
        duties = [duty(Seen(stream), me=me, members=MEMBERS) for me in MEMBERS]
        assert sorted(each.name for each in duties) == ["ASK", "NOTHING", "NOTHING", "NOTHING"]


# Pods


def specs(pod: str, **more: object) -> tuple[EngineSpec, ...]:
    return (EngineSpec.from_mapping({"pod": pod, "model": "m", "events": f"tcp://{pod}:5557", **more}, "test"),)


def guest(pod: str, rank: int = 0) -> EngineSpec:
    return EngineSpec(pod, "m", rank=rank)


NONE: frozenset[str] = frozenset()


def test_a_registration_replaces_a_flag_and_the_flag_comes_back_with_no_registration() -> None:
    pods = Pods({"a": specs("a"), "b": specs("b")})
    assert pods.all() == {"a": specs("a"), "b": specs("b")}
    pods.learn({"a": specs("a", rank=1)}, NONE)
    assert pods.all() == {"a": specs("a", rank=1), "b": specs("b")}
    pods.learn({}, NONE)
    assert pods.all() == {"a": specs("a"), "b": specs("b")}


def test_a_forgotten_pod_is_gone_also_where_a_flag_names_it_until_it_is_registered() -> None:
    pods = Pods({"a": specs("a")})
    pods.learn({}, frozenset({"a"}))
    assert pods.all() == {}
    pods.learn({}, NONE)  # that it was forgotten is not remembered for ever
    assert pods.all() == {}
    pods.learn({"a": specs("a", rank=1)}, NONE)
    assert pods.all() == {"a": specs("a", rank=1)}


def test_a_flag_that_is_read_again_and_new_counts_again() -> None:
    pods = Pods({"a": specs("a"), "b": specs("b")})
    pods.learn({}, frozenset({"a", "b"}))
    pods.configure({"a": specs("a", rank=1), "b": specs("b")})
    assert pods.all() == {"a": specs("a", rank=1)}
    pods.learn({}, frozenset({"a", "b"}))  # still remembered: nobody forgot it anew
    assert pods.all() == {"a": specs("a", rank=1)}
    pods.configure({})
    assert pods.all() == {}


def test_a_registered_pod_that_redis_knows_nothing_of_was_lost() -> None:
    pods = Pods({"f": specs("f")})
    pods.learn({"a": specs("a"), "b": specs("b"), "c": specs("c")}, NONE)
    assert pods.lost({"a"}, {"b"}) == {"c": specs("c")}


def test_what_is_not_named_any_more_is_deleted_only_where_all_indexers_know() -> None:
    pods = Pods({"flag": specs("flag"), "both": specs("both")})
    pods.learn({"registered": specs("registered")}, NONE)
    pods.forget("both")
    pods.configure({})
    assert not pods.is_void("flag")  # others may have the flag still
    assert pods.is_void("both")
    assert pods.is_void("registered")  # e.g. a rank of it that is not named any more


def test_guests_come_and_go_by_rank() -> None:
    pods = Pods({})
    pods.invite(guest("g", 0))
    pods.invite(guest("g", 1))
    assert pods.has_guest(StreamKey("m", "g", 0))
    assert not pods.has_guest(StreamKey("m", "g", 2))
    assert not pods.has_guest(StreamKey("n", "g", 0))
    pods.part(StreamKey("m", "g", 0))
    assert pods.all() == {"g": (guest("g", 1),)}
    pods.part(StreamKey("m", "g", 1))
    pods.part(StreamKey("m", "g", 1))
    assert pods.all() == {}


def test_a_guest_that_is_registered_is_no_guest_any_more() -> None:
    pods = Pods({})
    pods.invite(guest("g"))
    pods.learn({"g": specs("g")}, NONE)
    assert pods.all() == {"g": specs("g")}
    assert not pods.has_guest(StreamKey("m", "g", 0))


def test_a_forgotten_guest_may_come_again() -> None:
    pods = Pods({})
    pods.invite(guest("g"))
    pods.learn({}, frozenset({"g"}))
    assert pods.all() == {}
    pods.invite(guest("g"))
    pods.learn({}, frozenset({"g"}))
    assert pods.all() == {"g": (guest("g"),)}


# A stream whose node of a Cluster is away


def test_a_stream_that_nobody_can_ask_about_stays_as_it_is() -> None:
    for seen in (Seen(MINE, is_hidden=True), Seen(OTHERS, is_hidden=True, stands_by=True, has_replay=False), Seen(MINE, runs_here=True)):
        assert duty(seen) is Duty.KEEP


def test_what_was_hidden_counts_as_free_only_since_it_was_seen_to_be() -> None:
    owners = Owners("me", LEASE_S)
    found = [
        owners.decide([Seen(OTHERS, is_hidden=is_hidden)], ("me", "other"), now_s, NEVER)[OTHERS]
        for now_s, is_hidden in ((100.0, False), (102.0, True), (104.0, False), (106.9, False), (107.1, False))
    ]
    assert found == [Duty.NOTHING, Duty.KEEP, Duty.NOTHING, Duty.NOTHING, Duty.TAKE]


def test_each_stream_has_its_own_outages() -> None:
    seen = [Seen(MINE, outage_ended_s=99.0), Seen(OTHERS, outage_ended_s=99.0)]
    assert Owners("me", LEASE_S).decide(seen, ("me",), 101.0, NEVER) == {MINE: Duty.NOTHING, OTHERS: Duty.NOTHING}
    seen = [Seen(MINE, outage_ended_s=99.0), Seen(OTHERS, outage_ended_s=90.0)]
    assert Owners("me", LEASE_S).decide(seen, ("me",), 101.0, NEVER) == {MINE: Duty.NOTHING, OTHERS: Duty.ASK}

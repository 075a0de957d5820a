"""What is made of a stream's status and its sockets: above all what cannot be brought about on one machine, a network that lies in between."""

import pytest

from scorer_api.doctor.findings import EXIT_CODES, worst
from scorer_api.doctor.reply import Reply
from scorer_api.doctor.seen import EngineSeen, Handshake, Heard, PodSeen, Replied, SocketsSeen, StreamSeen
from scorer_api.doctor.stream_checks import judge_pod, judge_stream

EVENTS, REPLAY = "tcp://10.0.0.7:5557", "tcp://10.0.0.7:5558"
TIMED_OUT, REFUSED = Handshake(error="no connection within 3 s"), Handshake(error="refused", is_refused=True)
PUB = Handshake(address=EVENTS, is_zmq=True, mechanism="NULL", socket_type="PUB")
ROUTER = Handshake(address=REPLAY, is_zmq=True, mechanism="NULL", socket_type="ROUTER")
ANSWERED = Replied(4, replies=1, has_ended=True)
ENGINE = EngineSeen("http://10.0.0.7:8000", Reply(200))


def stream(*, connected: bool = True, trust: str = "live", **more: object) -> StreamSeen:
    return StreamSeen(0, trust, connected, **{"sequence": 4, "batches": 5, "events": EVENTS, "replay": REPLAY, **more})  # type: ignore[arg-type]


def judged(status: StreamSeen, sockets: SocketsSeen, engine: EngineSeen | None = ENGINE, later: StreamSeen | None = None) -> tuple[set[str], int]:
    """The codes, and the exit code."""
    found = judge_stream(PodSeen("pod", "m", [status]), status, sockets, engine, later)
    return {each.code for each in found}, EXIT_CODES[worst(found)]


@pytest.mark.parametrize("unreached", [TIMED_OUT, REFUSED])
def test_what_the_doctor_cannot_reach_is_a_note_while_the_service_is_connected(unreached: Handshake) -> None:
    assert judged(stream(), SocketsSeen(events=unreached, replay=TIMED_OUT)) == ({"stream_well", "unreachable_from_here"}, 0)


def test_what_neither_of_both_can_reach_is_an_error() -> None:
    assert judged(stream(connected=False, trust="stale"), SocketsSeen(events=TIMED_OUT, replay=TIMED_OUT)) == (
        {"events_unreachable", "replay_unreachable"},
        3,
    )


def test_refused_with_a_living_engine_means_events_are_off_or_elsewhere() -> None:
    down = stream(connected=False, trust="stale", replay=None)
    assert judged(down, SocketsSeen(events=REFUSED)) == ({"events_port_closed", "no_replay"}, 3)
    assert judged(down, SocketsSeen(events=REFUSED), EngineSeen("http://x", Reply(error="refused"))) == ({"events_unreachable", "no_replay"}, 3)


def test_what_only_the_doctor_can_reach_is_an_error_of_the_way_there() -> None:
    codes, exit_code = judged(stream(connected=False, trust="stale"), SocketsSeen(PUB, Heard(3.0), ROUTER, ANSWERED))
    assert "not_connected" in codes
    assert exit_code == 3


def test_batches_that_the_service_does_not_have() -> None:
    heard = SocketsSeen(PUB, Heard(3.0, messages=2, decoded=2, topics=[""], last_sequence=9), ROUTER, ANSWERED)
    assert "service_misses_events" in judged(stream(), heard, later=stream(sequence=4))[0]
    assert "service_misses_events" not in judged(stream(), heard, later=stream(sequence=9))[0]
    assert "service_misses_events" not in judged(stream(), heard, later=stream(sequence=2, batches=7))[0]  # the engine began anew
    assert "service_misses_events" not in judged(stream(), heard, later=None)[0]


@pytest.mark.parametrize(
    ("status", "code", "exit_code"),
    [
        (stream(trust="stale", last_error="replay endpoint does not answer"), "stream_stale", 1),
        (stream(trust="partial"), "stream_partial", 0),
        (stream(connected=False, trust="expired"), "stream_expired", 3),
        (stream(sequence=None, batches=0), "never_announced", 1),
        (stream(gaps=2, replayed=0), "gaps_lost", 1),
        (stream(connected=False, trust="stale", events=None, replay=None), "dials_not", 3),
        (stream(events=None, replay=None), "engine_dials", 0),
    ],
)
def test_what_the_service_says_of_a_stream(status: StreamSeen, code: str, exit_code: int) -> None:
    sockets = SocketsSeen() if status.events is None else SocketsSeen(PUB, Heard(3.0), ROUTER, ANSWERED)
    codes, found = judged(status, sockets)
    assert code in codes
    assert found == exit_code


def test_a_pod_that_nobody_follows() -> None:
    (found,) = judge_pod(PodSeen("pod", "m"))
    assert (found.code, found.severity) == ("not_followed", "error")
    assert judge_pod(PodSeen("pod", "m", [stream()])) == []


def test_a_service_that_does_not_say_where_events_come_from_is_believed() -> None:
    status = StreamSeen(0, "live", True, sequence=4)
    assert judged(status, SocketsSeen()) == ({"stream_well"}, 0)

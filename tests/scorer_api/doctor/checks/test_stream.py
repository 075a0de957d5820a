"""What is made of a stream's status and its sockets: above all what cannot be brought about on one machine, a network that lies in between."""

import pytest

from scorer_api.doctor.checks.findings import EXIT_CODES, worst
from scorer_api.doctor.checks.observations import EventSample, Handshake, ObservedEngine, ObservedPod, ObservedSockets, ObservedStream, ReplaySample
from scorer_api.doctor.checks.reply import Reply
from scorer_api.doctor.checks.stream import check_pod, check_stream

EVENTS, REPLAY = "tcp://10.0.0.7:5557", "tcp://10.0.0.7:5558"
TIMED_OUT, REFUSED = Handshake(error="no connection within 3 s"), Handshake(error="refused", is_refused=True)
PUB = Handshake(address=EVENTS, is_zmq=True, mechanism="NULL", socket_type="PUB")
ROUTER = Handshake(address=REPLAY, is_zmq=True, mechanism="NULL", socket_type="ROUTER")
ANSWERED = ReplaySample(4, replies=1, has_ended=True)
ENGINE = ObservedEngine("http://10.0.0.7:8000", Reply(200))


def stream(*, connected: bool = True, trust: str = "live", **more: object) -> ObservedStream:
    return ObservedStream(0, trust, connected, **{"sequence": 4, "batches": 5, "events": EVENTS, "replay": REPLAY, **more})  # type: ignore[arg-type]


def judged(
    status: ObservedStream, sockets: ObservedSockets, engine: ObservedEngine | None = ENGINE, later: ObservedStream | None = None
) -> tuple[set[str], int]:
    """The codes, and the exit code."""
    found = check_stream(ObservedPod("pod", "m", [status]), status, sockets, engine, later)
    return {each.code for each in found}, EXIT_CODES[worst(found)]


@pytest.mark.parametrize("unreached", [TIMED_OUT, REFUSED])
def test_what_the_doctor_cannot_reach_is_a_note_while_the_service_is_connected(unreached: Handshake) -> None:
    assert judged(stream(), ObservedSockets(events=unreached, replay=TIMED_OUT)) == ({"stream_well", "unreachable_from_here"}, 0)


def test_what_neither_of_both_can_reach_is_an_error() -> None:
    assert judged(stream(connected=False, trust="stale"), ObservedSockets(events=TIMED_OUT, replay=TIMED_OUT)) == (
        {"events_unreachable", "replay_unreachable"},
        3,
    )


def test_refused_with_a_living_engine_means_events_are_off_or_elsewhere() -> None:
    down = stream(connected=False, trust="stale", replay=None)
    assert judged(down, ObservedSockets(events=REFUSED)) == ({"events_disabled", "no_replay"}, 3)
    assert judged(down, ObservedSockets(events=REFUSED), ObservedEngine("http://x", Reply(error="refused"))) == (
        {"events_unreachable", "no_replay"},
        3,
    )


def test_what_only_the_doctor_can_reach_is_an_error_of_the_way_there() -> None:
    codes, exit_code = judged(stream(connected=False, trust="stale"), ObservedSockets(PUB, EventSample(3.0), ROUTER, ANSWERED))
    assert "not_connected" in codes
    assert exit_code == 3


def test_batches_that_the_service_does_not_have() -> None:
    heard = ObservedSockets(PUB, EventSample(3.0, messages=2, decoded=2, topics=[""], last_sequence=9), ROUTER, ANSWERED)
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
        (stream(gaps=2, replayed=0), "stream_partial", 1),
        (stream(connected=False, trust="stale", events=None, replay=None), "not_connected", 3),
        (stream(events=None, replay=None), "unreachable_from_here", 0),
    ],
)
def test_what_the_service_says_of_a_stream(status: ObservedStream, code: str, exit_code: int) -> None:
    sockets = ObservedSockets() if status.events is None else ObservedSockets(PUB, EventSample(3.0), ROUTER, ANSWERED)
    codes, found = judged(status, sockets)
    assert code in codes
    assert found == exit_code


def test_a_pod_that_nobody_follows() -> None:
    (found,) = check_pod(ObservedPod("pod", "m"))
    assert (found.code, found.severity) == ("not_followed", "error")
    assert check_pod(ObservedPod("pod", "m", [stream()])) == []


def test_a_service_that_does_not_say_where_events_come_from_is_believed() -> None:
    status = ObservedStream(0, "live", True, sequence=4)
    assert judged(status, ObservedSockets()) == ({"stream_well"}, 0)

"""Checks a stream: by its status in the service, by its sockets, and by the messages that come from them.

A socket that cannot be reached from where the doctor runs proves nothing while the service is connected to it, so that is a note.
"""

from collections.abc import Iterator

from msgspec import UNSET

from indexer.core.groups import UNDECIDED
from indexer.errors import LOSSY_REASONS
from scorer_api.doctor.checks.findings import Finding, finding
from scorer_api.doctor.checks.kinds import Severity
from scorer_api.doctor.checks.observations import AdvertisedSource, Handshake, ObservedEngine, ObservedPod, ObservedSockets, ObservedStream

PUBLISHERS = ("PUB", "XPUB")
ROUTER = "ROUTER"
NAMES_MAX = 3
# Of so many announcements at most one is used where nearly all of them are refused.
NEARLY_ALL = 9


def subject_of(pod: ObservedPod, stream: ObservedStream) -> str:
    """The name of the stream in findings."""
    return f"pod {pod.pod}" if len(pod.streams) == 1 and not stream.rank else f"pod {pod.pod} rank {stream.rank}"


def dials(stream: ObservedStream) -> bool:
    """Whether the engine dials the service."""
    return stream.events is None


def check_pod(pod: ObservedPod) -> list[Finding]:
    """Whether the pod has streams at all."""
    if pod.streams:
        return []
    return [finding("not_followed", f"pod {pod.pod}", f"it is registered for {pod.model!r}, and no indexer follows it")]


def check_stream(
    pod: ObservedPod, stream: ObservedStream, seen: ObservedSockets, engine: ObservedEngine | None, later: ObservedStream | None
) -> list[Finding]:
    """`later`: the stream as the service showed it after the doctor had listened."""
    subject = subject_of(pod, stream)
    found = [*_sockets(subject, stream, seen, engine), *_status(subject, stream, seen), *_missed(subject, stream, seen, later)]
    found += _sources(subject, stream, engine)
    if pod.shares_port(stream):
        found = [each for each in found if each.code != "rank_differs"]  # batches of all its ranks come there
    if any(each.severity in (Severity.WARNING, Severity.ERROR) for each in found):
        return found
    return [finding("stream_well", subject, _summary(stream)), *found] if stream.connected and stream.trust == "live" else found


def _summary(stream: ObservedStream) -> str:
    blocks = ", ".join(f"{count} {tier}" for tier, count in stream.blocks.items()) or "no blocks"
    return f"connected, {stream.trust}, batch {stream.sequence}, holds {blocks}"


# Its status in the service


def _status(subject: str, stream: ObservedStream, seen: ObservedSockets) -> Iterator[Finding]:
    because = f": {stream.last_error}" if stream.last_error else ""
    if stream.trust == "expired":
        yield finding("stream_expired", subject, f"away for longer than --pod-expiry-s, its blocks were dropped{because}")
    elif not stream.connected:
        if dials(stream):
            yield finding("not_connected", subject, f"it is not connected to --listen{because}")
        elif seen.events is None or seen.events.socket_type in PUBLISHERS:
            where = "" if seen.events is None else f", and from here {stream.events} is reached"
            yield finding("not_connected", subject, f"the service is not connected to its events{where}{because}")
    elif stream.trust == "stale":
        yield finding("stream_stale", subject, f"connected, and what is held is not confirmed{because}")
    elif stream.sequence is None and not stream.batches:
        yield finding("never_announced", subject, "connected, and no batch of events has ever come")
    elif stream.trust == "partial":
        undecided = [UNDECIDED.get(word, word) for word in stream.undecided]
        if undecided and not stream.last_error:
            yield finding("groups_undecided", subject, f"its model has {', '.join(undecided)}")
        else:
            yield finding("stream_partial", subject, f"some of what the engine announced is missing{because}")
    refused = sum(stream.refused.values())
    if refused >= NEARLY_ALL * max(1, stream.announcements):
        reasons = ", ".join(f"{reason} {count}" for reason, count in stream.refused.items())
        yield finding("announcements_refused", subject, f"{refused} refused ({reasons}), and {stream.announcements} events with blocks used")
    if stream.gaps and not stream.replayed:
        yield finding("stream_partial", subject, f"batches were missing {stream.gaps} times, and none came by replay", Severity.WARNING)
    if dials(stream):
        yield finding("unreachable_from_here", subject, "it dials the service: its sockets are not looked at from here")
    if stream.replay is None and stream.events is not UNSET:
        yield finding("no_replay", subject, "it has no replay endpoint")


# Its sockets


def _sockets(subject: str, stream: ObservedStream, seen: ObservedSockets, engine: ObservedEngine | None) -> Iterator[Finding]:
    events, replay = seen.events, seen.replay
    is_swapped = events is not None and replay is not None and events.socket_type == ROUTER and replay.socket_type in PUBLISHERS
    if is_swapped:
        detail = f"{stream.events} is a replay socket (ROUTER), and {stream.replay} one of events (PUB)"
        yield finding("events_port_differs", subject, detail, mend="swap the ports of events=… and replay=…")
        return
    if events is not None:
        yield from _events_socket(subject, stream, events, engine)
        if events.socket_type in PUBLISHERS:
            yield from _sample(subject, stream, seen)
    if replay is not None:
        yield from _replay_socket(subject, stream, replay)
        if replay.socket_type == ROUTER:
            yield from _replay_sample(subject, stream, seen)


def _events_socket(subject: str, stream: ObservedStream, events: Handshake, engine: ObservedEngine | None) -> Iterator[Finding]:
    where = f"events={stream.events}"
    if events.address is None:
        if stream.connected:
            yield finding("unreachable_from_here", subject, f"{where}, to which the service is connected: from here {events.error}")
        elif events.is_refused and engine is not None and engine.health.is_ok:
            yield finding("events_disabled", subject, f"{where}: {events.error}, though the engine's API at {engine.base} answers")
        else:
            yield finding("events_unreachable", subject, f"{where}: {events.error}; the service is not connected either")
    elif not events.is_zmq:
        severity = Severity.NOTE if stream.connected else None
        yield finding("events_port_differs", subject, f"{where}: {_spoke(events)}", severity)
    elif events.mechanism not in (None, "NULL"):
        yield finding("zmq_secured", subject, f"{where} asks for {events.mechanism}")
    elif events.socket_type == ROUTER:
        yield finding("events_port_differs", subject, f"{where} is a replay socket (ROUTER), no PUB")
    elif events.socket_type not in PUBLISHERS:
        yield finding("events_port_differs", subject, f"{where} is {_kind(events)}, no PUB")


def _replay_socket(subject: str, stream: ObservedStream, replay: Handshake) -> Iterator[Finding]:
    where = f"replay={stream.replay}"
    if replay.address is None:
        is_well = stream.connected and stream.trust == "live"
        said = f"{where}: {replay.error}" + ("; what the service holds is complete all the same" if is_well else "")
        yield finding("unreachable_from_here" if is_well and not replay.is_refused else "replay_unreachable", subject, said)
    elif not replay.is_zmq:
        yield finding("replay_port_differs", subject, f"{where}: {_spoke(replay)}")
    elif replay.mechanism not in (None, "NULL"):
        yield finding("zmq_secured", subject, f"{where} asks for {replay.mechanism}")
    elif replay.socket_type in PUBLISHERS:
        yield finding("replay_port_differs", subject, f"{where} is a socket of events ({replay.socket_type}), no ROUTER")
    elif replay.socket_type != ROUTER:
        yield finding("replay_port_differs", subject, f"{where} is {_kind(replay)}, no ROUTER")


def _kind(socket: Handshake) -> str:
    return f"a {socket.socket_type} socket" if socket.socket_type else "a socket that does not say what it is"


def _spoke(socket: Handshake) -> str:
    if not socket.received:
        return "it takes the connection and does not say what a ZMQ socket says at once"
    said = socket.received[:20].decode(errors="replace")
    return f"it speaks HTTP, like an API: {said!r}" if said.startswith("HTTP/") else f"it says {said!r}, which is no ZMQ"


# Its messages


def _sample(subject: str, stream: ObservedStream, seen: ObservedSockets) -> Iterator[Finding]:
    sample = seen.sample
    if sample is None:
        return
    if sample.error:
        yield finding("check_failed", subject, f"could not listen to {stream.events}: {sample.error}")
    elif not sample.messages:
        yield finding("events_idle", subject, f"nothing was published at {stream.events} within {sample.seconds:g} s")
    elif not any(topic.startswith(stream.topic) for topic in sample.topics):
        topics = ", ".join(repr(topic) for topic in sample.topics[:NAMES_MAX])
        yield finding("topic_matches_nothing", subject, f"topic={stream.topic!r} is no beginning of what is published: {topics}")
    elif not sample.decoded:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(sample.undecodable.items()))
        yield finding("events_refused", subject, f"none of {sample.messages} messages can be read: {reasons}", Severity.ERROR)
    else:
        yield from _readable(subject, stream, seen)


def _readable(subject: str, stream: ObservedStream, seen: ObservedSockets) -> Iterator[Finding]:
    sample = seen.sample
    assert sample is not None, "a sample was taken"
    lossy = {reason: count for reason, count in {**sample.refused, **sample.undecodable}.items() if reason in LOSSY_REASONS}
    if lossy:
        yield finding("events_refused", subject, f"of what came within {sample.seconds:g} s some cannot be used: {', '.join(sorted(lossy))}")
    if sample.ranks and stream.rank not in sample.ranks:
        ranks = ", ".join(map(str, sorted(sample.ranks)[:NAMES_MAX]))
        yield finding("rank_differs", subject, f"batches at {stream.events} say rank {ranks}; the spec has rank {stream.rank} there")
    if not lossy:
        yield finding("events_well", subject, f"{sample.decoded} batches came within {sample.seconds:g} s, topic {sample.topics[0]!r}")


def check_topics(pod: ObservedPod, stream: ObservedStream, seen: ObservedSockets) -> list[Finding]:
    """Topics of the form kv@pod@model name their model. Another model is a sign of the wrong port."""
    topics = [] if seen.sample is None else [topic for topic in seen.sample.topics if topic.startswith("kv@") and topic.count("@") >= 2]
    models = {topic.split("@", 2)[2] for topic in topics}
    if not models or pod.model in models:
        return []
    detail = f"the topic is {topics[0]!r}, the pod is registered for {pod.model!r}"
    return [finding("events_port_differs", subject_of(pod, stream), detail, Severity.WARNING)]


def _replay_sample(subject: str, stream: ObservedStream, seen: ObservedSockets) -> Iterator[Finding]:
    replied = seen.replied
    if replied is None:
        return
    if replied.error:
        yield finding("check_failed", subject, f"could not ask {stream.replay}: {replied.error}")
    elif replied.odd:
        yield finding("replay_unreachable", subject, f"replay={stream.replay} answers what no engine answers: {', '.join(sorted(replied.odd))}")
    elif not replied.replies and not replied.has_ended:
        yield finding("replay_unreachable", subject, f"replay={stream.replay} was asked for batches from {replied.start} on and says nothing")
    else:
        end = "" if replied.has_ended else ", without the end that was waited for"
        yield finding("replay_well", subject, f"asked from batch {replied.start} on, it sent {replied.replies} batches{end}")


def _missed(subject: str, stream: ObservedStream, seen: ObservedSockets, later: ObservedStream | None) -> Iterator[Finding]:
    """Whether the service has the batches that arrived here."""
    sample = seen.sample
    if sample is None or sample.last_sequence is None or later is None or not later.connected:
        return
    # After a restart of the engine its numbers start again; the service notices at the next batch.
    has_it = later.sequence is not None and (later.sequence >= sample.last_sequence or later.batches > stream.batches)
    if not has_it:
        yield finding("service_misses_events", subject, f"batch {sample.last_sequence} arrived here, and the service has {later.sequence}")


# What the engine reports about its sockets


def _sources(subject: str, stream: ObservedStream, engine: ObservedEngine | None) -> Iterator[Finding]:
    if engine is None or not engine.sources or not isinstance(stream.events, str):
        return
    if all(source.endpoint is None for source in engine.sources):
        yield finding("events_disabled", subject, f"{engine.base} says that it publishes no events")
        return
    source = _of_rank(engine.sources, stream.rank)
    if source is None or stream.connected:
        return
    offset = 0 if source.rank == stream.rank else stream.rank
    for key, code, said, given in (
        ("events", "events_port_differs", source.endpoint, stream.events),
        ("replay", "replay_port_differs", source.replay, stream.replay),
    ):
        there, here = _port(said), _port(given)
        if there is not None and here is not None and there + offset != here:
            yield finding(code, subject, f"{engine.base} says that {key} is at port {there + offset}; the spec has {key}={given}")


def _of_rank(sources: list[AdvertisedSource], rank: int) -> AdvertisedSource | None:
    exact = next((source for source in sources if source.rank == rank), None)
    return exact or (sources[0] if len(sources) == 1 else None)


def _port(endpoint: str | None) -> int | None:
    text = "" if endpoint is None or not endpoint.startswith("tcp://") else endpoint.rpartition(":")[2]
    return int(text) if text.isdecimal() and len(text) <= 5 else None

"""Observes an engine's sockets: listens to its events for some seconds, and asks for one replay.

Both have limits on time, messages and bytes. Endpoints are addresses, not names: libzmq would resolve a name in its own thread, without a limit.
"""

import asyncio
import time
from contextlib import aclosing

import zmq
import zmq.asyncio

from indexer.errors import Refused
from indexer.limits import ReceiveLimits, WireLimits
from indexer.receiving.addresses import is_ipv6
from indexer.receiving.replay import ReplayRequest
from indexer.wire.decoder import WireDecoder
from indexer.wire.frames import split_frames, split_reply
from scorer_api.doctor.checks.observations import EventSample, Handshake, ObservedSockets, ObservedStream, ReplaySample
from scorer_api.doctor.checks.stream import PUBLISHERS, ROUTER
from scorer_api.doctor.probes.handshake import greet

Context = zmq.Context[zmq.Socket[bytes]]

MESSAGES_MAX = 100
BYTES_MAX = 64 * 2**20
FRAME_BYTES_MAX = 32 * 2**20
TOPICS_MAX = 8
# The request ends after this number of replies: more would show nothing new.
REPLIES_MAX = 64
POLL_S = 0.1
REPLAY_LIMITS = ReceiveLimits(replay_idle_s=2.5, replay_total_s=4.0, frame_bytes_max=FRAME_BYTES_MAX)


async def observe_sockets(context: Context, stream: ObservedStream, listen_s: float) -> ObservedSockets:
    """Both sockets of a stream at the same time, if it has them. Never raises for what the other side does."""
    (events, sample), (replay, replied) = await asyncio.gather(
        _observe_events(context, stream.events if isinstance(stream.events, str) else None, listen_s),
        _observe_replay(stream.replay, stream.sequence or 0),
    )
    return ObservedSockets(events, sample, replay, replied)


async def _observe_events(context: Context, endpoint: str | None, listen_s: float) -> tuple[Handshake | None, EventSample | None]:
    if endpoint is None:
        return None, None
    shaken = await greet(endpoint)
    if shaken.address is None or shaken.socket_type not in PUBLISHERS:
        return shaken, None
    return shaken, await listen(context, shaken.address, listen_s)


async def _observe_replay(endpoint: str | None, start: int) -> tuple[Handshake | None, ReplaySample | None]:
    if endpoint is None:
        return None, None
    shaken = await greet(endpoint)
    if shaken.address is None or shaken.socket_type != ROUTER:
        return shaken, None
    return shaken, await ask_replay(shaken.address, start)


async def listen(context: Context, address: str, seconds: float) -> EventSample:
    """Subscribe to everything. Never raises for what the other side does."""
    sample = EventSample(seconds)
    decoder = WireDecoder(WireLimits())
    clock = asyncio.get_running_loop().time
    until = clock() + seconds
    left = BYTES_MAX
    with context.socket(zmq.SUB) as sub:
        sub.linger = 0
        sub.ipv6 = is_ipv6(address)
        sub.rcvhwm = MESSAGES_MAX
        sub.maxmsgsize = FRAME_BYTES_MAX
        sub.subscribe(b"")
        try:
            sub.connect(address)
        except zmq.ZMQError as error:
            sample.error = error.strerror or str(error)
            return sample
        poller = zmq.asyncio.Poller()
        poller.register(sub, zmq.POLLIN)
        while clock() < until and sample.messages < MESSAGES_MAX and left > 0:
            if await poller.poll(min(POLL_S, until - clock()) * 1000):
                frames = sub.recv_multipart(zmq.NOBLOCK)
                left -= sum(map(len, frames))
                _take(sample, decoder, frames)
    return sample


def _take(sample: EventSample, decoder: WireDecoder, frames: list[bytes]) -> None:
    now_s = time.time()
    sample.messages += 1
    topic = frames[0][:512].decode(errors="replace") if frames else ""
    if topic not in sample.topics and len(sample.topics) < TOPICS_MAX:
        sample.topics.append(topic)
    try:
        sequence, payload = split_frames(frames)
        batch = decoder.decode(payload)
    except Refused as error:
        sample.undecodable[error.reason] = sample.undecodable.get(error.reason, 0) + 1
        return
    sample.decoded += 1
    sample.last_sequence = sequence
    for reason, count in batch.refused.items():
        sample.refused[reason] = sample.refused.get(reason, 0) + count
    if batch.rank is not None:
        sample.ranks.add(batch.rank)
    if batch.published_at_s is not None:
        # Transport makes a time stamp older, never newer: the highest skew is the best estimate.
        skew_s = batch.published_at_s - now_s
        sample.skew_s = skew_s if sample.skew_s is None else max(sample.skew_s, skew_s)


async def ask_replay(address: str, start: int) -> ReplaySample:
    """Ask for the batches from this number on. Never raises for what the other side does."""
    replied = ReplaySample(start)
    decoder = WireDecoder(WireLimits())
    try:
        async with (
            ReplayRequest(address, start, REPLAY_LIMITS) as request,
            aclosing(request.replies(lambda: not (replied.has_ended or replied.is_cut))) as replies,
        ):
            async for chunk in replies:
                for frames in chunk:
                    _note(replied, decoder, frames)
    except OSError as error:
        replied.error = error.strerror or str(error)
    return replied


def _note(replied: ReplaySample, decoder: WireDecoder, frames: list[bytes]) -> None:
    try:
        reply = split_reply(frames)
        if reply is None:
            replied.has_ended = True
            return
        replied.replies += 1
        replied.is_cut = replied.replies >= REPLIES_MAX
        published_at_s = decoder.decode(reply[1]).published_at_s
    except Refused as error:
        replied.odd[error.reason] = replied.odd.get(error.reason, 0) + 1
        return
    if published_at_s is not None:
        replied.newest_s = published_at_s if replied.newest_s is None else max(replied.newest_s, published_at_s)

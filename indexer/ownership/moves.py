"""Take streams, hand them over and release them. Each move is a task, one at a time per stream: no stream waits for another's.

take        subscribe ─▶ claim ─▶ read what Redis has of it ─▶ run it
hand over   run it no longer ─▶ write what is left, give the lease back ─▶ unsubscribe
stand by    subscribe and keep the last frames for a takeover
release     the stream is not ours any more, or its pod is gone: end whatever is under way
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterable
from functools import partial
from typing import Any

import msgspec

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.core.snapshot import Snapshot
from indexer.errors import StoreError
from indexer.metrics import IndexerMetrics
from indexer.ownership.assignment import Duty
from indexer.ownership.known_streams import KnownStream, KnownStreams, ReleaseReason
from indexer.ownership.pod_directory import PodDirectory
from indexer.store.flusher import Ownership
from indexer.store.leases import Claim, ClaimMode
from indexer.store.redis import RedisStore
from indexer.streams.pool import Streams
from indexer.streams.stream import Stream

log = logging.getLogger(__name__)

# A stream that its owner was asked for is claimed so often.
POLL_S = 0.1
# Messages that wait in a stream's inbox are applied for so long before it is handed over.
BACKLOG_S = 5.0
BACKLOG_POLL_S = 0.01
# Streams that are read from Redis at a time: the others wait for their turn, and not for connections.
TAKEOVERS_MAX = 32


class Moves:
    """`round_due` is set when the next round should not wait for its time: a stream was released, and may be taken again."""

    def __init__(
        self, settings: Settings, metrics: IndexerMetrics, store: RedisStore, pods: PodDirectory, known: KnownStreams, streams: Streams
    ) -> None:
        self.round_due = asyncio.Event()
        self.releasing: dict[StreamKey, asyncio.Task[None]] = {}
        self._takeovers = asyncio.Semaphore(TAKEOVERS_MAX)
        self._settings = settings
        self._metrics = metrics
        self._store = store
        self._pods = pods
        self._known = known
        self._streams = streams
        self._ring_limits = msgspec.structs.replace(
            settings.limits.receive, inbox_frames_max=settings.limits.store.ring_frames_max, inbox_bytes_max=settings.limits.store.ring_bytes_max
        )

    async def wait_for(self, tasks: Iterable[asyncio.Task[None]]) -> None:
        """Wait until they have ended, one way or another."""
        if waited := list(tasks):
            await asyncio.wait(waited)

    def begin(self, known: KnownStream) -> None:
        """Begin the move that the stream's duty asks for, if one does and none is under way."""
        if known.is_moving or known.key in self.releasing:
            return
        match known.duty:
            case Duty.HAND_OVER:
                known.move = self._start(self._hand_over(known), "hand over", known)
            case Duty.ASK:
                known.move = self._start(self._take(known, "want"), "take", known)
            case Duty.TAKE:
                known.move = self._start(self._take(known, "free"), "take", known)
            case Duty.STAND_BY if known.stream is None:
                known.move = self._start(self._subscribe(known), "stand by", known)
            case Duty.NOTHING if known.stream is not None:
                known.move = self._start(self._unsubscribe(known), "stand down", known)
            case _:
                pass

    def begin_for_dialling(self, known: KnownStream) -> None:
        """The same for an engine that dials us. The indexer that receives such a stream owns it: each new connection is a claim."""
        is_running = known.key in self._streams.running
        if known.is_moving or known.key in self.releasing or is_running or time.monotonic() < known.not_before_s:
            return
        if known.stream is None:
            known.move = self._start(self._subscribe(known), "expect", known)
        elif known.stream.inbox.connected:
            known.move = self._start(self._take(known, "force"), "take", known)

    def _start(self, work: Coroutine[Any, Any, object], what: str, known: KnownStream) -> asyncio.Task[None]:
        async def move() -> None:
            try:
                await work
            except StoreError:
                pass  # the next round decides again
            except Exception:
                log.exception("move failed", extra={"move": what, "pod": known.key.pod, "rank": known.key.rank})

        return self._streams.tasks.create_task(move(), name=f"{what} {known.key.pod} {known.key.rank}")

    async def _subscribe(self, known: KnownStream) -> Stream:
        """Until the stream runs its frames are not applied: the last ones are kept."""
        if known.stream is not None:
            return known.stream
        # Set before it is connected, so that a cancelled move can be closed.
        stream = known.stream = self._streams.make(known.source, limits=self._ring_limits)
        try:
            await self._streams.connect(known.source, stream)
        except Exception:
            known.stream = None
            raise
        return stream

    async def _unsubscribe(self, known: KnownStream) -> None:
        if known.stream is not None:
            await self._streams.close(known.stream)
            known.stream = None

    async def _take(self, known: KnownStream, mode: ClaimMode) -> None:
        """Raises StoreError."""
        stream = await self._subscribe(known)
        while not await self._claim(known, stream, mode):
            if mode != "want":
                return
            await asyncio.sleep(POLL_S)
            if known.duty is not Duty.ASK or time.monotonic() - self._store.outage_ended_s(known.key) < self._settings.lease_s:
                return

    async def _claim(self, known: KnownStream, stream: Stream, mode: ClaimMode) -> bool:
        """Own the stream, and go on where its former owner was; returns whether no other indexer has it. Raises StoreError."""
        async with self._takeovers:
            claim = await self._store.claim(known.key, mode)
            if isinstance(claim, str):
                return False
            await self._own(known, stream, claim, mode)
        return True

    async def _own(self, known: KnownStream, stream: Stream, claim: Claim, mode: ClaimMode) -> None:
        known.wanted_by = None  # that was before another indexer owned it
        head = await self._store.load(claim, known.key, stream.state)
        if head is not None:
            stream.resume(head)
        self._store.own(known.key, claim, Snapshot(stream.state), stream.position, is_loaded=head is not None)
        self._streams.attach(known.source, stream, self._stayed_away)
        if claim.generation is not None:
            self._metrics.takeovers.inc()
        log.info("stream taken", extra={"pod": known.key.pod, "rank": known.key.rank, "how": mode, "sequence": stream.position.sequence})

    async def _hand_over(self, known: KnownStream) -> None:
        stream = known.stream
        if stream is not None and known.source.replay is None:
            await self._apply_backlog(stream)
            if known.key not in self._streams.running:
                return
        running = self._streams.detach(known.key)
        await asyncio.wait([running.task])
        await self._store.release(known.key)
        log.info("stream handed over", extra={"pod": known.key.pod, "rank": known.key.rank, "to": known.wanted_by})
        assert stream is running.stream, "what runs is what is known"
        await self._unsubscribe(known)

    async def _apply_backlog(self, stream: Stream) -> None:
        """What waits may have been published before the other indexer listened: nobody could ask the engine for it again."""
        until_s = time.monotonic() + BACKLOG_S
        while stream.inbox and time.monotonic() < until_s:  # noqa: ASYNC110 - it is applied by another task, in turns
            await asyncio.sleep(BACKLOG_POLL_S)

    # Release

    def update_streams(self) -> None:
        """Know the streams that the pods have now, and release all others."""
        for known, reason in self._known.update():
            self._release(known, reason)

    def remove(self, known: KnownStream, reason: ReleaseReason) -> None:
        """Know this stream no longer."""
        del self._known.by_key[known.key]
        self._release(known, reason)

    def note_lost(self, key: StreamKey, ownership: Ownership) -> None:
        """The store found that a stream is not ours any more."""
        known = self._known.by_key.get(key)
        if known is None or key not in self._streams.running:
            return
        if ownership is Ownership.GONE:
            self._pods.forget(key.pod)
            self.update_streams()
            return
        self._metrics.fenced.inc()
        log.warning("stream lost to another indexer", extra={"pod": key.pod, "rank": key.rank})
        known.not_before_s = time.monotonic() + self._settings.lease_s
        if known.is_dial_in:
            self._pods.remove_dial_in(key)
            self.remove(known, ReleaseReason.LOST)
        else:
            self._release(known, ReleaseReason.LOST)

    def _stayed_away(self, stream: Stream) -> None:
        """A stream ended by itself: a dial-in pod stayed away."""
        known = self._known.by_key.get(stream.key)
        if known is not None and known.stream is stream:
            self._pods.remove_dial_in(stream.key)
            self.remove(known, ReleaseReason.DELETED)

    def _release(self, known: KnownStream, reason: ReleaseReason) -> None:
        """Stop it at once, and let a separate task clean up."""
        key, stream, move = known.key, known.stream, known.move
        is_running = key in self._streams.running
        running = self._streams.detach(key) if is_running else None
        if reason is not ReleaseReason.MOVED:
            self._store.disown(key)
        is_moving = move is not None and move.cancel()
        known.stream = known.move = None
        if not (is_running or is_moving or stream):
            return
        waits_for = [task for task in (self.releasing.get(key), move if is_moving else None, running.task if running else None) if task is not None]
        ending = self._end(key, stream, reason if is_running or is_moving else ReleaseReason.LOST, waits_for)
        task = self.releasing[key] = self._streams.tasks.create_task(ending, name=f"release {key.pod} {key.rank}")
        task.add_done_callback(partial(self._note_released, key))

    def _note_released(self, key: StreamKey, task: asyncio.Task[None]) -> None:
        if self.releasing.get(key) is task:
            del self.releasing[key]
            self.round_due.set()

    async def _end(self, key: StreamKey, stream: Stream | None, reason: ReleaseReason, waits_for: list[asyncio.Task[None]]) -> None:
        await self.wait_for(waits_for)
        if reason is ReleaseReason.DELETED:
            try:
                await self._store.registry.delete(key)
            except StoreError as error:
                log.info("stream not deleted", extra={"pod": key.pod, "rank": key.rank, "error": str(error)})
        if reason is not ReleaseReason.LOST:
            await self._store.release(key)
        if stream is not None:
            await self._streams.close(stream)

"""The task that writes what owned streams changed: per slot of a Cluster, all that is pending of its streams in one round trip.

    PendingWrites (one per stream) ──▶ queue of the slot ──▶ round: append, delete; a full write is a separate task ──▶ switch

While Redis is away the task retries, and changes gather, bounded by what the streams hold.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from enum import Enum, auto
from typing import Any

from msgspec import Struct
from redis.exceptions import RedisError

from indexer.core.names import StreamKey
from indexer.errors import StoreError
from indexer.store.client.connection import answer_of, is_away
from indexer.store.full_write import Pace, write_generation
from indexer.store.leases import Leases
from indexer.store.pending import PendingWrites, random_number
from indexer.store.scripts import Call, call, call_all
from indexer.store.session import Slot, StoreSession

log = logging.getLogger(__name__)

# Pauses while Redis is away or refuses.
RETRY_S = 0.1
RETRY_MAX_S = 1.0
ROOM_WAIT_S = 0.5
FLUSH_S = 2.0
# Between two looks whether a batch that is applied in steps is done with.
BATCH_WAIT_S = 0.005
# Number of streams of a slot that are written in full at a time.
FULL_WRITES_MAX = 2


class Ownership(Enum):
    """Whether an owned stream still is ours."""

    OURS = auto()
    LOST = auto()
    """Another indexer has it."""
    GONE = auto()
    """Its pod was forgotten."""


class Loss(Struct, frozen=True):
    """A stream that was written in vain: it is not ours any more."""

    stream: StreamKey
    ownership: Ownership


class _Queue:
    """What waits to be written in one slot."""

    def __init__(self, slot: Slot, timeout_s: float) -> None:
        self.slot = slot
        self.pace = Pace(timeout_s)
        self.due: dict[StreamKey, PendingWrites] = {}
        self.woken = asyncio.Event()
        self.full_writes = asyncio.Semaphore(FULL_WRITES_MAX)


class Flusher:
    """`start` runs a task until the store ends."""

    def __init__(self, session: StoreSession, leases: Leases, start: Callable[[Coroutine[Any, Any, None], str], None]) -> None:
        self.streams: dict[StreamKey, PendingWrites] = {}
        """Those that are owned."""
        self.losses: asyncio.Queue[Loss] = asyncio.Queue()
        """At most one for each stream that was owned; nothing more is written of these."""
        self._session = session
        self._leases = leases
        self._start = start
        self._queues: dict[int, _Queue] = {}
        self._queue_of: dict[str, _Queue] = {}
        """Key in a slot → the slot's queue: asked for with each batch."""
        self._progress = asyncio.Event()
        self._sealed_epoch = session.note_server_epoch()

    # Owned streams

    def add(self, pending: PendingWrites) -> None:
        """Write this stream from now on."""
        self.streams[pending.key] = pending
        self.mark(pending)

    def remove(self, stream: StreamKey) -> None:
        """Write nothing more of it. Idempotent."""
        pending = self.streams.pop(stream, None)
        if pending is not None:
            self._queue(pending).due.pop(stream, None)

    def is_current(self, pending: PendingWrites) -> bool:
        return self.streams.get(pending.key) is pending

    def mark(self, pending: PendingWrites) -> None:
        """Something of it waits to be written."""
        queue = self._queue(pending)
        queue.due[pending.key] = pending
        queue.woken.set()

    def _queue(self, pending: PendingWrites) -> _Queue:
        key = pending.keys.incarnation
        return self._queue_of.get(key) or self._new_queue(key)

    def _new_queue(self, key: str) -> _Queue:
        """The queue of the slot in which a key lies, which runs from now on."""
        slot = self._session.slot(key)
        queue = self._queues.get(slot.number)
        if queue is None:
            queue = self._queues[slot.number] = _Queue(slot, self._session.settings.redis_timeout_s)
            self._start(self._run(queue), f"redis writer {slot.number}")
        self._queue_of[key] = queue
        return queue

    def _is_well(self, pending: PendingWrites) -> bool:
        return self._session.health.failure_in(self._queue(pending).slot.number) is None

    async def wait_for_room(self, stream: StreamKey) -> None:
        """Wait, not for long, while more of this stream is waiting than should be and Redis is well."""
        until_s = time.monotonic() + ROOM_WAIT_S
        while (
            (pending := self.streams.get(stream)) is not None
            and pending.is_behind
            and self._is_well(pending)
            and (left_s := until_s - time.monotonic()) > 0
        ):
            await self._wait_for_progress(left_s)

    async def flush(self, stream: StreamKey) -> None:
        """Wait until all of it is written, if that can be done soon."""
        pending = self.streams.get(stream)
        until_s = time.monotonic() + FLUSH_S
        while (
            pending is not None
            and self.is_current(pending)
            and not pending.is_settled
            and not pending.is_amid_batch  # a stream that was stopped there never ends it: the next owner goes on from before
            and self._is_well(pending)
            and time.monotonic() < until_s
        ):
            if not pending.is_writing_in_full:  # its end marks it: a round before that would end at once, again and again
                self.mark(pending)
            await self._wait_for_progress(RETRY_S)

    async def _wait_for_progress(self, wait_s: float) -> None:
        self._progress.clear()
        try:
            async with asyncio.timeout(wait_s):
                await self._progress.wait()
        except TimeoutError:
            pass

    # Rounds

    async def _run(self, queue: _Queue) -> None:
        pause_s = RETRY_S
        while True:
            await queue.woken.wait()
            queue.woken.clear()
            try:
                is_well = await self._round(queue)
            except RedisError as error:
                self._session.note_error(error, queue.slot.probe)
                is_well = False
            except StoreError:
                is_well = False  # logged where it was raised
            except Exception:  # an error of ours must not end writing for all streams
                log.exception("writing failed")
                is_well = False
            self._progress.set()
            if is_well:
                pause_s = RETRY_S
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
                queue.woken.set()

    async def _round(self, queue: _Queue) -> bool:
        """Send all that is pending, in one round trip. Returns whether Redis accepted it. Raises RedisError where it did not answer, StoreError."""
        self._discard_sealed_of_another_epoch()
        due, queue.due = queue.due, {}
        try:
            batch = self._take_batch(due, queue)
            if not batch:
                return True
            answers = await call_all(self._session.client, [sent for _, sent in batch])
            return await self._note_answers(batch, answers, queue)
        except Exception:  # whatever it is, it must not lose what other streams have to write
            for pending in due.values():
                if pending.in_flight:
                    pending.take_back(is_unsure=True)
                if self.is_current(pending):
                    self.mark(pending)
            raise

    async def _note_answers(self, batch: list[tuple[PendingWrites, Call]], answers: list[Any], queue: _Queue) -> bool:
        """Returns whether Redis accepted all. Raises StoreError."""
        is_well = True
        grows = any(sealed.grows for pending, _ in batch for sealed in pending.in_flight)
        for (pending, sent), answer in zip(batch, answers, strict=True):
            if not self.is_current(pending):
                continue
            if isinstance(answer, RedisError):
                is_well = False
                self._session.note_error(answer, queue.slot.probe)
                self._take_back(pending, is_unsure=is_away(answer))
            elif sent.script == "delete":
                self._note_deleted(pending, answer)
            else:
                await self._note_appended(pending, sent, answer)
        # A full Redis accepts what shrinks: that it is full no longer is known only after something that grows.
        failure = self._session.health.failure_in(queue.slot.number)
        if is_well and (failure is None or failure.reason != "full" or grows):
            self._session.health.note_answer(queue.slot.number, is_write=True)
        return is_well

    def _discard_sealed_of_another_epoch(self) -> None:
        """Sealed calls say until when their content counts, by the clock of the server of their epoch."""
        epoch = self._session.note_server_epoch()
        if epoch != self._sealed_epoch:
            self._sealed_epoch = epoch
            for pending in self.streams.values():
                self._take_back(pending, is_unsure=False)

    def _take_batch(self, due: dict[StreamKey, PendingWrites], queue: _Queue) -> list[tuple[PendingWrites, Call]]:
        """The calls to send now; full writes begin."""
        batch: list[tuple[PendingWrites, Call]] = []
        for pending in due.values():
            if pending.is_writing_in_full:
                continue  # its end marks it again
            if pending.is_expired:
                if pending.generation is not None:
                    batch.append((pending, pending.delete()))
            elif pending.needs_full_write:
                pending.is_writing_in_full = True
                self._start(self._write_in_full(pending, queue), f"write all of {pending.key.pod} {pending.key.rank}")
            else:
                try:
                    batch += [(pending, sealed.call) for sealed in pending.take_sealed()]
                except Exception:  # an error of ours must not keep others from being written
                    log.exception("a stream cannot be appended to", extra={"pod": pending.key.pod, "rank": pending.key.rank})
                    pending.require_full_write()
                    self.mark(pending)
        return batch

    def _take_back(self, pending: PendingWrites, *, is_unsure: bool) -> None:
        pending.take_back(is_unsure=is_unsure)
        if self.is_current(pending):
            self.mark(pending)

    def _note_deleted(self, pending: PendingWrites, answer: Any) -> None:
        pending.generation = None
        pending.require_full_write()  # of a stream that came back meanwhile, or comes back later
        if answer[0] == 0:
            self._disown(pending, Ownership.LOST)
        else:
            self.mark(pending)

    async def _note_appended(self, pending: PendingWrites, sent: Call, answer: Any) -> None:
        sealed = next((sealed for sealed in pending.in_flight if sealed.call is sent), None)
        if sealed is None:
            return  # an earlier one of the same stream was refused, and with it all that follow
        match answer[0]:
            case 1:
                pending.confirm(sealed)
                self._session.metrics.appends.inc()
            case 0:
                self._disown(pending, Ownership.LOST)
            case -3 if pending.confirm_unanswered(int(answer[1])):
                self._take_back(pending, is_unsure=False)
            case -1:
                pending.take_back(is_unsure=False)
                if await self.check_missing(pending) is Ownership.GONE:
                    self._disown(pending, Ownership.GONE)
            case _:
                pending.take_back(is_unsure=False)
                self.rewrite(pending, "went_back")

    def _disown(self, pending: PendingWrites, ownership: Ownership) -> None:
        self.remove(pending.key)
        self.losses.put_nowait(Loss(pending.key, ownership))

    # Redis lacks what was written

    async def check_missing(self, pending: PendingWrites) -> Ownership:
        """There is no state of a stream that was written: its pod was forgotten, or Redis lost it. Raises StoreError."""
        key = self._session.keyspace.directory.forgotten
        try:
            forgotten = await answer_of(self._session.client.zscore(key, pending.key.pod))
        except RedisError as error:
            raise self._session.failed(error, key) from error
        if forgotten is not None:
            return Ownership.GONE
        if pending.generation is not None and not pending.needs_full_write:
            self.rewrite(pending, "lost")
        return Ownership.OURS

    def rewrite(self, pending: PendingWrites, reason: str) -> None:
        """Redis does not have the stream as it was written: write it all again."""
        log.warning("redis does not have the stream as it was written", extra={"pod": pending.key.pod, "rank": pending.key.rank, "reason": reason})
        self._session.metrics.full_writes.labels(reason).inc()
        # A restart between two calls shows no other sign: others may not have had the time to renew what they own.
        self._session.health.note_data_loss(self._queue(pending).slot.number)
        pending.require_full_write()
        self.mark(pending)

    # Full writes

    async def _write_in_full(self, pending: PendingWrites, queue: _Queue) -> None:
        try:
            async with queue.full_writes:
                while pending.needs_full_write and self.is_current(pending) and not pending.is_expired:
                    await self._write_generation(pending, queue.pace)
            self._session.health.note_answer(queue.slot.number, is_write=True)
        except (RedisError, StoreError) as error:
            if isinstance(error, RedisError):
                self._session.note_error(error, queue.slot.probe)
            pending.require_full_write()
            await asyncio.sleep(RETRY_S)
        except Exception:
            log.exception("writing in full failed", extra={"pod": pending.key.pod, "rank": pending.key.rank})
            pending.require_full_write()
            await asyncio.sleep(RETRY_MAX_S)
        finally:
            pending.end_full_write()
            if self.is_current(pending):
                self.mark(pending)
            self._progress.set()

    async def _write_generation(self, pending: PendingWrites, pace: Pace) -> None:
        """Write all that the stream holds as a new generation, then make that the stream's. Raises RedisError, StoreError."""
        generation = await write_generation(self._session.client, pending, pace, lambda: self.is_current(pending))
        if generation is None or not await self._wait_for_batch(pending):
            return
        switch = pending.switch(generation, self._session.member, f"{random_number():016x}")
        answer = await call(self._session.client, switch.script, switch.keys, *switch.words)
        if answer[0] == 0:
            # Either another indexer has it, or a Redis that lost everything does not know that it is ours.
            pending.require_full_write()
            claim = await self._leases.claim(pending.key, "free")
            if isinstance(claim, str) or (claim.generation is not None and claim.fence_before != pending.fence):
                self._disown(pending, Ownership.LOST)
            else:
                pending.fence = claim.fence
        elif [int(length) for length in answer[1:]] != pending.expected_lengths:
            pending.require_full_write()
        else:
            pending.switched(generation)
            pace.grow()
            self._session.metrics.appends.inc()

    async def _wait_for_batch(self, pending: PendingWrites) -> bool:
        """What a stream holds amid a batch is not to be found in Redis. Returns whether what was written still counts."""
        while True:
            if not self.is_current(pending) or pending.needs_full_write or pending.is_expired:
                return False
            if not pending.is_amid_batch:
                return True
            await asyncio.sleep(BATCH_WAIT_S)

    # Probing

    async def probe(self) -> None:
        """See whether slots accept writes again where nothing waits to be written that would show it."""
        session = self._session
        unsettled = {self._queue(pending).slot.number for pending in self.streams.values() if not pending.is_settled}
        await asyncio.gather(*(self._probe(session.slots[number]) for number in session.health.failed_slots() - unsettled))

    async def _probe(self, slot: Slot) -> None:
        """Changes nothing that matters, and is refused as other writes are."""
        try:
            await answer_of(self._session.client.set(slot.probe, f"{random_number():016x}", nx=True, px=self._session.expiry_ms))
        except RedisError as error:
            self._session.note_error(error, slot.probe)
        else:
            self._session.health.note_answer(slot.number, is_write=True)

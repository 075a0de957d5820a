"""The store that replicas share: what indexers own lies in Redis, and every change of it in a log.

    streams ──▶ StreamWriter (one each) ──▶ a slot's writing task: all that is pending, in one round trip ──▶ append, switch, delete

Nothing that streams call waits for Redis. While it is away they go on in memory and changes gather, bounded by what the stream holds. All of a model
lies in one slot of a Cluster; a Redis that is no Cluster is one slot. What is known of how Redis is, is known of each slot.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from enum import Enum, auto
from functools import partial
from types import TracebackType
from typing import Any, Literal, Protocol, Self

import msgspec
from msgspec import Struct
from redis.exceptions import RedisError

from indexer.config.settings import Settings
from indexer.core.change import Change
from indexer.core.names import StreamKey, Trust
from indexer.engines.spec import EngineSpec
from indexer.errors import StoreError
from indexer.masking import masked
from indexer.metrics import IndexerMetrics
from indexer.store.client.connection import Client, answer_of, connect, is_away, life_of, node_of, said, slot_of, why
from indexer.store.keyspace import Keyspace, incarnation_beside, text_of
from indexer.store.loads import LoadWriter
from indexer.store.records import Head, decode_head
from indexer.store.registry import RegisteredPods, Registry
from indexer.store.restoring import read_hash, restore
from indexer.store.rewriting import write_generation
from indexer.store.scripts import Call, call, call_all, pairs
from indexer.store.slots import Slot, trouble_of
from indexer.store.writer import Recorded, StreamWriter, random_number

log = logging.getLogger(__name__)

How = Literal["free", "want", "force"]

# Pauses while Redis is away or refuses.
RETRY_S = 0.1
RETRY_MAX_S = 1.0
KEEP_STREAMS = 50
ROOM_WAIT_S = 0.5
FLUSH_S = 2.0


class Claim(Struct, frozen=True):
    """A stream that is ours now. `generation` is None where there is no state of it."""

    fence: int
    generation: int | None = None
    fence_before: int = 0
    number: int = 0
    head: Head | None = None
    lengths: tuple[int, ...] = ()


class Standing(Enum):
    """Whether an owned stream still is."""

    OURS = auto()
    LOST = auto()
    """Another indexer has it."""
    GONE = auto()
    """Its pod was forgotten."""


class Kept(Struct, frozen=True):
    """What became of one owned stream. `wanted_by`: another indexer that would like to have it."""

    standing: Standing
    wanted_by: str | None = None


class Beat(Struct, frozen=True):
    """What an indexer learns of the others."""

    incarnation: str
    members: tuple[str, ...]
    pods: dict[str, tuple[EngineSpec, ...]]
    forgotten: frozenset[str]


class Resumable(Recorded, Protocol):
    """A stream that can go on from where its former owner was."""

    def resume(self, head: Head) -> None: ...


class RedisStore:
    """`async with RedisStore(settings, metrics, member) as store:` it does not matter whether Redis is up.

    `lost` is called with a stream that was written in vain: it is not ours any more.
    """

    has_limits = True

    def __init__(self, settings: Settings, metrics: IndexerMetrics, member: str) -> None:
        assert settings.redis is not None, "a shared store is somewhere"
        self._settings = settings
        self._metrics = metrics
        self.member = member
        self.keyspace = Keyspace(settings.namespace)
        self.lost: Callable[[StreamKey, Standing], None] = _nobody
        self._client: Client = connect(settings.redis, settings.redis_timeout_s)
        self._slots: dict[int, Slot[StreamWriter]] = {}
        self._life = self._sealed_life = life_of(self._client)
        self.loads = LoadWriter(self._client, self.keyspace)
        self.registry = Registry(self._client, self.keyspace, settings, self._note)
        self._registered = RegisteredPods()
        self._writers: dict[StreamKey, StreamWriter] = {}
        self._progress = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._slot(self.keyspace.directory.incarnation)
        self._start(self.loads.run(), "loads")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.aclose()

    def _start(self, work: Any, name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", extra={"task": task.get_name()}, exc_info=error)

    # How Redis is

    def _slot(self, key: str) -> Slot[StreamWriter]:
        """The slot of a key, from its first use on."""
        number = slot_of(self._client, key)
        slot = self._slots.get(number)
        if slot is None:
            slot = self._slots[number] = Slot(number, incarnation_beside(key))
            self._start(self._write(slot), f"redis writer {number}")
        return slot

    def _slot_of(self, model: str) -> Slot[StreamWriter]:
        return self._slot(self.keyspace.model(model).incarnation)

    def slot_of(self, model: str) -> int:
        """The number of the slot in which all of a model lies."""
        return self._slot_of(model).number

    @property
    def trouble(self) -> str | None:
        """What is wrong with Redis, or with a part of it."""
        return trouble_of(self._slots.values())

    @property
    def is_up(self) -> bool:
        return self.trouble is None

    def outage_ended_s(self, model: str | None = None) -> float:
        """When Redis was last away, by time.monotonic(): the part of it that says who lives, and the one that holds this model."""
        found = self._slot(self.keyspace.directory.incarnation).outage_ended_s
        return found if model is None else max(found, self._slot_of(model).outage_ended_s)

    def _note(self, error: RedisError, key: str) -> None:
        """Redis is away or refuses, where this key is. One line in the log for each change."""
        slot, trouble = self._slot(key), why(error)
        if all(trouble != other.trouble for other in self._slots.values()):
            assert self._settings.redis is not None, "a shared store is somewhere"
            log.error("redis in trouble", extra={"trouble": trouble, "url": masked(self._settings.redis), "error": said(error)})
        slot.trouble = trouble
        self._metrics.redis.up.set(0)

    def _note_well(self, slot: Slot[StreamWriter]) -> None:
        if slot.trouble is not None:
            trouble, slot.trouble = slot.trouble, None
            slot.outage_ended_s = time.monotonic()
            if self.trouble is None:
                log.info("redis well again", extra={"trouble": trouble})
        if self.trouble is None:
            self._metrics.redis.up.set(1)

    def _note_life(self) -> int:
        """Another server may be Redis now, without what the former did not pass on in time: as after an outage. Returns which life this is."""
        life = life_of(self._client)
        if life != self._life:
            self._life = life
            for slot in self._slots.values():
                slot.outage_ended_s = time.monotonic()
        return life

    def _note_time(self, key: str, now_ms: bytes, life: int) -> None:
        """The clock of the node that holds this key showed this a moment ago, in answer to who asked in this life of Redis."""
        if life == life_of(self._client):
            self._slot(key).clock.note(node_of(self._client, key), int(now_ms), time.monotonic())

    def _vouched_until_ms(self, key: str, written_at_s: float | None = None) -> int:
        """Until when what was all written at this time, or is now, is vouched for, by the clock of the node that holds this key; 0 where that is not
        known yet."""
        at_ms = self._slot(key).clock.at_ms(node_of(self._client, key), time.monotonic() if written_at_s is None else written_at_s)
        return at_ms and at_ms + int(self._settings.lease_s * 1000)

    async def _call(self, script: str, keys: Sequence[str], *words: Any) -> Any:
        """Raises StoreError."""
        try:
            answer = await call(self._client, script, keys, *words)
        except RedisError as error:
            self._note(error, keys[0])
            raise StoreError(why(error)) from error
        return answer

    # What streams call: the protocol of indexer.store.Store

    def open(self, stream: StreamKey) -> None:
        """A stream exists in Redis once it is owned."""

    def append(self, stream: StreamKey, block_size: int, change: Change) -> None:
        writer = self._writers.get(stream)
        if writer is not None:
            writer.note(change)

    def recorded(self, stream: StreamKey) -> None:
        writer = self._writers.get(stream)
        if writer is not None:
            writer.recorded()
            self._mark(writer)

    def drop(self, stream: StreamKey) -> None:
        writer = self._writers.get(stream)
        if writer is not None:
            writer.void()
            self._mark(writer)

    def vouch(self, stream: StreamKey, trust: Trust) -> None:
        writer = self._writers.get(stream)
        if writer is not None:
            writer.is_absent = trust is Trust.EXPIRED
            if not writer.is_absent and writer.generation is None:
                writer.needs_all = True
            writer.is_dirty = True
            self._mark(writer)

    def close(self, stream: StreamKey) -> None:
        """The owner says by `let_go`, `disown` or `forget` what becomes of a stream."""

    async def room(self, stream: StreamKey) -> None:
        """Wait, not for long, while more of this stream is waiting than should be and Redis is well."""
        until_s = time.monotonic() + ROOM_WAIT_S
        while (
            (writer := self._writers.get(stream)) is not None
            and writer.is_behind
            and self._is_up(writer)
            and (left_s := until_s - time.monotonic()) > 0
        ):
            self._progress.clear()
            try:
                async with asyncio.timeout(left_s):
                    await self._progress.wait()
            except TimeoutError:
                return

    def _mark(self, writer: StreamWriter) -> None:
        slot = self._slot(writer.keys.incarnation)
        slot.due[writer.key] = writer
        slot.woken.set()

    def _is_up(self, writer: StreamWriter) -> bool:
        return self._slot(writer.keys.incarnation).trouble is None

    # Owning

    async def claim(self, stream: StreamKey, how: How) -> Claim | str:
        """Become the stream's owner. Returns its present owner where that is somebody else. Raises StoreError."""
        keys, fence = self.keyspace.model(stream.model), random_number()
        lease_ms, ttl_ms = int(self._settings.lease_s * 1000), int(self._settings.pod_expiry_s * 1000)
        words = (self.member, lease_ms, fence, ttl_ms, f"{random_number():016x}", how)
        await self._know_time(keys.incarnation)
        answer = await self._call("claim", [keys.lease(stream), keys.state(stream), keys.incarnation], *words)
        if not answer[0]:
            return str(answer[1], "utf-8")
        if len(answer) == 2:
            return Claim(fence)
        generation, before, number, head, lengths = answer[2:]
        return Claim(fence, int(generation), int(before), int(number), decode_head(head), tuple(map(int, lengths.split(b","))))

    async def load(self, claim: Claim, stream: Resumable) -> bool:
        """Let the stream hold what Redis has of it. Returns whether it does: else it starts anew. Raises StoreError."""
        head = claim.head
        if claim.generation is None or head is None:
            return False
        state = stream.state
        if (head.counting, head.hash_seed) != (state.counting, self._settings.hash_seed):
            return False
        parts, life = self.keyspace.model(stream.key.model).parts(stream.key, claim.generation), life_of(self._client)
        renewing = asyncio.create_task(self._renew(stream.key), name=f"renew {stream.key.pod} {stream.key.rank}")
        try:
            fields = [await read_hash(self._client, part) for part in parts]
            if life != life_of(self._client):
                raise StoreError("unreachable")  # what was read may be half of one server and half of another
            if tuple(map(len, fields)) != claim.lengths:
                log.warning("blocks missing in redis", extra={"pod": stream.key.pod, "rank": stream.key.rank})
                return False
            # A million blocks take seconds: in the event loop the leases of all other streams would run out meanwhile.
            await asyncio.to_thread(restore, state, head, fields)
        except RedisError as error:
            self._note(error, parts[0])
            raise StoreError(why(error)) from error
        except (ValueError, msgspec.DecodeError) as error:
            log.warning("blocks in redis not readable", extra={"pod": stream.key.pod, "rank": stream.key.rank, "error": str(error)})
            state.forget()
            return False
        finally:
            renewing.cancel()
        stream.resume(head)
        return True

    async def _renew(self, stream: StreamKey) -> None:
        """Keep the lease of a stream that is read and not owned yet."""
        lease = self.keyspace.model(stream.model).lease(stream)
        while True:
            with suppress(RedisError):  # whoever reads notices
                await answer_of(self._client.pexpire(lease, int(self._settings.lease_s * 1000)))
            await asyncio.sleep(self._settings.lease_s / 3)

    def own(self, stream: Recorded, claim: Claim, *, is_loaded: bool) -> None:
        """From now on what the stream holds is written. `is_loaded`: it holds what Redis has; else that is void."""
        keys = self.keyspace.model(stream.key.model)
        writer = StreamWriter(stream, keys, self._settings, claim.fence, partial(self._vouched_until_ms, keys.streams))
        self._writers[stream.key] = writer
        if claim.generation is not None:
            writer.continue_from(claim.generation, claim.fence_before, claim.number)
        if is_loaded:
            writer.is_dirty = True
        else:
            writer.void()
        self._mark(writer)

    def disown(self, stream: StreamKey) -> None:
        """Write nothing more of it. Idempotent."""
        writer = self._writers.pop(stream, None)
        self._slot_of(stream.model).due.pop(stream, None)
        if writer is not None:
            writer.stream.state.untrack()

    async def let_go(self, stream: StreamKey) -> None:
        """Write what is left, if that can be done soon, and give the lease back. Never raises StoreError."""
        writer = self._writers.get(stream)
        until_s = time.monotonic() + FLUSH_S
        while writer is not None and not writer.is_settled and self._is_up(writer) and time.monotonic() < until_s:
            self._mark(writer)
            self._progress.clear()
            try:
                async with asyncio.timeout(RETRY_S):
                    await self._progress.wait()
            except TimeoutError:
                pass
        self.disown(stream)
        try:
            await self._call("release", [self.keyspace.model(stream.model).lease(stream)], self.member)
        except StoreError:
            log.info("lease not given back", extra={"pod": stream.pod, "rank": stream.rank})

    async def owners(self, streams: Sequence[StreamKey]) -> dict[StreamKey, str | None]:
        """Who has these streams; of a Cluster, those of the nodes that answer. Raises StoreError where none does."""
        pipeline = self._client.pipeline(transaction=False)
        leases = [self.keyspace.model(stream.model).lease(stream) for stream in streams]
        for lease in leases:
            pipeline.hget(lease, "owner")
        try:
            answers = await answer_of(pipeline.execute(raise_on_error=False))
        except RedisError as error:
            answers = [error] * len(leases)
        found = {}
        for stream, lease, answer in zip(streams, leases, answers, strict=True):
            if isinstance(answer, RedisError):
                self._note(answer, lease)
            else:
                found[stream] = None if answer is None else str(answer, "utf-8")
                self._note_well_if_written(self._slot(lease))
        if answers and not found:
            raise StoreError(why(answers[0])) from answers[0]
        return found

    @property
    def kept_slots(self) -> frozenset[int]:
        """Those in which something is ours. What lies in one is kept by one call of `keep`, whatever becomes of the others."""
        return frozenset(self.slot_of(stream.model) for stream in self._writers)

    def is_well(self, slot: int) -> bool:
        """Whether Redis takes writes there, as far as is known."""
        return slot not in self._slots or self._slots[slot].trouble is None

    async def keep(self, statuses: Callable[[StreamKey], bytes], slot: int | None = None) -> dict[StreamKey, Kept]:
        """Renew what is ours, in one slot or in all, and see whether it still is. `statuses`: a stream's status in JSON. Raises StoreError."""
        kept: dict[StreamKey, Kept] = {}
        by_model: dict[str, list[StreamWriter]] = {}
        for writer in self._writers.values():
            if slot is None or self.slot_of(writer.key.model) == slot:
                by_model.setdefault(writer.key.model, []).append(writer)
        for model, writers in by_model.items():
            for start in range(0, len(writers), KEEP_STREAMS):
                kept |= await self._keep(model, writers[start : start + KEEP_STREAMS], statuses)
            self._note_well_if_written(self._slot_of(model))
        return kept

    async def _know_time(self, key: str) -> None:
        """Ask the node that holds this key for its time, unless that is known. Raises StoreError."""
        if not self._slot(key).clock.knows(node_of(self._client, key)):
            life = self._note_life()
            self._note_time(key, await self._call("clock", [key]), life)

    async def _keep(self, model: str, writers: list[StreamWriter], statuses: Callable[[StreamKey], bytes]) -> dict[StreamKey, Kept]:
        key = self.keyspace.model(model).streams
        await self._know_time(key)
        node = node_of(self._client, key)
        kept = await self._keep_once(model, writers, statuses)
        if node_of(self._client, key) != node:
            # Another node answered than the one by whose clock they were vouched for.
            await self._know_time(key)
            kept = await self._keep_once(model, writers, statuses)
        return kept

    async def _keep_once(self, model: str, writers: list[StreamWriter], statuses: Callable[[StreamKey], bytes]) -> dict[StreamKey, Kept]:
        keys, lease_ms = self.keyspace.model(model), int(self._settings.lease_s * 1000)
        names = [keys.streams, keys.log, keys.incarnation]
        words: list[Any] = [self.member, lease_ms, *writers[0].ttl_ms]
        before = [(writer.generation, writer.number, writer.is_writing_all) for writer in writers]
        for writer in writers:
            names += [keys.lease(writer.key), keys.state(writer.key), *keys.parts(writer.key, writer.generation or 0)]
            until_ms = self._vouched_until_ms(keys.streams, writer.unwritten_since_s)
            words += [writer.name, writer.fence, statuses(writer.key), int(writer.stream.is_connected), until_ms]
            words += ["" if writer.generation is None else writer.generation, writer.number]
        life = self._note_life()
        now_ms, _, *answers = await self._call("keep", names, *words)
        self._note_time(keys.streams, now_ms, life)
        kept = {}
        for writer, (generation, number, was_writing), answer in zip(writers, before, answers, strict=True):
            if self._writers.get(writer.key) is not writer:
                continue
            standing = Standing.OURS
            if answer[0] == 0:
                standing = Standing.LOST
            elif (
                was_writing or writer.is_writing_all or writer.needs_all or writer.is_absent or generation is None or writer.generation != generation
            ):
                pass
            elif answer[0] == -1:
                standing = await self._missing(writer)
            elif int(answer[1]) != generation or int(answer[2]) < number or not answer[3]:
                self._void(writer, "went_back")
            wanted_by = str(answer[4], "utf-8") if answer[0] == 1 and answer[4] else None
            kept[writer.key] = Kept(standing, wanted_by)
        return kept

    async def _missing(self, writer: StreamWriter) -> Standing:
        """There is no state of a stream that was written: its pod was forgotten, or Redis lost it."""
        try:
            forgotten = await answer_of(self._client.zscore(self.keyspace.directory.forgotten, writer.key.pod))
        except RedisError as error:
            self._note(error, self.keyspace.directory.forgotten)
            raise StoreError(why(error)) from error
        if forgotten is not None:
            return Standing.GONE
        if writer.generation is not None and not writer.needs_all:
            self._void(writer, "lost")
        return Standing.OURS

    def _void(self, writer: StreamWriter, reason: str) -> None:
        log.warning("redis does not have the stream as it was written", extra={"pod": writer.key.pod, "rank": writer.key.rank, "reason": reason})
        self._metrics.redis.full_writes.labels(reason).inc()
        # A restart between two calls shows no other sign: others may not have had the time to renew what they own.
        self._slot(writer.keys.incarnation).outage_ended_s = time.monotonic()
        writer.void()
        self._mark(writer)

    # Pods

    async def beat(self, models: Iterable[str], *, is_candidate: bool = True) -> Beat:
        """Say that this indexer lives, and whether it is a candidate for streams, and hear of the others. Raises StoreError."""
        names, settings = self.keyspace.directory, self._settings
        keys = [names.members, names.models, names.pods, names.forgotten, names.incarnation, names.specs]
        alive_ms = int(settings.lease_s * 1000) if is_candidate else 0
        words = (self.member, alive_ms, int(settings.pod_expiry_s * 1000), f"{random_number():016x}", *models)
        life = self._note_life()
        now_ms, incarnation, members, pods, forgotten, specs = await self._call("beat", keys, *words)
        self._note_time(names.members, now_ms, life)
        self._note_well_if_written(self._slot(names.members))
        unsettled = {self.slot_of(writer.key.model) for writer in self._writers.values() if not writer.is_settled}
        await asyncio.gather(*(self._try_writing(slot) for slot in self._slots.values() if slot.trouble is not None and slot.number not in unsettled))
        return Beat(
            str(incarnation, "utf-8"),
            tuple(text_of(member) for member in members),
            self._registered.read(pairs(pods), pairs(specs)),
            frozenset(text_of(pod) for pod in forgotten),
        )

    async def leave(self) -> None:
        """This indexer ends: the others need not wait. Never raises StoreError."""
        try:
            await answer_of(self._client.zrem(self.keyspace.directory.members, self.member))
        except RedisError as error:
            log.info("not taken off the members", extra={"error": said(error)})

    # The writing task

    async def _write(self, slot: Slot[StreamWriter]) -> None:
        pause_s = RETRY_S
        while True:
            await slot.woken.wait()
            slot.woken.clear()
            try:
                is_well = await self._round(slot)
            except RedisError as error:
                self._note(error, slot.name)
                is_well = False
            except StoreError:
                is_well = False  # whoever raised it told of it
            except Exception:  # an error of ours must not end writing for all streams
                log.exception("writing failed")
                is_well = False
            self._progress.set()
            if is_well:
                pause_s = RETRY_S
            else:
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_MAX_S)
                slot.woken.set()

    async def _round(self, slot: Slot[StreamWriter]) -> bool:
        """Send all that is pending, in one round trip. Returns whether Redis took it. Raises RedisError where it did not answer, StoreError."""
        life = self._note_life()
        if life != self._sealed_life:
            self._sealed_life = life
            for writer in self._writers.values():
                self._take_back(writer, is_unsure=False)  # what is sealed says until when it is vouched for by another clock
        due, slot.due = slot.due, {}
        batch: list[tuple[StreamWriter, Call]] = []
        for writer in due.values():
            if writer.is_writing_all:
                continue  # its end marks it again
            if writer.is_absent:
                if writer.generation is not None:
                    batch.append((writer, writer.delete()))
            elif writer.needs_all:
                writer.is_writing_all = True
                self._start(self._write_all(writer), f"write all of {writer.key.pod} {writer.key.rank}")
            else:
                batch += [(writer, sealed.call) for sealed in writer.take()]
        if not batch:
            return True
        try:
            answers = await call_all(self._client, [sent for _, sent in batch])
        except RedisError:
            for writer in {id(writer): writer for writer, _ in batch}.values():
                self._take_back(writer, is_unsure=True)
            raise
        is_well = True
        grows = any(sealed.grows for writer, _ in batch for sealed in writer.in_flight)
        for (writer, sent), answer in zip(batch, answers, strict=True):
            if self._writers.get(writer.key) is not writer:
                continue
            if isinstance(answer, RedisError):
                is_well = False
                self._note(answer, slot.name)
                self._take_back(writer, is_unsure=is_away(answer))
            elif sent.script == "delete":
                self._deleted(writer, answer)
            else:
                await self._appended(writer, sent, answer)
        # A full Redis takes what shrinks: that it is full no longer only what grows shows.
        if is_well and (slot.trouble != "full" or grows):
            self._note_well(slot)
        return is_well

    def _take_back(self, writer: StreamWriter, *, is_unsure: bool) -> None:
        writer.take_back(is_unsure=is_unsure)
        if self._writers.get(writer.key) is writer:
            self._mark(writer)

    def _deleted(self, writer: StreamWriter, answer: Any) -> None:
        if answer[0] == 0:
            self._lose(writer, Standing.LOST)
        writer.generation = None

    async def _appended(self, writer: StreamWriter, sent: Call, answer: Any) -> None:
        sealed = next((sealed for sealed in writer.in_flight if sealed.call is sent), None)
        if sealed is None:
            return  # an earlier one of the same stream was refused, and with it all that follow
        match answer[0]:
            case 1:
                writer.done(sealed)
                self._metrics.redis.appends.inc()
            case 0:
                self._lose(writer, Standing.LOST)
            case -3 if writer.done_unanswered(int(answer[1])):
                self._take_back(writer, is_unsure=False)
            case -1:
                writer.take_back(is_unsure=False)
                if await self._missing(writer) is Standing.GONE:
                    self._lose(writer, Standing.GONE)
            case _:
                writer.take_back(is_unsure=False)
                self._void(writer, "went_back")

    def _lose(self, writer: StreamWriter, standing: Standing) -> None:
        self.disown(writer.key)
        self.lost(writer.key, standing)

    # Writing everything

    async def _write_all(self, writer: StreamWriter) -> None:
        slot = self._slot(writer.keys.incarnation)
        try:
            async with slot.writing_all:
                while writer.needs_all and self._writers.get(writer.key) is writer and not writer.is_absent:
                    await self._write_generation(writer)
            self._note_well(slot)
        except (RedisError, StoreError) as error:
            if isinstance(error, RedisError):
                self._note(error, slot.name)
            writer.void()
            await asyncio.sleep(RETRY_S)
        finally:
            writer.is_writing_all = False
            if self._writers.get(writer.key) is writer:
                self._mark(writer)
            self._progress.set()

    async def _write_generation(self, writer: StreamWriter) -> None:
        """Write all that the stream holds as a new generation, then make that the stream's. Raises RedisError, StoreError."""
        generation = await write_generation(self._client, writer, lambda: self._writers.get(writer.key) is writer)
        if generation is None:
            return
        switch = writer.switch(generation, self.member, f"{random_number():016x}")
        answer = await call(self._client, switch.script, switch.keys, *switch.words)
        if answer[0] == 0:
            # Either somebody else has it, or a Redis that lost everything does not know that it is ours.
            writer.void()
            claim = await self.claim(writer.key, "free")
            if isinstance(claim, str) or (claim.generation is not None and claim.fence_before != writer.fence):
                self._lose(writer, Standing.LOST)
            else:
                writer.fence = claim.fence
        elif [int(length) for length in answer[1:]] != writer.expected:
            writer.void()
        else:
            writer.switched(generation)
            self._metrics.redis.appends.inc()

    def _note_well_if_written(self, slot: Slot[StreamWriter]) -> None:
        """Redis answered. That it takes writes again only a write shows."""
        if slot.trouble == "unreachable" or slot.trouble is None:
            self._note_well(slot)

    async def _try_writing(self, slot: Slot[StreamWriter]) -> None:
        """Nothing waits to be written that would show whether Redis takes writes again. This changes nothing, and is refused as they are."""
        try:
            ttl_ms = int(self._settings.pod_expiry_s * 1000)
            await answer_of(self._client.set(slot.name, f"{random_number():016x}", nx=True, px=ttl_ms))
        except RedisError as error:
            self._note(error, slot.name)
        else:
            self._note_well(slot)


def _nobody(stream: StreamKey, standing: Standing) -> None:
    """Until somebody owns streams, none can be lost."""

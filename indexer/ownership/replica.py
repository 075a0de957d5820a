"""The ingest side where replicas share the streams: each follows those that it owns, writes them to Redis, and takes over what others leave.

    every third of a lease:   keep what is ours ─▶ heartbeat: who lives, which pods there are ─▶ who owns the rest ─▶ decide, see `owners`

What is ours is kept in each slot of a Cluster by a call of its own, and these wait neither for one another nor for the rest of a round: a node that
is away must not cost us what others hold. A Redis that is no Cluster is one slot.

A stream that is not ours is at most subscribed. Taking it: subscribe, claim, read what Redis has of it, run it. Handing it over: run it no longer,
write what is left, give the lease back. Each such move is a task of its own, so that no stream waits for another's.
"""

import asyncio
import logging
import os
import platform
import secrets
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack
from enum import Enum, auto
from functools import partial
from types import TracebackType
from typing import Any, Self

import msgspec
from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.engines.api import EngineApi
from indexer.engines.load_scraper import LoadScraper
from indexer.engines.spec import EngineSpec, check_together, http_base, http_base_of
from indexer.errors import SettingError, StoreError
from indexer.metrics import IndexerMetrics
from indexer.ownership.assignment import Duty, Owners, Pods, Seen
from indexer.ownership.embedded import applies
from indexer.receiving.listening import Announced
from indexer.store.flusher import Ownership
from indexer.store.leases import ClaimMode
from indexer.store.redis import RedisStore
from indexer.streams.pool import PodStatus, Readiness, Source, Streams, by_pod, sources_of
from indexer.streams.stream import Stream, ToldStatus

log = logging.getLogger(__name__)

# A stream that its owner was asked for is claimed so often.
POLL_S = 0.1
# Rounds are a third of a lease apart, and no further than this: every second streams are vouched for.
ROUND_MAX_S = 1.0
# Pause after a round that failed by an error of ours.
AFTER_FAILURE_S = 1.0


class Parting(Enum):
    """ClaimMode a stream that is ours ends being so."""

    RELEASE = auto()
    """Another indexer takes it."""
    DELETE = auto()
    """Its pod is no more."""
    LOST = auto()
    """Another indexer has it already."""


class _Known(Struct, eq=False):
    """A stream that this indexer knows. `stream`: the subscribed one, run or not. `move`: the task that takes or gives it, if one does."""

    source: Source
    is_guest: bool = False
    stream: Stream | None = None
    duty: Duty = Duty.NOTHING
    move: asyncio.Task[None] | None = None
    not_before_s: float = 0.0

    @property
    def key(self) -> StreamKey:
        return self.source.key

    @property
    def dials(self) -> bool:
        return self.source.events is None

    @property
    def is_moving(self) -> bool:
        return self.move is not None and not self.move.done()


class SharedService:
    """`async with SharedService(settings, metrics) as service:` follows its share of the settings' engines. Redis need not be up."""

    def __init__(self, settings: Settings, metrics: IndexerMetrics) -> None:
        self.member = f"{platform.node()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._settings = settings
        self._ring_limits = msgspec.structs.replace(
            settings.receive_limits, inbox_frames_max=settings.ring_frames_max, inbox_bytes_max=settings.ring_bytes_max
        )
        self._metrics = metrics
        self.store = RedisStore(settings, metrics, self.member)
        self.store.lost = self._lost
        self._streams = Streams(settings, self.store, metrics, self.member)
        self._owners = Owners(self.member, settings.lease_s)
        self._pods = Pods(by_pod(settings.engines))
        self._known: dict[StreamKey, _Known] = {}
        self._parting: dict[StreamKey, asyncio.Task[None]] = {}
        self._wanted: dict[StreamKey, str | None] = {}
        self._keeping: dict[int, asyncio.Task[bool]] = {}
        self._owned_by: dict[StreamKey, str | None] = {}
        self._members: tuple[str, ...] = ()
        self._incarnation: str | None = None
        self._incarnated_s = float("-inf")
        self._heard_s: float | None = None
        self._usable: dict[tuple[EngineSpec, bool], bool] = {}
        self._learning = asyncio.Lock()
        self._soon = asyncio.Event()
        self._excess = 0
        self._ready = False
        metrics.owned_streams.set_function(lambda: len(self._streams.running))

    async def __aenter__(self) -> Self:
        """Raises SettingError for an engine that cannot be followed."""
        named = len(sources_of(self._settings.engines))
        self._streams.check_count(named, named)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.store)
            await stack.enter_async_context(self._streams)
            self._take_up()
            if self._settings.load_interval_s:
                scraper = LoadScraper(
                    self._settings.load_interval_s, self._settings.engine_networks, self._measured, self.store.loads.note, self._metrics
                )
                await stack.enter_async_context(scraper)
            self._loops = [
                self._streams.tasks.create_task(work, name=name) for work, name in ((self._share(), "share"), (self._welcome(), "welcome"))
            ]
            stack.push_async_callback(self._leave)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def _leave(self) -> None:
        """Give everything back at once: the others need not wait for a lease to run out."""
        for task in self._loops:
            task.cancel()
        await asyncio.wait(self._loops)
        await self.store.leave()
        for known in list(self._known.values()):
            self._drop(known, Parting.RELEASE)
        if self._parting:
            await asyncio.wait(self._parting.values())

    # Pods

    async def register(self, specs: tuple[EngineSpec, ...]) -> bool:
        """Make one pod what these specs say, for all indexers and until it is forgotten. Returns whether it is a new pod.

        Raises SettingError, StoreError.
        """
        check_together(specs, "pod")
        for spec in specs:
            self._streams.check(spec, is_limited=True)
        pod, ranks = specs[0].pod, len(sources_of(specs))
        self._streams.check_count(sum(key.pod != pod for key in self._known) + ranks, ranks)
        async with self._learning:
            was_known = pod in self._pods.all()
            is_new = await self.store.registry.register(specs) and not was_known
            self._pods.register(specs)
            self._take_up()
        self._soon.set()
        log.info("pod registered", extra={"pod": pod, "model": specs[0].model, "is_new": is_new})
        return is_new

    async def forget(self, pod: str) -> bool:
        """Drop a pod and all its blocks, for all indexers. Returns whether there was one. Raises StoreError."""
        async with self._learning:
            if pod not in self._pods.all():
                await self._learn()
            if pod not in self._pods.all():
                return False
            await self.store.registry.unregister(pod)
            keys = [key for key in self._known if key.pod == pod]
            self._pods.forget(pod)
            self._take_up()
            ours = [task for key, task in self._parting.items() if key.pod == pod]
        if ours:
            await asyncio.wait(ours)
        for key in keys:
            await self.store.registry.delete(key)  # whoever else owns it sees it
        self._soon.set()
        log.info("pod forgotten", extra={"pod": pod})
        return True

    async def reconfigure(self, before: Settings, after: Settings) -> Settings:
        """Follow the engines that the new settings name; pods that stay the same, or were registered, are not touched.

        Returns what is in force now: the old settings where an engine is wrong.
        """
        if not applies(self._streams, before, after):
            return before
        self._pods.configure(by_pod(after.engines))
        self._take_up()
        self._soon.set()
        log.info("settings read again", extra={"engines": len(after.engines)})
        return after

    def pods(self) -> list[PodStatus]:
        """Every pod, with those of its streams that this indexer owns."""
        return [PodStatus(pod, specs[0].model, self._streams.statuses(pod), http_base(specs)) for pod, specs in self._pods.all().items()]

    def models_with(self, adapter: str) -> set[str]:
        """The models for which an adapter of this name was announced."""
        return self._streams.models_with(adapter)

    def adapters(self, model: str) -> set[str]:
        """Names of the adapters that were announced for a model."""
        return self._streams.adapters(model)

    def api(self, pod: str, model: str) -> EngineApi:
        """Where a pod's own API is. Only what the operator named here is not limited."""
        specs = self._pods.of(pod)
        return EngineApi(pod, http_base(specs) if specs else http_base_of(pod), not self._pods.flagged(pod))

    def readiness(self) -> Readiness:
        """Ready once each stream has an owner and each of our own is connected and its first replay has ended or failed, or after a while; then for
        good."""
        orphaned = [known.key for known in self._known.values() if not known.dials and not self._has_owner(known.key)]
        reasons = [] if self.store.trouble is None else [str(StoreError(self.store.trouble))]
        if self._heard_s is None and not reasons:
            reasons.append("Redis has not answered so far")
        if self._heard_s is not None:
            reasons += [f"pod {key.pod} rank {key.rank} has no owner" for key in orphaned]
        reasons += self._streams.troubles()
        if not self._ready:
            is_settled = all(running.stream.settled.is_set() for key, running in self._streams.running.items() if not self._known[key].dials)
            has_settled = self._heard_s is not None and not orphaned and is_settled
            self._ready = has_settled or time.monotonic() - self._streams.started_s >= self._settings.ready_after_s
        if not self._ready:
            return Readiness("starting", reasons)
        return Readiness("degraded" if reasons else "ready", reasons)

    def _has_owner(self, key: StreamKey) -> bool:
        return key in self._streams.running or self._owned_by.get(key) not in (None, self.member)

    def _measured(self) -> Iterator[tuple[tuple[str, str], EngineApi]]:
        """The pods whose load is for us to measure: those of whose ranks we own the lowest."""
        for pod, specs in self._pods.all().items():
            model = specs[0].model
            if StreamKey(model, pod, min(spec.stream_ranks[0] for spec in specs)) in self._streams.running:
                yield (model, pod), self.api(pod, model)

    # Rounds

    async def _share(self) -> None:
        interval_s = min(self._settings.lease_s / 3, ROUND_MAX_S)
        under_way: asyncio.Task[None] | None = None
        try:
            while True:
                due_s = time.monotonic() + interval_s
                self._begin_keeping()
                if under_way is None or under_way.done():
                    self._soon.clear()
                    under_way = asyncio.create_task(self._round(), name="round")
                await asyncio.wait([under_way], timeout=interval_s)
                try:
                    async with asyncio.timeout(max(0.0, due_s - time.monotonic())):
                        await self._soon.wait()
                except TimeoutError:
                    pass
        finally:
            ending = [task for task in (under_way, *self._keeping.values()) if task is not None]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def _round(self) -> None:
        """Never fails."""
        try:
            await self._see_kept()
            await self._see_others()
        except StoreError:
            pass  # the store tells of it, once
        except Exception:
            log.exception("sharing failed")
            await asyncio.sleep(AFTER_FAILURE_S)

    async def _see_others(self) -> None:
        """Raises StoreError."""
        async with self._learning:
            await self._learn()
        others = [key for key in self._known if key not in self._streams.running]
        self._owned_by = await self.store.owners(others) if others else {}
        self._act()

    def _begin_keeping(self) -> None:
        """In every slot where that is not under way."""
        for slot in self.store.owned_slots:
            keeping = self._keeping.get(slot)
            if keeping is None or keeping.done():
                self._keeping[slot] = asyncio.create_task(self._keep(slot), name=f"keep {slot}")

    async def _see_kept(self) -> None:
        """Wait until all is kept that was begun, but for slots whose node was away before. Raises StoreError where all that is kept fails."""
        keeping = {slot: task for slot, task in self._keeping.items() if not task.done()}
        waits_for = [task for slot, task in keeping.items() if len(keeping) == 1 or self.store.is_well(slot)]
        if waits_for:
            await asyncio.wait(waits_for)
            if not any(task.result() for task in waits_for):
                raise StoreError(self.store.trouble or "unreachable")

    async def _keep(self, slot: int) -> bool:
        """Returns whether Redis answered."""
        try:
            kept = await self.store.renew(self._status, slot)
        except StoreError:
            return False
        except Exception:
            log.exception("keeping failed")
            return False
        for key, each in kept.items():
            self._wanted[key] = each.wanted_by
            if each.ownership is not Ownership.OURS:
                self._lost(key, each.ownership)
        return True

    def _status(self, key: StreamKey) -> bytes:
        known = self._known.get(key)
        if known is None or known.stream is None:
            return b"null"  # it is on its way out
        specs = self._pods.of(key.pod)
        return msgspec.json.encode(ToldStatus(**msgspec.structs.asdict(known.stream.status()), http=http_base(specs) if specs else None))

    async def _learn(self) -> None:
        """Say that we live, and hear who else does and which pods there are. Raises StoreError."""
        models = {specs[0].model for specs in self._pods.all().values()}
        # One that knows no stream, such as a gateway's own scorer, must not win any: the others would wait for it.
        await self.store.registry.repeat_unconfirmed()
        asked_s, node = time.monotonic(), self.store.registry.node
        heartbeat = await self.store.heartbeat(models, is_candidate=any(not known.dials for known in self._known.values()))
        self.store.registry.note_registered(heartbeat.pods, node, asked_s)
        now_s = time.monotonic()
        is_other = self._incarnation not in (None, heartbeat.incarnation)
        # A pod that was forgotten is remembered as such for as long as pods are: that it is in neither list means something only within that time.
        if is_other or (self._heard_s is not None and now_s - self._heard_s < self._settings.pod_expiry_s):
            for specs in self._pods.lost(heartbeat.pods, heartbeat.forgotten).values():
                await self.store.registry.register(specs, keeps_old=True)
                heartbeat.pods.setdefault(specs[0].pod, specs)
        if is_other:
            log.warning("redis has other data than before", extra={"registered": len(heartbeat.pods)})
            self._incarnated_s = now_s
        self._incarnation, self._members, self._heard_s = heartbeat.incarnation, heartbeat.members, now_s
        self._pods.learn(heartbeat.pods, heartbeat.forgotten)
        self._take_up()

    def _take_up(self) -> None:
        """Know the streams that the pods have now, and no others."""
        pods = self._pods.all()
        sources: dict[StreamKey, Source] = {}
        for pod, specs in pods.items():
            # Any replica may have registered it, and each has networks of its own where engines may be.
            registered = self._pods.registered.get(pod, ())
            for spec in specs:
                is_limited = spec in registered
                if self._can_use(spec, is_limited=is_limited):
                    sources |= sources_of([spec], is_limited=is_limited)
        for key, known in list(self._known.items()):
            is_named = key in sources
            if known.is_guest and not self._pods.has_guest(key):
                self._drop(known, Parting.RELEASE if is_named else Parting.DELETE)
            elif not known.is_guest and sources.get(key) != known.source:
                self._drop(known, Parting.DELETE if not is_named and self._pods.is_void(key.pod) else Parting.RELEASE)
        for key, source in sources.items():
            if key not in self._known and len(self._known) < self._settings.streams_max:
                self._known[key] = _Known(source)
        self._note_excess(len(sources))

    def _note_excess(self, count: int) -> None:
        """One line in the log for each change of how many streams there are beyond those that may be followed."""
        excess = max(0, count - self._settings.streams_max)
        if excess > self._excess:
            log.error("too many streams", extra={"streams": count, "streams_max": self._settings.streams_max})
        self._excess = excess

    def _can_use(self, spec: EngineSpec, *, is_limited: bool) -> bool:
        """What another replica registered need not be of use to us: it may dial those that listen, or be where ours may not."""
        known = spec, is_limited
        if known not in self._usable:
            try:
                self._streams.check(spec, is_limited=is_limited)
            except SettingError as error:
                log.warning("pod cannot be followed from here", extra={"pod": spec.pod, "error": str(error)})
                self._usable[known] = False
            else:
                self._usable[known] = True
        return self._usable[known]

    def _outage_ended_s(self, model: str | None = None) -> float:
        return max(self.store.outage_ended_s(model), self._incarnated_s)

    def _act(self) -> None:
        """Begin what is due with each stream."""
        shared = [known for known in self._known.values() if not known.dials]
        duties = self._owners.decide([self._seen(known) for known in shared], self._members, time.monotonic(), self._outage_ended_s())
        for known in shared:
            known.duty = duties[known.key]
            self._begin_move(known)
        for known in self._known.values():
            if known.dials:
                self._follow_dialling(known)

    def _seen(self, known: _Known) -> Seen:
        key, runs_here = known.key, known.key in self._streams.running
        return Seen(
            key,
            has_replay=known.source.replay is not None,
            runs_here=runs_here,
            stands_by=known.stream is not None,
            owner=self._owned_by.get(key),
            wanted_by=self._wanted.get(key),
            outage_ended_s=self._outage_ended_s(key.model),
            is_hidden=not runs_here and key not in self._owned_by,
        )

    def _begin_move(self, known: _Known) -> None:
        if known.is_moving or known.key in self._parting:
            return
        match known.duty:
            case Duty.HAND_OVER:
                known.move = self._start(self._hand_over(known), "hand over", known)
            case Duty.ASK:
                known.move = self._start(self._take(known, "want"), "take", known)
            case Duty.TAKE:
                known.move = self._start(self._take(known, "free"), "take", known)
            case Duty.STAND_BY if known.stream is None:
                known.move = self._start(self._open(known), "stand by", known)
            case Duty.NOTHING if known.stream is not None:
                known.move = self._start(self._stand_down(known), "stand down", known)
            case _:
                pass

    def _follow_dialling(self, known: _Known) -> None:
        """Whoever receives a stream owns it: each new connection is a claim."""
        if known.is_moving or known.key in self._parting or known.key in self._streams.running or time.monotonic() < known.not_before_s:
            return
        if known.stream is None:
            known.move = self._start(self._open(known), "expect", known)
        elif known.stream.inbox.connected:
            known.move = self._start(self._take(known, "force"), "take", known)

    # Moves: one at a time for each stream

    def _start(self, work: Coroutine[Any, Any, object], what: str, known: _Known) -> asyncio.Task[None]:
        async def move() -> None:
            try:
                await work
            except StoreError:
                pass  # the next round decides anew
            except Exception:
                log.exception("move failed", extra={"move": what, "pod": known.key.pod, "rank": known.key.rank})

        return self._streams.tasks.create_task(move(), name=f"{what} {known.key.pod} {known.key.rank}")

    async def _open(self, known: _Known) -> Stream:
        """Subscribe. Until the stream runs nobody takes what comes: the last frames are kept."""
        if known.stream is not None:
            return known.stream
        # Known before it is connected: whoever ends this midway has something to close.
        stream = known.stream = self._streams.make(known.source, limits=self._ring_limits)
        try:
            await self._streams.connect(known.source, stream)
        except Exception:
            known.stream = None
            raise
        return stream

    async def _stand_down(self, known: _Known) -> None:
        if known.stream is not None:
            await self._streams.close(known.stream)
            known.stream = None

    async def _take(self, known: _Known, how: ClaimMode) -> None:
        """Raises StoreError."""
        stream = await self._open(known)
        while isinstance(claim := await self.store.claim(known.key, how), str):
            if how != "want":
                return
            await asyncio.sleep(POLL_S)
            if known.duty is not Duty.ASK or time.monotonic() - self._outage_ended_s(known.key.model) < self._settings.lease_s:
                return
        self._wanted.pop(known.key, None)  # that was before it was somebody else's
        is_loaded = await self.store.load(claim, stream)
        self.store.own(stream, claim, is_loaded=is_loaded)
        self._streams.attach(known.source, stream, self._stayed_away)
        if claim.generation is not None:
            self._metrics.takeovers.inc()
        log.info("stream taken", extra={"pod": known.key.pod, "rank": known.key.rank, "how": how, "sequence": stream.point().sequence})

    async def _hand_over(self, known: _Known) -> None:
        stream = known.stream
        running = self._streams.detach(known.key)
        await asyncio.wait([running.task])
        await self.store.release(known.key)
        log.info("stream handed over", extra={"pod": known.key.pod, "rank": known.key.rank, "to": self._wanted.get(known.key)})
        assert stream is running.stream, "what runs is what is known"
        await self._stand_down(known)

    # The end of what is ours

    def _lost(self, key: StreamKey, ownership: Ownership) -> None:
        """The store found that a stream is not ours any more."""
        known = self._known.get(key)
        if known is None or key not in self._streams.running:
            return
        if ownership is Ownership.GONE:
            self._pods.forget(key.pod)
            self._take_up()
            return
        self._metrics.fenced.inc()
        log.warning("stream lost to another indexer", extra={"pod": key.pod, "rank": key.rank})
        known.not_before_s = time.monotonic() + self._settings.lease_s
        if known.is_guest:
            del self._known[key]
            self._pods.part(key)
        self._part(known, Parting.LOST)

    def _stayed_away(self, stream: Stream) -> None:
        """A guest did."""
        known = self._known.get(stream.key)
        if known is not None and known.stream is stream:
            self._pods.part(stream.key)
            self._drop(known, Parting.DELETE)

    def _drop(self, known: _Known, parting: Parting) -> None:
        """Know a stream no longer."""
        del self._known[known.key]
        self._part(known, parting)

    def _part(self, known: _Known, parting: Parting) -> None:
        """Run it no longer, from this moment on, and let a task of its own see to the rest."""
        key, stream, move = known.key, known.stream, known.move
        is_running = key in self._streams.running
        running = self._streams.detach(key) if is_running else None
        if parting is not Parting.RELEASE:
            self.store.disown(key)
        is_moving = move is not None and move.cancel()
        known.stream = known.move = None
        if not (is_running or is_moving or stream):
            return
        waits_for = [task for task in (self._parting.get(key), move if is_moving else None, running.task if running else None) if task is not None]
        ending = self._end(key, stream, parting if is_running or is_moving else Parting.LOST, waits_for)
        task = self._parting[key] = self._streams.tasks.create_task(ending, name=f"part {key.pod} {key.rank}")
        task.add_done_callback(partial(self._parted, key))

    def _parted(self, key: StreamKey, task: asyncio.Task[None]) -> None:
        if self._parting.get(key) is task:
            del self._parting[key]
            self._soon.set()

    async def _end(self, key: StreamKey, stream: Stream | None, parting: Parting, waits_for: list[asyncio.Task[None]]) -> None:
        if waits_for:
            await asyncio.wait(waits_for)
        if parting is Parting.DELETE:
            try:
                await self.store.registry.delete(key)
            except StoreError as error:
                log.info("stream not deleted", extra={"pod": key.pod, "rank": key.rank, "error": str(error)})
        if parting is not Parting.LOST:
            await self.store.release(key)
        if stream is not None:
            await self._streams.close(stream)

    # Guests: pods that dial us and that nobody registered

    async def _welcome(self) -> None:
        while True:
            announced = await self._streams.announced.get()
            key = StreamKey(announced.model, announced.pod, announced.rank)
            specs = self._pods.all().get(key.pod, ())
            if len(self._known) >= self._settings.streams_max:
                await self._streams.block(announced, "too many streams")
            elif key in self._known or (specs and specs[0].model != key.model):
                await self._streams.block(announced, "pod is known otherwise")
            else:
                self._invite(key, announced)

    def _invite(self, key: StreamKey, announced: Announced) -> None:
        spec, source = self._streams.invite(announced)
        self._pods.invite(spec)
        known = self._known[key] = _Known(source, is_guest=True)
        known.stream = self._streams.make(source, announced.inbox)
        log.info("pod dialled us", extra={"pod": key.pod, "rank": key.rank, "model": key.model, "host": announced.host})
        self._follow_dialling(known)

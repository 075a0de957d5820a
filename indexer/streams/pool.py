"""Streams and what they need: where they come from, their sockets, their tasks."""

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Self

from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.names import StreamKey, Trust
from indexer.core.store import Store
from indexer.core.stream_state import Counting
from indexer.engines.endpoints import check_endpoints, check_registration
from indexer.engines.networks import has_name
from indexer.engines.resolver import EndpointWatcher
from indexer.engines.spec import EngineSpec, ListenSpec, replay_of
from indexer.errors import SettingError
from indexer.limits import ReceiveLimits
from indexer.metrics import IndexerMetrics
from indexer.receiving.inbox import Inbox
from indexer.receiving.listening import Announced
from indexer.receiving.room import Room
from indexer.receiving.subscriber import Subscriber
from indexer.streams.applier import Observe
from indexer.streams.readiness import failure_of
from indexer.streams.status import StreamStatus
from indexer.streams.stream import Stream

log = logging.getLogger(__name__)

# Pause before a stream that failed by an error of ours begins again.
AFTER_FAILURE_S = 1.0
# The metrics ask for one trust after the other.
TRUSTS_S = 0.005


class PodStatus(Struct, frozen=True):
    """A pod as `/v1/pods` shows it."""

    pod: str
    model: str
    streams: list[StreamStatus]
    http: str = ""
    """Where its own API begins."""
    aliases: tuple[str, ...] = ()
    """More names that it serves the model by."""
    ready: bool = True
    """Whether requests may go there, as discovery says; its streams are followed either way."""
    name: str = ""
    """What people call it, where it was discovered: in Kubernetes the pod's name."""
    discovered_by: str = ""
    """The source that shows it, as in --discover; empty where none does."""


class Source(Struct, frozen=True):
    """Where one stream comes from; two streams with equal ones are the same. Without `events` the engine dials us.

    `dropped_blocks`: the spec's `drops_last_block`. `shares_port`: other ranks publish at the same port; each batch says whose it is.
    `is_looked_up`: what is dialled is not the engine's name but an address of it that was found to be in the networks where engines may be.
    """

    key: StreamKey
    events: str | None
    replay: str | None
    topic: str
    counting: Counting
    offload_block_size: int | None
    is_looked_up: bool = False
    dropped_blocks: int = 0
    shares_port: bool = False
    snapshot: str | None = None


class Running(Struct):
    """A stream and the task that runs it."""

    source: Source
    stream: Stream
    task: asyncio.Task[None]


class Streams:
    """`async with Streams(settings, store, metrics) as streams:` opens, runs and closes them; the caller decides which.

    `announced`: pods that dialled us and are not registered. `tasks`: the task group, for the caller too. `owner`: this indexer, where several
    share the streams.
    """

    def __init__(self, settings: Settings, store: Store, metrics: IndexerMetrics, owner: str | None = None) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._owner = owner
        self._turn = asyncio.Lock()
        self._room = Room(settings.limits.receive.inboxes_bytes_max)
        self._dialling: dict[Stream, asyncio.Task[None]] = {}
        self._networks = settings.engine_networks
        self._trusts_seen: tuple[Counter[Trust], Counter[Trust]] = Counter(), Counter()
        self._trusts_s = -math.inf
        self.note_rank: Callable[[StreamKey, int], bool] | None = None
        self.observe: Observe | None = None
        """Both: see `Applier`."""
        self.is_ready: Callable[[str], bool] = lambda _: True
        """Whether a pod should be as it should: discovery knows of those that start or end."""
        self.running: dict[StreamKey, Running] = {}
        self._of_pods: dict[str, dict[StreamKey, Running]] = {}
        self.announced: asyncio.Queue[Announced] = asyncio.Queue()
        for trust in Trust:
            metrics.streams.labels(str(trust)).set_function(partial(self._count, trust))
            metrics.streams_not_ready.labels(str(trust)).set_function(partial(self._count_not_ready, trust))
        metrics.last_batches.read = self._last_batches

    async def __aenter__(self) -> Self:
        self.started_s = time.monotonic()
        async with AsyncExitStack() as stack:
            self._subscriber = await stack.enter_async_context(Subscriber(self._room))
            for spec in self._settings.engines:
                self.check(spec)
            await self._listen()
            self.tasks = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(self._cancel_all)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    def _cancel_all(self) -> None:
        for running in self.running.values():
            running.task.cancel()
        for dialling in self._dialling.values():
            dialling.cancel()

    # Checks

    def check(self, spec: EngineSpec, *, is_limited: bool = False) -> None:
        """`is_limited`: it came over HTTP. Raises SettingError for endpoints that cannot, or must not, be connected to."""
        if self._settings.listen is None and spec.events is None:
            raise SettingError("events", None, "is required: without --listen no pod can dial us")
        if is_limited:
            check_registration(spec, self._networks)
        else:
            check_endpoints(spec)

    def check_count(self, wanted: int, ranks: int) -> None:
        """`wanted`: streams there would be, `ranks` of them new. Raises SettingError for too many."""
        if wanted > self._settings.streams_max:
            raise SettingError("ranks", ranks, f"there would be {wanted} streams; at most {self._settings.streams_max} are followed")

    # Those that dial us

    async def _listen(self) -> None:
        """Raises SettingError where a port cannot be had."""
        if self._settings.listen is None:
            return
        spec = ListenSpec.from_text(self._settings.listen)
        for rank in range(spec.ranks):
            try:
                limits = self._settings.limits.receive
                await self._subscriber.listen(spec.endpoint(rank), rank, limits, self.announced.put_nowait, self._refuse)
            except OSError as error:
                raise SettingError("--listen", spec.endpoint(rank), f"cannot listen there: {error.strerror}") from None

    def _refuse(self, reason: str, count: int) -> None:
        self._metrics.refused.labels(reason).inc(count)

    def invite(self, announced: Announced) -> tuple[EngineSpec, Source]:
        """What is known of a pod that dialled us."""
        key = StreamKey(announced.model, announced.pod, announced.rank)
        template = self._settings.listen_replay
        replay = None if template is None else replay_of(template, announced.host, key.rank)
        spec = EngineSpec(key.pod, key.model, replay=None if template is None else replay_of(template, announced.host, 0), rank=key.rank)
        return spec, Source(key, None, replay, spec.topic, spec.counting, spec.offload_block_size)

    async def block(self, announced: Announced, why: str) -> None:
        """Listen no more to a pod that dialled us."""
        key = StreamKey(announced.model, announced.pod, announced.rank)
        log.warning(why, extra={"pod": key.pod, "rank": key.rank, "model": key.model, "host": announced.host})
        await self._subscriber.block(announced.inbox)

    # Opening and closing

    async def open_all(self, sources: Iterable[Source]) -> list[tuple[Source, Stream]]:
        """Connect to all of them, or none; what comes waits in the streams' inboxes. Raises SettingError."""
        opened: list[tuple[Source, Stream]] = []
        try:
            for source in sources:
                opened.append((source, self.make(source)))
                await self.connect(*opened[-1])
        except OSError as error:
            for _, stream in opened:
                await self.close(stream)
            raise SettingError("events", source.events, f"cannot be connected to: {error.strerror}") from None
        return opened

    async def connect(self, source: Source, stream: Stream) -> None:
        """Have the engine's frames put into the stream's inbox. Raises OSError."""
        if source.events is None:
            await self._subscriber.expect(source.key.pod, source.key.model, source.key.rank, stream.inbox)
        elif not source.is_looked_up:
            await self._dial(source, stream, source.events)
        if source.is_looked_up:
            self._dialling[stream] = self.tasks.create_task(self._look_up(source, stream).run(), name=f"dialling {source.key.pod} {source.key.rank}")

    async def _dial(self, source: Source, stream: Stream, events: str) -> None:
        await self._subscriber.add(events, source.topic.encode(), stream.inbox, self._settings.limits.receive)

    def _look_up(self, source: Source, stream: Stream) -> EndpointWatcher:
        async def connect(events: str | None, replay: str | None) -> None:
            stream.dial_replays_at(replay)
            if events is not None:
                await self._subscriber.remove(stream.inbox)
                stream.inbox.error = None
                await self._dial(source, stream, events)

        def report(failure: str) -> None:
            stream.inbox.error = failure
            log.warning("engine not dialled", extra={"pod": source.key.pod, "rank": source.key.rank, "error": failure})

        return EndpointWatcher(
            self._networks, source.events, source.replay, is_due=lambda: not stream.inbox.connected, connect=connect, report=report
        )

    def make(self, source: Source, dial_in_inbox: Inbox | None = None, limits: ReceiveLimits | None = None) -> Stream:
        """A stream that is not connected. `dial_in_inbox`: an inbox that is filled already. `limits`: of what waits until it runs."""
        stream = Stream(
            source.key,
            room=self._room,
            replay_endpoint=source.replay,
            counting=source.counting,
            offload_block_size=source.offload_block_size,
            settings=self._settings,
            store=self._store,
            metrics=self._metrics,
            turn=self._turn,
            events=source.events,
            topic=source.topic,
            dials_us=source.events is None,
            dial_in_inbox=dial_in_inbox,
            limits=limits,
            owner=self._owner,
            dropped_blocks=source.dropped_blocks,
            shares_port=source.shares_port,
            snapshot=source.snapshot,
            note_rank=self.note_rank,
            observe=self.observe,
        )
        if source.is_looked_up:
            stream.dial_replays_at(None)
        return stream

    def attach(self, source: Source, stream: Stream, ended: Callable[[Stream], object]) -> None:
        """Run it. `ended` is called where it ends by itself: a dial-in pod stayed away."""
        stream.begin()
        task = self.tasks.create_task(self._follow(stream, ended), name=f"stream {source.key.pod} {source.key.rank}")
        running = self.running[source.key] = Running(source, stream, task)
        self._of_pods.setdefault(source.key.pod, {})[source.key] = running

    def detach(self, key: StreamKey) -> Running:
        """Run it no longer: it writes nothing after this, since it resumes with the cancellation."""
        running = self.running.pop(key)
        of_pod = self._of_pods[key.pod]
        del of_pod[key]
        if not of_pod:
            del self._of_pods[key.pod]
        running.task.cancel()
        return running

    async def dispose(self, running: Running) -> None:
        """The end of what was detached."""
        await asyncio.wait([running.task])
        await self.close(running.stream)

    async def close(self, stream: Stream) -> None:
        """Disconnect a stream that is not run."""
        if (dialling := self._dialling.pop(stream, None)) is not None:
            dialling.cancel()
            await asyncio.wait([dialling])
        await self._subscriber.remove(stream.inbox)
        stream.close()

    async def _follow(self, stream: Stream, ended: Callable[[Stream], object]) -> None:
        while True:
            try:
                await stream.run()
                ended(stream)
                return
            except Exception:
                log.exception("stream failed", extra={"pod": stream.key.pod, "rank": stream.key.rank})
                stream.fail()
                await asyncio.sleep(AFTER_FAILURE_S)

    # Their status

    def statuses(self, pod: str) -> list[StreamStatus]:
        """Of a pod's streams that run here, by rank."""
        return sorted((running.stream.status() for running in self.of_pod(pod).values()), key=lambda status: status.rank)

    def of_pod(self, pod: str) -> dict[StreamKey, Running]:
        """A pod's streams that run here."""
        return dict(self._of_pods.get(pod, {}))

    def models_with(self, adapter: str) -> set[str]:
        """The models for which an engine that is followed here announced an adapter of this name."""
        return {key.model for key, running in self.running.items() if adapter in running.stream.state.adapters}

    def adapters(self, model: str) -> set[str]:
        """Names of the adapters that engines which are followed here announced for a model."""
        return {name for key, running in self.running.items() if key.model == model for name in running.stream.state.adapters}

    def forget_adapter(self, pod: str, name: str) -> None:
        """Drop the blocks of a LoRA adapter from a pod's streams that run here."""
        for running in self.of_pod(pod).values():
            running.stream.forget_adapter(name)
        log.info("adapter forgotten", extra={"pod": pod, "adapter": name})

    def failures(self) -> Iterator[str]:
        """What is not as it should be with those that run here, in words."""
        for running in self.running.values():
            stream = running.stream
            if self.is_ready(stream.key.pod) and (failure := failure_of(stream.key, stream.trust, stream.last_error)) is not None:
                yield failure

    def _count(self, trust: Trust) -> int:
        return self._trusts()[0][trust]

    def _count_not_ready(self, trust: Trust) -> int:
        return self._trusts()[1][trust]

    def _trusts(self) -> tuple[Counter[Trust], Counter[Trust]]:
        """How many streams have which, and how many of these are of pods that are not ready; counted once for all that ask in the same moment."""
        now_s = time.monotonic()
        if now_s - self._trusts_s > TRUSTS_S:
            self._trusts_s = now_s
            of_all, of_unready = self._trusts_seen = Counter[Trust](), Counter[Trust]()
            for key, running in self.running.items():
                trust = running.stream.trust
                of_all[trust] += 1
                if not self.is_ready(key.pod):
                    of_unready[trust] += 1
        return self._trusts_seen

    def _last_batches(self) -> Iterator[tuple[StreamKey, float]]:
        """When each stream's last batch was applied, in Unix time; 0 before the first."""
        offset_s = time.time() - time.monotonic()
        for key, running in self.running.items():
            last_s = running.stream.last_batch_s
            # To a tenth: between two batches the figure should not change, and two clocks never agree on more.
            yield key, 0.0 if last_s is None else round(offset_s + last_s, 1)


def by_pod(specs: Iterable[EngineSpec]) -> dict[str, tuple[EngineSpec, ...]]:
    """The specs of each pod."""
    found: dict[str, tuple[EngineSpec, ...]] = {}
    for spec in specs:
        found[spec.pod] = (*found.get(spec.pod, ()), spec)
    return found


def sources_of(specs: Iterable[EngineSpec], *, is_limited: bool = False) -> dict[StreamKey, Source]:
    """Every stream that these specs name. `is_limited`: they came over HTTP."""
    found: dict[StreamKey, Source] = {}
    for spec in specs:
        for rank in spec.stream_ranks:
            key = StreamKey(spec.model, spec.pod, rank)
            events, replay = spec.endpoints(rank)
            is_looked_up = is_limited and (has_name(events) or has_name(replay))
            found[key] = Source(
                *(key, events, replay, spec.topic, spec.counting, spec.offload_block_size),
                is_looked_up=is_looked_up,
                dropped_blocks=spec.dropped_blocks,
                shares_port=spec.ranks_share_port,
                snapshot=spec.snapshot_at(rank),
            )
    return found


def without_rank(specs: Iterable[EngineSpec], rank: int) -> tuple[EngineSpec, ...]:
    """The specs that do not name this rank."""
    return tuple(spec for spec in specs if rank not in spec.stream_ranks)

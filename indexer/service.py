"""The ingest side as a whole: which pods there are, a task for each of their streams, and whether it is ready."""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from types import TracebackType
from typing import Self

import zmq
from msgspec import Struct

from indexer.engine_spec import EngineSpec, ListenSpec, check_together, replay_of
from indexer.errors import SettingError
from indexer.inbox import Inbox
from indexer.listening import Announced
from indexer.metrics import IndexerMetrics
from indexer.settings import Settings
from indexer.store import Store, StreamKey, Trust
from indexer.stream import Stream, StreamStatus
from indexer.stream_state import Counting
from indexer.subscriber import Subscriber
from indexer.subscription import Context

log = logging.getLogger(__name__)

# Pause before a stream that failed by an error of ours begins again.
AFTER_FAILURE_S = 1.0
# Of libzmq: the SUB, the two ends of its monitor, and a DEALER while there is a replay. Some more are for listening and for trying endpoints.
SOCKETS_PER_STREAM = 4
SOCKETS_SPARE = 4_096


class PodStatus(Struct, frozen=True):
    """A pod as `/v1/pods` shows it."""

    pod: str
    model: str
    streams: list[StreamStatus]


class Readiness(Struct, frozen=True):
    """`status`: starting, ready or degraded. `reasons`: what is not as it should be, in words."""

    status: str
    reasons: list[str]

    @property
    def is_ready(self) -> bool:
        return self.status != "starting"


class _Source(Struct, frozen=True):
    """Where one stream comes from; two streams with equal ones are the same. Without `events` the engine dials us."""

    key: StreamKey
    events: str | None
    replay: str | None
    topic: str
    counting: Counting
    offload_block_size: int | None


class _Running(Struct):
    source: _Source
    stream: Stream
    task: asyncio.Task[None]


class Service:
    """`async with Service(settings, store, metrics) as service:` connects to the settings' engines and follows them."""

    def __init__(self, settings: Settings, store: Store, metrics: IndexerMetrics) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._running: dict[StreamKey, _Running] = {}
        self._specs: dict[str, tuple[EngineSpec, ...]] = {}
        self._turn = asyncio.Lock()
        self._changing = asyncio.Lock()
        self._announced: asyncio.Queue[Announced] = asyncio.Queue()
        self._ready = False
        for trust in Trust:
            metrics.streams.labels(str(trust)).set_function(partial(self._count, trust))
        metrics.last_batches.read = self._last_batches

    async def __aenter__(self) -> Self:
        """Raises SettingError for an engine that cannot be followed."""
        self._started_s = time.monotonic()
        try:
            await self._start()
        except BaseExceptionGroup as group:  # the task group's way of passing on what was raised inside it
            wrong = group.subgroup(SettingError)
            raise group if wrong is None else wrong.exceptions[0] from None
        return self

    async def _start(self) -> None:
        async with AsyncExitStack() as stack:
            self._context: Context = zmq.Context()
            self._context.set(zmq.MAX_SOCKETS, SOCKETS_PER_STREAM * self._settings.streams_max + SOCKETS_SPARE)
            stack.callback(self._context.destroy, linger=0)
            self._subscriber = await stack.enter_async_context(Subscriber(self._context))
            for spec in self._settings.engines:
                self._check_endpoints(spec)
            await self._listen()
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            self._welcoming = self._tasks.create_task(self._welcome_guests(), name="welcome")
            stack.callback(self._cancel_all)
            for specs in _by_pod(self._settings.engines).values():
                await self.register(specs)
            self._configured = list(self._running)
            self._stack = stack.pop_all()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    def _cancel_all(self) -> None:
        self._welcoming.cancel()
        for running in self._running.values():
            running.task.cancel()

    # Pods

    async def register(self, specs: tuple[EngineSpec, ...]) -> bool:
        """Make one pod what these specs say; streams that stay the same keep what they hold. Returns whether it is a new pod.

        Raises SettingError.
        """
        check_together(specs, "pod")
        if self._settings.listen is None and any(spec.events is None for spec in specs):
            raise SettingError("events", None, "is required: without --listen no pod can dial us")
        sources = {source.key: source for spec in specs for source in _sources(spec)}
        for spec in specs:
            self._check_endpoints(spec)
        pod = specs[0].pod
        async with self._changing:
            before = {running.source.key: running for running in self._running.values() if running.source.key.pod == pod}
            wanted = len(self._running) - len(before) + len(sources)
            if wanted > self._settings.streams_max:
                raise SettingError("ranks", len(sources), f"there would be {wanted} streams; at most {self._settings.streams_max} are followed")
            gone = [running for key, running in before.items() if sources.get(key) != running.source]
            opened = await self._open_all([source for key, source in sources.items() if key not in before or before[key] in gone])
            # Nobody sees a pod without its streams: nothing waits from here to the end of the exchange.
            is_new = pod not in self._specs
            self._specs[pod] = specs
            for running in gone:
                self._detach(running)
            for source, stream in opened:
                self._attach(source, stream)
            for running in gone:
                await self._dispose(running)
        log.info("pod registered", extra={"pod": pod, "model": specs[0].model, "is_new": is_new})
        return is_new

    async def forget(self, pod: str) -> bool:
        """Drop a pod and all its blocks. Returns whether there was one."""
        async with self._changing:
            gone = [running for running in self._running.values() if running.source.key.pod == pod]
            was_known = self._specs.pop(pod, None) is not None
            for running in gone:
                self._detach(running)
            for running in gone:
                await self._dispose(running)
        if was_known:
            log.info("pod forgotten", extra={"pod": pod})
        return was_known

    async def reconfigure(self, before: Settings, after: Settings) -> Settings:
        """Make the configured engines what the new settings say; pods that stay the same, or came over HTTP, are not touched.

        Returns what is in force now: the old settings where an engine is wrong.
        """
        changed = sorted(name for name in Settings.__struct_fields__ if name != "engines" and getattr(before, name) != getattr(after, name))
        if changed:
            log.warning("settings changed that need a restart", extra={"settings": ",".join(changed)})
        old, new = _by_pod(before.engines), _by_pod(after.engines)
        try:
            for spec in after.engines:
                self._check_endpoints(spec)
        except SettingError as error:
            log.error("settings not applied", extra={"error": str(error)})
            return before
        for pod in old.keys() - new.keys():
            await self.forget(pod)
        for pod, specs in new.items():
            if old.get(pod) != specs:
                try:
                    await self.register(specs)
                except SettingError as error:
                    log.error("pod not registered", extra={"pod": pod, "error": str(error)})
        log.info("settings read again", extra={"engines": len(after.engines)})
        return after

    def pods(self) -> list[PodStatus]:
        """Every pod with its streams, in the order of their registration."""
        return [PodStatus(pod, specs[0].model, self._statuses(pod)) for pod, specs in self._specs.items()]

    def _statuses(self, pod: str) -> list[StreamStatus]:
        return sorted((r.stream.status() for key, r in self._running.items() if key.pod == pod), key=lambda status: status.rank)

    def readiness(self) -> Readiness:
        """Ready once every configured stream has connected and its first replay has ended or failed, or after a while; then for good."""
        streams = [running.stream for running in self._running.values()]
        reasons = [
            f"pod {stream.key.pod} rank {stream.key.rank} is {stream.trust}" + (f": {error}" if (error := stream.status().last_error) else "")
            for stream in streams
            if stream.trust in (Trust.STALE, Trust.EXPIRED) or (stream.trust is Trust.PARTIAL and stream.status().last_error)
        ]
        if not self._ready:
            settled = all(self._running[key].stream.settled.is_set() for key in self._configured if key in self._running)
            self._ready = settled or time.monotonic() - self._started_s >= self._settings.ready_after_s
        if not self._ready:
            return Readiness("starting", reasons)
        return Readiness("degraded" if reasons else "ready", reasons)

    def _count(self, trust: Trust) -> int:
        return sum(running.stream.trust is trust for running in self._running.values())

    def _last_batches(self) -> Iterator[tuple[StreamKey, float]]:
        """When each stream's last batch was applied, in Unix time; 0 before the first."""
        now_s = time.time()
        for key, running in self._running.items():
            age_s = running.stream.status().last_batch_age_s
            # To a tenth: between two batches the figure should stand still, and two clocks never agree on more.
            yield key, 0.0 if age_s is None else round(now_s - age_s, 1)

    # Guests: pods that dial us and that nobody registered

    async def _listen(self) -> None:
        """Raises SettingError where a port cannot be had."""
        if self._settings.listen is None:
            return
        spec = ListenSpec.from_text(self._settings.listen)
        for rank in range(spec.ranks):
            try:
                limits = self._settings.receive_limits
                await self._subscriber.listen(spec.endpoint(rank), rank, limits, self._announced.put_nowait, self._refuse)
            except zmq.ZMQError as error:
                raise SettingError("--listen", spec.endpoint(rank), f"cannot listen there: {error.strerror}") from None

    def _refuse(self, reason: str) -> None:
        self._metrics.refused.labels(reason).inc()

    async def _welcome_guests(self) -> None:
        while True:
            announced = await self._announced.get()
            async with self._changing:
                await self._welcome(announced)

    async def _welcome(self, announced: Announced) -> None:
        key = StreamKey(announced.model, announced.pod, announced.rank)
        specs = self._specs.get(key.pod, ())
        if len(self._running) >= self._settings.streams_max:
            log.warning("too many streams", extra={"pod": key.pod, "rank": key.rank, "model": key.model, "host": announced.host})
            await self._subscriber.block(announced.inbox)
            return
        if key in self._running or (specs and specs[0].model != key.model):
            log.warning("pod is known otherwise", extra={"pod": key.pod, "rank": key.rank, "model": key.model, "host": announced.host})
            await self._subscriber.block(announced.inbox)
            return
        template = self._settings.listen_replay
        replay = None if template is None else replay_of(template, announced.host, key.rank)
        spec = EngineSpec(key.pod, key.model, replay=None if template is None else replay_of(template, announced.host, 0), rank=key.rank)
        source = _Source(key, None, replay, spec.topic, spec.counting, spec.offload_block_size)
        self._specs[key.pod] = (*specs, spec)
        self._attach(source, self._stream(source, announced.inbox))
        log.info("pod dialled us", extra={"pod": key.pod, "rank": key.rank, "model": key.model, "host": announced.host})

    async def _let_go(self, stream: Stream) -> None:
        """A guest stayed away."""
        async with self._changing:
            running = self._running.get(stream.key)
            if running is None or running.stream is not stream:
                return
            self._detach(running)
            left = tuple(spec for spec in self._specs[stream.key.pod] if stream.key.rank not in spec.stream_ranks)
            if left:
                self._specs[stream.key.pod] = left
            else:
                del self._specs[stream.key.pod]
            await self._dispose(running)

    # Streams

    def _check_endpoints(self, spec: EngineSpec) -> None:
        for key, endpoint in (("events", spec.events), ("replay", spec.replay)):
            if endpoint is None:
                continue
            try:
                with self._context.socket(zmq.SUB) as probe:
                    probe.linger = 0
                    probe.connect(endpoint)
            except zmq.ZMQError as error:
                raise SettingError(key, endpoint, f"should be an endpoint that can be connected to: {error.strerror}") from None

    def _stream(self, source: _Source, guest: Inbox | None = None) -> Stream:
        return Stream(
            source.key,
            context=self._context,
            replay_endpoint=source.replay,
            counting=source.counting,
            offload_block_size=source.offload_block_size,
            settings=self._settings,
            store=self._store,
            metrics=self._metrics,
            turn=self._turn,
            dials_us=source.events is None,
            guest=guest,
        )

    async def _open_all(self, sources: Iterable[_Source]) -> list[tuple[_Source, Stream]]:
        """All of them, or none. Raises SettingError."""
        opened: list[tuple[_Source, Stream]] = []
        try:
            for source in sources:
                opened.append(await self._open(source))
        except zmq.ZMQError as error:
            for _, stream in opened:
                await self._subscriber.remove(stream.inbox)
                stream.close()
            raise SettingError("events", source.events, f"cannot be connected to: {error.strerror}") from None
        return opened

    async def _open(self, source: _Source) -> tuple[_Source, Stream]:
        """Connect; what comes waits in the stream's inbox."""
        stream = self._stream(source)
        if source.events is None:
            await self._subscriber.expect(source.key.pod, source.key.model, source.key.rank, stream.inbox)
        else:
            await self._subscriber.add(source.events, source.topic.encode(), stream.inbox, self._settings.receive_limits)
        return source, stream

    def _attach(self, source: _Source, stream: Stream) -> None:
        self._store.open(source.key)
        task = self._tasks.create_task(self._follow(stream), name=f"stream {source.key.pod} {source.key.rank}")
        self._running[source.key] = _Running(source, stream, task)

    def _detach(self, running: _Running) -> None:
        del self._running[running.source.key]
        running.task.cancel()  # it writes nothing after this: it resumes with the cancellation
        self._store.close(running.source.key)

    async def _dispose(self, running: _Running) -> None:
        await self._subscriber.remove(running.stream.inbox)
        await asyncio.wait([running.task])
        running.stream.close()

    async def _follow(self, stream: Stream) -> None:
        while True:
            try:
                await stream.run()
                self._tasks.create_task(self._let_go(stream), name=f"let go {stream.key.pod}")
                return
            except Exception:
                log.exception("stream failed", extra={"pod": stream.key.pod, "rank": stream.key.rank})
                stream.fail()
                await asyncio.sleep(AFTER_FAILURE_S)


def _by_pod(specs: Iterable[EngineSpec]) -> dict[str, tuple[EngineSpec, ...]]:
    found: dict[str, tuple[EngineSpec, ...]] = {}
    for spec in specs:
        found[spec.pod] = (*found.get(spec.pod, ()), spec)
    return found


def _sources(spec: EngineSpec) -> list[_Source]:
    def source(rank: int) -> _Source:
        events, replay = spec.endpoints(rank)
        return _Source(StreamKey(spec.model, spec.pod, rank), events, replay, spec.topic, spec.counting, spec.offload_block_size)

    return [source(rank) for rank in spec.stream_ranks]

"""The ingest side as a whole: which pods there are, a task for each of their streams, and whether it is ready."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from indexer.config.engine_key import EngineKey
from indexer.config.settings import Settings
from indexer.core.block_table import BlockTable
from indexer.core.names import StreamKey
from indexer.core.store import Store
from indexer.discovery.discovery import Discovery
from indexer.engines.api import EngineApi
from indexer.engines.discovered import DiscoveredPod, origin_of
from indexer.engines.load import Load
from indexer.engines.load_scraper import LoadScraper
from indexer.engines.served_names import ServedNames
from indexer.engines.spec import EngineSpec, aliases, check_together, http_base, http_base_of, prefill_rate, role_of, with_shared_port
from indexer.errors import SettingError
from indexer.metrics import IndexerMetrics
from indexer.ownership.dead_registrations import DeadRegistrations
from indexer.ownership.reconfiguration import applies
from indexer.receiving.listening import Announced
from indexer.streams.applier import Observe
from indexer.streams.pool import PodStatus, Running, Source, Streams, by_pod, sources_of, without_rank
from indexer.streams.readiness import Readiness, readiness
from indexer.streams.stream import Stream

log = logging.getLogger(__name__)


class Service:
    """`async with Service(settings, store, metrics) as service:` connects to the settings' engines and follows them.

    `note_load`, if given, is called with each measured load: model, pod, load, time of the measurement. `note_dropped`, if given, is called with each
    new stream and how many of the last matched blocks its engine computes again. `note_ready`, if given, is called with each discovered pod, by its
    model and name, and whether it is ready, whenever that changes. `observe`, if given, is called with the events of each applied batch.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        metrics: IndexerMetrics,
        note_load: Callable[[str, str, Load, float], None] | None = None,
        note_dropped: Callable[[StreamKey, int], None] | None = None,
        note_ready: Callable[[str, str, bool], None] | None = None,
        observe: Observe | None = None,
    ) -> None:
        self._settings = settings
        self._metrics = metrics
        self._note_load = note_load
        self._note_dropped = note_dropped
        self._note_ready = note_ready
        self._store = store
        self._streams = Streams(settings, store, metrics)
        self._streams.is_ready = self._is_ready
        self._streams.note_rank = self._note_rank
        self._streams.observe = observe
        self._shared_ports: dict[str, tuple[tuple[EngineSpec, ...], tuple[EngineSpec, ...]]] = {}
        """Pod → its specs as they were given, and with the ranks that were found at its port."""
        self._specs: dict[str, tuple[EngineSpec, ...]] = {}
        self._named: set[str] = set()
        """Those that the operator named."""
        self._discovered: dict[str, DiscoveredPod] = {}
        """All that discovery shows, also those that were named or registered, or forgotten since."""
        self._followed_by_discovery: set[str] = set()
        """Those of them whose specs are discovery's."""
        key = EngineKey.of(settings)
        headers = dict if key is None else key.header
        self._names = ServedNames(settings.engine_networks, self._measured, headers)
        self._discovery = Discovery(settings, self, metrics, headers)
        self._registered: set[str] = set()
        """Those that a client registered."""
        self._dead = DeadRegistrations(settings.registration_expiry_s)
        self._changing = asyncio.Lock()
        self._ready = False

    async def __aenter__(self) -> Self:
        """Raises SettingError for an engine that cannot be followed."""
        try:
            await self._start()
        except BaseExceptionGroup as group:  # the task group's way of passing on what was raised inside it
            wrong = group.subgroup(SettingError)
            raise group if wrong is None else wrong.exceptions[0] from None
        return self

    async def _start(self) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._streams)
            adding = self._streams.tasks.create_task(self._add_dial_in_pods(), name="dial-in")
            stack.callback(adding.cancel)
            if self._dead.is_on:
                expiring = self._streams.tasks.create_task(self._forget_dead(), name="dead registrations")
                stack.callback(expiring.cancel)
            for specs in by_pod(self._settings.engines).values():
                await self._register(specs, is_limited=False)
            self._configured = list(self._streams.running)
            await stack.enter_async_context(self._names)
            await stack.enter_async_context(self._discovery)
            if self._note_load is not None and self._settings.load_interval_s:
                await stack.enter_async_context(
                    LoadScraper(
                        *(self._settings.load_interval_s, self._settings.engine_networks, self._measured, self._prefill_rate),
                        *(self._note_load, self._metrics),
                    )
                )
            self._stack = stack.pop_all()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    def _measured(self) -> Iterator[tuple[tuple[str, str], EngineApi]]:
        """The pods whose load and names are to be asked for."""
        for pod, specs in self._specs.items():
            yield (specs[0].model, pod), self.api(pod, specs[0].model)

    def _prefill_rate(self, pod: str) -> float | None:
        """What a pod's spec says of it."""
        return prefill_rate(self._specs.get(pod, ()))

    def mapped_key(self, key: StreamKey) -> Callable[[int], int | None] | None:
        """`BlockTable.mapped_key` of a stream; None for one that does not run here."""
        table = self.table(key)
        return None if table is None else table.mapped_key

    def table(self, key: StreamKey) -> BlockTable | None:
        """The blocks of a stream, to read; None for one that does not run here."""
        running = self._streams.running.get(key)
        return None if running is None else running.stream.state.table

    # Pods

    async def register(self, specs: tuple[EngineSpec, ...]) -> bool:
        """Make one pod what these specs, which came over HTTP, say; streams that stay the same keep what they hold. Returns whether it is a new pod.

        Raises SettingError.
        """
        is_new = await self._register(specs, is_limited=True)
        self._registered.add(specs[0].pod)
        self._dead.note_alive(specs[0].pod)
        return is_new

    async def _register(self, specs: tuple[EngineSpec, ...], *, is_limited: bool) -> bool:
        check_together(specs, "pod")
        given, found = self._shared_ports.get(specs[0].pod, ((), ()))
        if specs == given:
            specs = found
        for spec in specs:
            self._streams.check(spec, is_limited=is_limited)
        sources = sources_of(specs, is_limited=is_limited)
        pod = specs[0].pod
        async with self._changing:
            before = self._streams.of_pod(pod)
            self._streams.check_count(len(self._streams.running) - len(before) + len(sources), len(sources))
            gone = [key for key, running in before.items() if sources.get(key) != running.source]
            # The lowest rank last: whoever waits for it at a shared port finds the others as far.
            opened = await self._streams.open_all(source for key, source in reversed(sources.items()) if key not in before or key in gone)
            # No request sees a pod without its streams: nothing awaits from here to the end of the exchange.
            is_new = pod not in self._specs
            self._specs[pod] = specs
            (self._named.discard if is_limited else self._named.add)(pod)
            if not is_limited:
                self._registered.discard(pod)
            self._followed_by_discovery.discard(pod)
            detached = [self._detach(key) for key in gone]
            for source, stream in opened:
                self._attach(source, stream)
            for running in detached:
                await self._streams.dispose(running)
        log.info("pod registered", extra={"pod": pod, "model": specs[0].model, "is_new": is_new})
        return is_new

    def _note_rank(self, key: StreamKey, highest: int) -> bool:
        """Batches of several ranks come by one connection: each rank is to have a stream. Returns whether this stream is replaced by another one."""
        specs = self._specs.get(key.pod, ())
        if len(specs) != 1 or any(running.stream.is_connected for other, running in self._streams.running.items() if self._has_own_port(other, key)):
            return False
        shared = (with_shared_port(specs[0], highest),)
        if shared == specs:
            return False
        self._streams.tasks.create_task(self._share_port(key.pod, specs, shared), name=f"ranks of {key.pod}")
        return not specs[0].ranks_share_port

    def _has_own_port(self, other: StreamKey, key: StreamKey) -> bool:
        return other.pod == key.pod and other != key and not self._streams.running[other].source.shares_port

    async def _share_port(self, pod: str, before: tuple[EngineSpec, ...], shared: tuple[EngineSpec, ...]) -> None:
        if self._specs.get(pod) != before:
            return
        log.warning("several ranks at one port", extra={"pod": pod, "ranks": shared[0].ranks})
        given, found = self._shared_ports.get(pod, (before, before))
        self._shared_ports[pod] = (given if found == before else before), shared
        try:
            await self._register(shared, is_limited=pod not in self._named)
        except SettingError as error:
            log.error("pod not registered", extra={"pod": pod, "error": str(error)})

    async def forget(self, pod: str) -> bool:
        """Drop a pod and all its blocks. Returns whether there was one."""
        async with self._changing:
            was_known = self._specs.pop(pod, None) is not None
            self._named.discard(pod)
            self._registered.discard(pod)
            self._followed_by_discovery.discard(pod)
            self._shared_ports.pop(pod, None)
            detached = [self._detach(key) for key in self._streams.of_pod(pod)]
            for running in detached:
                await self._streams.dispose(running)
        if was_known:
            log.info("pod forgotten", extra={"pod": pod})
        return was_known

    # Discovered pods

    async def discover(self, pod: DiscoveredPod) -> None:
        """Follow a pod that discovery found. What a flag or a client says of the same pod counts instead, and a client's deletion does.

        Raises SettingError.
        """
        before = self._discovered.get(pod.pod)
        self._discovered[pod.pod] = pod
        is_own = pod.pod in self._followed_by_discovery
        if (before is None and pod.pod not in self._specs) or (is_own and before is not None and before.specs != pod.specs):
            try:
                await self._register(pod.specs, is_limited=True)
            except SettingError:
                if before is None:
                    del self._discovered[pod.pod]
                else:
                    self._discovered[pod.pod] = before
                raise
            self._followed_by_discovery.add(pod.pod)
        self._tell_readiness(pod.pod)

    async def lose(self, pod: str) -> None:
        """Discovery shows this pod no longer. What a flag or a client named is followed on."""
        self._discovered.pop(pod, None)
        if pod in self._followed_by_discovery:
            await self.forget(pod)
        self._tell_readiness(pod)

    def _is_ready(self, pod: str) -> bool:
        """Whether requests may go to a pod. One that discovery does not know is taken to be ready."""
        discovered = self._discovered.get(pod)
        return discovered is None or discovered.is_ready

    def _tell_readiness(self, pod: str) -> None:
        if self._note_ready is not None and (specs := self._specs.get(pod)):
            self._note_ready(specs[0].model, pod, self._is_ready(pod))

    async def _forget_dead(self) -> None:
        """Forget registered pods that have been away for too long. One that discovery shows is there."""
        while True:
            await asyncio.sleep(self._dead.look_s)
            registered = self._registered - self._discovered.keys()
            connected = {pod: any(running.stream.is_connected for running in self._streams.of_pod(pod).values()) for pod in registered}
            for pod in self._dead.dead(connected, time.monotonic()):
                log.info("registered pod expired", extra={"pod": pod, "away_s": self._settings.registration_expiry_s})
                await self.forget(pod)

    def forget_adapter(self, pod: str, name: str) -> bool:
        """Drop a pod's blocks of a LoRA adapter, whose weights are others now. Returns whether there is such a pod."""
        if pod not in self._specs:
            return False
        self._streams.forget_adapter(pod, name)
        return True

    async def reconfigure(self, before: Settings, after: Settings) -> Settings:
        """Make the configured engines what the new settings say; pods that stay the same, or came over HTTP, are not touched.

        Returns what is in force now: the old settings where an engine is wrong.
        """
        if not applies(self._streams, before, after):
            return before
        old, new = by_pod(before.engines), by_pod(after.engines)
        for pod in old.keys() - new.keys():
            await self.forget(pod)
            if (discovered := self._discovered.pop(pod, None)) is not None:
                await self.discover(discovered)
        for pod, specs in new.items():
            if old.get(pod) != specs:
                try:
                    await self._register(specs, is_limited=False)
                except SettingError as error:
                    log.error("pod not registered", extra={"pod": pod, "error": str(error)})
        log.info("settings read again", extra={"engines": len(after.engines)})
        return after

    def pod_names(self) -> list[str]:
        """Every pod, in the order of their registration."""
        return list(self._specs)

    def specs(self, pod: str) -> tuple[EngineSpec, ...]:
        """What is known of where a pod's events come from; nothing for an unknown pod."""
        return self._specs.get(pod, ())

    def pods(self, names: Iterable[str] | None = None) -> Iterator[PodStatus]:
        """These pods, or all, with their streams."""
        for pod in self.pod_names() if names is None else names:
            if specs := self._specs.get(pod):
                found = origin_of(self._discovered.get(pod))
                yield PodStatus(pod, specs[0].model, self._streams.statuses(pod), http_base(specs), self._aliases(pod), *found)

    def _aliases(self, pod: str) -> tuple[str, ...]:
        specs = self._specs[pod]
        return tuple(dict.fromkeys((*aliases(specs), *self._names.of(specs[0].model, pod))))

    def models_named(self, alias: str) -> set[str]:
        """The models that pods serve by this other name too."""
        return {specs[0].model for pod, specs in self._specs.items() if alias in self._aliases(pod)}

    def models_with(self, adapter: str) -> set[str]:
        """The models for which an adapter of this name was announced."""
        return self._streams.models_with(adapter)

    def adapters(self, model: str) -> set[str]:
        """Names of the adapters that were announced for a model."""
        return self._streams.adapters(model)

    def api(self, pod: str, model: str) -> EngineApi:
        """Where a pod's own API is. Only what the operator named is not limited."""
        specs = self._specs.get(pod, ())
        return EngineApi(pod, http_base(specs) if specs else http_base_of(pod), pod not in self._named, role_of(specs))

    def apis(self, model: str) -> dict[str, EngineApi]:
        """The same of every pod of a model."""
        return {pod: self.api(pod, model) for pod, specs in self._specs.items() if specs[0].model == model}

    def readiness(self) -> Readiness:
        """Ready once every configured stream has connected and its first replay has ended or failed, or after a while; then for good."""
        if not self._ready:
            running = self._streams.running
            expected = [*self._configured, *(key for key in running if key.pod in self._followed_by_discovery and self._is_ready(key.pod))]
            settled = self._discovery.has_synced and all(running[key].stream.settled.is_set() for key in expected if key in running)
            self._ready = settled or time.monotonic() - self._streams.started_s >= self._settings.ready_after_s
        return readiness(is_ready=self._ready, reasons=[*self._discovery.failures(), *self._streams.failures()])

    # Dial-in pods: pods that dial us and that are not registered

    async def _add_dial_in_pods(self) -> None:
        while True:
            announced = await self._streams.announced.get()
            async with self._changing:
                await self._add_dial_in(announced)

    async def _add_dial_in(self, announced: Announced) -> None:
        key = StreamKey(announced.model, announced.pod, announced.rank)
        specs = self._specs.get(key.pod, ())
        if len(self._streams.running) >= self._settings.streams_max:
            await self._streams.block(announced, "too many streams")
            return
        if key in self._streams.running or (specs and specs[0].model != key.model):
            await self._streams.block(announced, "pod is known otherwise")
            return
        spec, source = self._streams.invite(announced)
        self._specs[key.pod] = (*specs, spec)
        self._attach(source, self._streams.make(source, announced.inbox))
        log.info("pod dialled us", extra={"pod": key.pod, "rank": key.rank, "model": key.model, "host": announced.host})

    def _stayed_away(self, stream: Stream) -> None:
        self._streams.tasks.create_task(self._let_go(stream), name=f"let go {stream.key.pod}")

    async def _let_go(self, stream: Stream) -> None:
        """A dial-in pod stayed away."""
        async with self._changing:
            key = stream.key
            running = self._streams.running.get(key)
            if running is None or running.stream is not stream:
                return
            if left := without_rank(self._specs[key.pod], key.rank):
                self._specs[key.pod] = left
            else:
                del self._specs[key.pod]
            await self._streams.dispose(self._detach(key))

    # Streams

    def _attach(self, source: Source, stream: Stream) -> None:
        self._store.open(source.key)
        if self._note_dropped is not None:
            self._note_dropped(source.key, source.dropped_blocks)
        if self._note_ready is not None:
            self._note_ready(source.key.model, source.key.pod, self._is_ready(source.key.pod))
        self._streams.attach(source, stream, self._stayed_away)

    def _detach(self, key: StreamKey) -> Running:
        running = self._streams.detach(key)
        self._store.close(key)
        return running

"""Finds engines by the sources that the operator names, and has their streams followed.

sources ─▶ engines by pod ─▶ each one's model: its own word, else its API's ─▶ `discover`; what is gone, or another pod now: `lose`
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Protocol, Self

from msgspec import Struct

from indexer.config.settings import Settings
from indexer.discovery.errors import TROUBLES, Trouble
from indexer.discovery.found_engine import FoundEngine
from indexer.discovery.kube_api import KubeApi
from indexer.discovery.kube_sources import PodsSource, PoolSource, ServiceSource, Source
from indexer.discovery.list_watch import WatchTimes
from indexer.discovery.model_names import ModelNames
from indexer.discovery.source_spec import DiscoverSpec
from indexer.engines.discovered import DiscoveredPod
from indexer.errors import SettingError
from indexer.extras import import_extra
from indexer.metrics import DiscoveryMetrics, DiscoveryState, IndexerMetrics

log = logging.getLogger(__name__)

# Changes come in bursts, as pods do: those of this time are taken together.
GATHER_S = 0.02
# An engine that is ready answers soon; one that does not is worth a word in /readyz.
NO_MODEL_S = 10.0
WATCH_TIMES = WatchTimes()


class Discoverable(Protocol):
    """What follows streams."""

    async def discover(self, pod: DiscoveredPod) -> None:
        """Follow this pod, or take up what changed of it. Raises SettingError where it cannot be followed."""

    async def lose(self, pod: str) -> None:
        """It is gone. Idempotent."""


class _Known(Struct, eq=False):
    """An engine that was found. `model`: None while it is not known. `told`: what was passed on last. `refusal`: why it cannot be followed."""

    engine: FoundEngine
    since_s: float
    model: str | None = None
    told: DiscoveredPod | None = None
    refusal: str | None = None


class Discovery:
    """`async with Discovery(settings, pods, metrics, headers):` looks until it ends. `headers`: of requests to the engines' own API."""

    def __init__(self, settings: Settings, pods: Discoverable, metrics: IndexerMetrics, headers: Callable[[], Mapping[str, str]]) -> None:
        """Raises SettingError for a file that cannot be used, and where a library for a source is missing."""
        self._pods = pods
        self._changed = asyncio.Event()
        self._expiry_s = settings.pod_expiry_s
        self._known: dict[str, _Known] = {}
        self._synced = asyncio.Event()
        specs = [DiscoverSpec.from_text(text) for text in settings.discover]
        self._api = KubeApi.of(settings) if any(spec.kind != "dns" for spec in specs) else None
        self._sources: list[Source] = []
        if specs:
            own_metrics = DiscoveryMetrics(metrics.registry)
            own_metrics.states.read = self._states
            self._sources = [self._source(spec, own_metrics) for spec in specs]
        self._names = ModelNames(settings.engine_networks, headers, self._note_model)

    def _source(self, spec: DiscoverSpec, metrics: DiscoveryMetrics) -> Source:
        counters: dict[Trouble, Callable[[], None]] = {reason: metrics.errors.labels(spec.text, reason).inc for reason in TROUBLES}

        def note_error(reason: Trouble) -> None:
            counters[reason]()

        source: Source
        if spec.kind == "dns":
            dns = import_extra("indexer.discovery.dns_source", "dnspython", "dns", "--discover", spec.text)
            source = dns.DnsSource(spec, self._changed.set, note_error, self._expiry_s)
        else:
            assert self._api is not None, "it was made for these"
            kinds = {"pods": PodsSource, "service": ServiceSource, "inferencepool": PoolSource}
            source = kinds[spec.kind](spec, self._api, self._changed.set, note_error, WATCH_TIMES)
        return source

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            if self._api is not None:
                await stack.enter_async_context(self._api)
            if self._sources:
                await stack.enter_async_context(self._names)
            self._tasks = [asyncio.create_task(source.run(), name=f"discovery {source.spec.text}") for source in self._sources]
            self._tasks.append(asyncio.create_task(self._follow(), name="discovery"))
            stack.push_async_callback(self._end)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # What is known

    @property
    def has_synced(self) -> bool:
        """Whether every source was read once, and all that were ready then are followed. True where there is none."""
        return not self._sources or self._synced.is_set()

    def failures(self) -> Iterator[str]:
        """What is not as it should be, in words."""
        for source in self._sources:
            for failure in source.failures():
                yield f"discovery {source.spec.text}: {failure}"
        now_s = time.monotonic()
        for pod, known in self._known.items():
            name = f"{pod} ({known.engine.name})" if known.engine.name else pod
            if known.refusal is not None:
                yield f"discovered pod {name} is not followed: {known.refusal}"
            elif known.model is None and known.engine.is_ready and now_s - known.since_s > NO_MODEL_S:
                yield f"discovered pod {name} is ready, but its model is not known: {self._names.failure(pod) or 'it was not asked yet'}"

    def _states(self) -> Sequence[DiscoveryState]:
        return [self._state(source) for source in self._sources]

    def _state(self, source: Source) -> DiscoveryState:
        pods = dict.fromkeys(DiscoveryState.STATES, 0)
        for known in self._known.values():
            if known.engine.source == source.spec.text:
                pods[_state_of(known)] += 1
        pods["unusable"] += source.unusable
        return DiscoveryState(source.spec.text, is_up=source.found is not None and next(source.failures(), None) is None, pods=pods)

    # Following it

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(GATHER_S)
            self._changed.clear()
            try:
                await self._take_up()
            except Exception:
                log.exception("discovery failed")

    async def _take_up(self) -> None:
        """Pass on what is different now."""
        found = [source.found for source in self._sources]
        # What a source does not know yet is no reason to lose what others found; where two find the same pod, the first one counts.
        engines: dict[str, FoundEngine] = {}
        for each in reversed(found):
            engines |= each or {}
        for pod in self._known.keys() - engines.keys():
            await self._lose(pod)
        for pod, engine in engines.items():
            await self._take_up_one(pod, engine)
        if None not in found and all(known.model is not None or not known.engine.is_ready for known in self._known.values()):
            self._synced.set()

    async def _take_up_one(self, pod: str, engine: FoundEngine) -> None:
        known = self._known.get(pod)
        if known is not None and known.engine.uid != engine.uid:
            log.info("discovered pod replaced", extra={"pod": pod, "called": engine.name, "source": engine.source})
            await self._lose(pod)
            known = None
        if known is None:
            known = self._known[pod] = _Known(engine, time.monotonic())
        if engine.is_ready and not known.engine.is_ready:
            known.since_s = time.monotonic()
        known.engine = engine
        if engine.options.model is not None:
            known.model = engine.options.model
        if known.model is None:
            self._names.ask(pod, is_ready=engine.is_ready)
        else:
            await self._tell(known, known.model)

    async def _tell(self, known: _Known, model: str) -> None:
        try:
            pod = known.engine.discovered(model)
            if pod == known.told:
                return
            if known.told is not None and known.told.model != pod.model:
                await self._pods.lose(pod.pod)
            await self._pods.discover(pod)
        except SettingError as error:
            if known.refusal != str(error):
                log.warning("discovered pod not followed", extra={"pod": known.engine.pod, "called": known.engine.name, "error": str(error)})
            known.refusal = str(error)
            return
        if known.told is None:
            log.info("pod discovered", extra={"pod": pod.pod, "called": pod.name, "source": pod.source, "is_ready": pod.is_ready})
        known.told, known.refusal = pod, None

    async def _lose(self, pod: str) -> None:
        known = self._known.pop(pod)
        self._names.forget(pod)
        if known.told is not None:
            log.info("discovered pod gone", extra={"pod": pod, "called": known.engine.name, "source": known.engine.source})
            await self._pods.lose(pod)

    def _note_model(self, pod: str, model: str) -> None:
        self._names.forget(pod)
        if (known := self._known.get(pod)) is not None:
            known.model = model
            self._changed.set()


def _state_of(known: _Known) -> str:
    if known.refusal is not None:
        return "refused"
    if known.model is None:
        return "no_model"
    return "ready" if known.engine.is_ready else "not_ready"

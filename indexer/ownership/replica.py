"""The ingest side where replicas share the streams: each follows those that it owns, writes them to Redis, and takes over what others leave.

pod_directory  which pods there are        known_streams  the streams that they have
rounds         renewing what is ours, and deciding by `assignment` what to do with each stream
moves          taking streams, handing them over, releasing them
dial_in_pods   pods that dial us and that are not registered
"""

import asyncio
import logging
import os
import platform
import secrets
import time
from collections.abc import Iterable, Iterator
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Self

from indexer.config.engine_key import EngineKey
from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.discovery.discovery import Discovery
from indexer.engines.api import EngineApi
from indexer.engines.discovered import DiscoveredPod, origin_of
from indexer.engines.load_scraper import LoadScraper
from indexer.engines.served_names import ServedNames
from indexer.engines.spec import EngineSpec, aliases, check_together, http_base, http_base_of, prefill_rate, role_of
from indexer.errors import NotFollowedError, SettingError, ShardsError, StoreError
from indexer.metrics import IndexerMetrics
from indexer.ownership.dead_registrations import DeadRegistrations
from indexer.ownership.dial_in_pods import DialInPods
from indexer.ownership.known_streams import KnownStreams, ReleaseReason
from indexer.ownership.moves import Moves
from indexer.ownership.pod_directory import PodDirectory
from indexer.ownership.reconfiguration import applies
from indexer.ownership.rounds import Rounds
from indexer.store.reader import Reader
from indexer.store.redis import RedisStore
from indexer.streams.pool import PodStatus, Streams, by_pod, sources_of
from indexer.streams.readiness import Readiness, readiness
from indexer.streams.status import is_published_connected

log = logging.getLogger(__name__)


class ReplicaService:
    """`async with ReplicaService(settings, metrics) as service:` follows its share of the settings' engines. Redis need not be up."""

    def __init__(self, settings: Settings, metrics: IndexerMetrics) -> None:
        self.member = f"{platform.node()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._settings = settings
        self._metrics = metrics
        self.store = RedisStore(settings, metrics, self.member)
        self._streams = Streams(settings, self.store, metrics, self.member)
        self._pods = PodDirectory(by_pod(settings.engines))
        self._streams.is_ready = self._pods.is_ready
        self._known = KnownStreams(settings, self._pods, self._streams)
        self._moves = Moves(settings, metrics, self.store, self._pods, self._known, self._streams)
        key = EngineKey.of(settings)
        headers = dict if key is None else key.header
        self._names = ServedNames(settings.engine_networks, self._measured, headers)
        self._discovery = Discovery(settings, self, metrics, headers)
        self._rounds = Rounds(settings, self.store, self._pods, self._known, self._streams, self._moves, self._aliases)
        self._dial_in_pods = DialInPods(self._pods, self._known, self._streams, self._moves)
        self._dead = DeadRegistrations(settings.registration_expiry_s)
        self._ready = False
        metrics.owned_streams.set_function(lambda: len(self._streams.running))

    async def __aenter__(self) -> Self:
        """Raises SettingError for an engine that cannot be followed, and where other indexers split models into another number of shards."""
        named = len(sources_of(self._settings.engines))
        self._streams.check_count(named, named)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self.store)
            await self._check_shards()
            await stack.enter_async_context(self._streams)
            self._moves.update_streams()
            if self._settings.load_interval_s:
                scraper = LoadScraper(
                    *(self._settings.load_interval_s, self._settings.engine_networks, self._measured, self._prefill_rate),
                    *(self.store.loads.note, self._metrics),
                )
                await stack.enter_async_context(scraper)
            await stack.enter_async_context(self._names)
            await stack.enter_async_context(self._discovery)
            works = [(self._rounds.run(), "share"), (self._rounds.release_lost(), "release lost"), (self._dial_in_pods.run(), "dial-in")]
            if self._dead.is_on:
                works.append((self._forget_dead(), "dead registrations"))
            self._loops = [self._streams.tasks.create_task(work, name=name) for work, name in works]
            stack.push_async_callback(self._leave)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    async def _check_shards(self) -> None:
        """Where Redis does not answer now, rounds find it out. Raises SettingError."""
        try:
            await self.store.check_shards()
        except ShardsError as error:
            raise SettingError("--shards", error.ours, error.allowed) from None
        except StoreError:
            pass  # logged where it was raised

    async def _leave(self) -> None:
        """Give everything back at once: the others need not wait for a lease to run out."""
        for task in self._loops:
            task.cancel()
        await self._moves.wait_for(self._loops)
        await self.store.leave()
        for known in list(self._known.by_key.values()):
            self._moves.remove(known, ReleaseReason.MOVED)
        await self._moves.wait_for(self._moves.releasing.values())

    # Pods

    async def register(self, specs: tuple[EngineSpec, ...]) -> bool:
        """Make one pod what these specs say, for all indexers and until it is forgotten. Returns whether it is a new pod.

        Raises SettingError, StoreError.
        """
        check_together(specs, "pod")
        for spec in specs:
            self._streams.check(spec, is_limited=True)
        pod, ranks = specs[0].pod, len(sources_of(specs))
        self._streams.check_count(sum(key.pod != pod for key in self._known.by_key) + ranks, ranks)
        async with self._rounds.changing:
            was_known = pod in self._pods.all()
            is_new = await self.store.registry.register(specs) and not was_known
            self._pods.register(specs)
            self._moves.update_streams()
        self._rounds.begin_soon()
        self._dead.note_alive(pod)
        log.info("pod registered", extra={"pod": pod, "model": specs[0].model, "is_new": is_new})
        return is_new

    async def forget(self, pod: str) -> bool:
        """Drop a pod and all its blocks, for all indexers. Returns whether there was one. Raises StoreError."""
        async with self._rounds.changing:
            if pod not in self._pods.all():
                await self._rounds.heartbeat()
            if pod not in self._pods.all():
                return False
            await self.store.registry.unregister(pod)
            keys = [key for key in self._known.by_key if key.pod == pod]
            self._pods.forget(pod)
            self._moves.update_streams()
            ours = [task for key, task in self._moves.releasing.items() if key.pod == pod]
        await self._moves.wait_for(ours)
        for key in keys:
            await self.store.registry.delete(key)  # another owner sees the deletion
        self._rounds.begin_soon()
        log.info("pod forgotten", extra={"pod": pod})
        return True

    # Discovered pods

    async def discover(self, pod: DiscoveredPod) -> None:
        """Follow a pod that discovery found, as if a flag named it; whoever shares the streams discovers it too. Raises SettingError."""
        before = self._pods.discovered(pod.pod)
        if before is None or before.specs != pod.specs:
            for spec in pod.specs:
                self._streams.check(spec, is_limited=True)
        ranks = len(sources_of(pod.specs))
        self._streams.check_count(sum(key.pod != pod.pod for key in self._known.by_key) + ranks, ranks)
        async with self._rounds.changing:
            self._pods.discover(pod)
            self._moves.update_streams()
        self._rounds.begin_soon()

    async def lose(self, pod: str) -> None:
        """Discovery shows this pod no longer. What a flag or a client named is followed on."""
        async with self._rounds.changing:
            self._pods.lose(pod)
            self._moves.update_streams()
            self._pods.forget_lost()

    # Registered pods that are gone

    async def _forget_dead(self) -> None:
        """Forget registered pods that have been away for too long. The owner of a pod's lowest rank does it; one that discovery shows is there."""
        while True:
            await asyncio.sleep(self._dead.look_s)
            ours = [pod for pod in self._pods.registered if self._pods.discovered(pod) is None and self._speaks_for(pod)]
            connected = {pod: any(running.stream.is_connected for running in self._streams.of_pod(pod).values()) for pod in ours}
            for pod in self._dead.dead(connected, time.monotonic()):
                try:
                    if await self._is_connected_elsewhere(pod):
                        self._dead.note_alive(pod)
                        continue
                    log.info("registered pod expired", extra={"pod": pod, "away_s": self._settings.registration_expiry_s})
                    await self.forget(pod)
                except StoreError:
                    break  # the store logs it, and the next look tries again

    def _speaks_for(self, pod: str) -> bool:
        """Whether we own the lowest of its ranks."""
        specs = self._pods.of(pod)
        return bool(specs) and StreamKey(specs[0].model, pod, min(spec.stream_ranks[0] for spec in specs)) in self._streams.running

    async def _is_connected_elsewhere(self, pod: str) -> bool:
        """Whether a stream of it that another indexer owns is connected. Raises StoreError."""
        others = [key for key in self._known.by_key if key.pod == pod and key not in self._streams.running]
        if not others:
            return False
        async with aclosing(Reader(self._settings)) as reader:
            surveys = await reader.survey(reader.keyspace.shard(others[0]), others)
        statuses = (state.status for survey in surveys for state in survey.states.values())
        return any(is_published_connected(status) for status in statuses)

    def forget_adapter(self, pod: str, name: str) -> bool:
        """Drop a pod's blocks of a LoRA adapter, whose weights are others now. Returns whether there is such a pod.

        Raises NotFollowedError if another indexer follows streams of it.
        """
        if pod not in self._pods.all():
            return False
        if any(key.pod == pod and key not in self._streams.running for key in self._known.by_key):
            raise NotFollowedError(pod)
        self._streams.forget_adapter(pod, name)
        return True

    async def reconfigure(self, before: Settings, after: Settings) -> Settings:
        """Follow the engines that the new settings name; pods that stay the same, or were registered, are not touched.

        Returns what is in force now: the old settings where an engine is wrong.
        """
        if not applies(self._streams, before, after):
            return before
        self._pods.configure(by_pod(after.engines))
        self._moves.update_streams()
        self._rounds.begin_soon()
        log.info("settings read again", extra={"engines": len(after.engines)})
        return after

    def pod_names(self) -> list[str]:
        """Every pod."""
        return list(self._pods.all())

    def specs(self, pod: str) -> tuple[EngineSpec, ...]:
        """What is known of where a pod's events come from; nothing for an unknown pod."""
        return self._pods.of(pod)

    def pods(self, names: Iterable[str] | None = None) -> Iterator[PodStatus]:
        """These pods, or all, with those of their streams that this indexer owns."""
        for pod in self.pod_names() if names is None else names:
            if specs := self._pods.of(pod):
                found = origin_of(self._pods.discovered(pod))
                yield PodStatus(pod, specs[0].model, self._streams.statuses(pod), http_base(specs), self._aliases(pod, specs), *found)

    def _aliases(self, pod: str, specs: tuple[EngineSpec, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*aliases(specs), *(self._names.of(specs[0].model, pod) if specs else ()))))

    def models_named(self, alias: str) -> set[str]:
        """The models that pods serve by this other name too."""
        return {specs[0].model for pod, specs in self._pods.all().items() if alias in self._aliases(pod, specs)}

    def models_with(self, adapter: str) -> set[str]:
        """The models for which an adapter of this name was announced."""
        return self._streams.models_with(adapter)

    def adapters(self, model: str) -> set[str]:
        """Names of the adapters that were announced for a model."""
        return self._streams.adapters(model)

    def api(self, pod: str, model: str) -> EngineApi:
        """Where a pod's own API is. Only what the operator named here is not limited."""
        specs = self._pods.of(pod)
        return EngineApi(pod, http_base(specs) if specs else http_base_of(pod), not self._pods.flagged(pod), role_of(specs))

    def apis(self, model: str) -> dict[str, EngineApi]:
        """The same of every pod of a model."""
        return {pod: self.api(pod, model) for pod, specs in self._pods.all().items() if specs[0].model == model}

    def _measured(self) -> Iterator[tuple[tuple[str, str], EngineApi]]:
        """The pods whose load and names are for us to ask for: those of whose ranks we own the lowest."""
        for pod, specs in self._pods.all().items():
            if self._speaks_for(pod):
                yield (specs[0].model, pod), self.api(pod, specs[0].model)

    def _prefill_rate(self, pod: str) -> float | None:
        """What a pod's spec says of it."""
        return prefill_rate(self._pods.of(pod))

    def readiness(self) -> Readiness:
        """Ready once each stream has an owner and each of our own is connected and its first replay has ended or failed, or after a while; then for
        good."""
        known, is_in_touch = self._known.by_key, self._rounds.heartbeat_s is not None
        orphaned = [key for key, each in known.items() if not each.dials_us and not self._rounds.has_owner(key)]
        reasons = [] if self.store.failure is None else [str(StoreError(self.store.failure))]
        if self._rounds.excluded is not None:
            reasons.append(self._rounds.excluded)
        if not is_in_touch and not reasons:
            reasons.append("Redis has not answered so far")
        if is_in_touch:
            reasons += [f"pod {key.pod} rank {key.rank} has no owner" for key in orphaned]
        reasons += self._discovery.failures()
        if not self._ready:
            expected = [each for key, each in self._streams.running.items() if not known[key].dials_us and self._pods.is_ready(key.pod)]
            is_settled = self._discovery.has_synced and all(running.stream.settled.is_set() for running in expected)
            has_settled = is_in_touch and not orphaned and is_settled
            self._ready = has_settled or time.monotonic() - self._streams.started_s >= self._settings.ready_after_s
        return readiness(is_ready=self._ready, reasons=[*reasons, *self._streams.failures()])

"""The pods that replicas share: registered at any of them for all, and what the owners of their streams publish."""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime

import msgspec

from indexer.config.settings import Settings
from indexer.core.names import StreamKey, Trust
from indexer.engines.api import EngineApi
from indexer.engines.discovered import Origin
from indexer.engines.endpoints import check_registration
from indexer.engines.spec import EngineSpec, Role, aliases, check_together, http_base_of, role_of
from indexer.errors import NotFollowedError, StoreError
from indexer.ownership.replica import ReplicaService
from indexer.store.health import UNREACHABLE
from indexer.streams.pool import PodStatus
from indexer.streams.readiness import Readiness, failure_of, readiness
from indexer.streams.status import PublishedStatus, StreamStatus
from indexer.workers.worker import Worker
from scorer_api.following.followed_stream import FollowedStream, published_status
from scorer_api.following.follower import Follower

log = logging.getLogger(__name__)

# A deletion waits so long until the deleted pod is gone from the answers, which takes milliseconds.
GONE_TIMEOUT_S = 2.0
GONE_POLL_S = 0.005
# What is loaded is confirmed by the next survey, which comes each second.
CONFIRMED_S = 2.0


class SharedPods:
    """Behind `/v1/pods` and `/readyz`. What is registered here is known to all replicas. `service`: the indexer in this process, if there is one.
    `worker`: this one, where processes share the port.
    """

    def __init__(self, settings: Settings, follower: Follower, service: ReplicaService | None = None, worker: Worker | None = None) -> None:
        self._worker = worker
        self._service = service
        self._settings = settings
        self._follower = follower
        self._registry = follower.registry
        self._started_s = time.monotonic()
        self._ready = False
        self._loaded_s: float | None = None

    # Pods

    def pod_names(self) -> list[str]:
        """Every pod, the registered ones first."""
        return list(dict.fromkeys((*self._follower.pods, *(stream.key.pod for stream in self._follower.streams()))))

    def specs(self, pod: str) -> tuple[EngineSpec, ...]:
        """What is registered of where a pod's events come from, or what the indexer of this process knows of it."""
        return self._follower.pods.get(pod, ()) or (() if self._service is None else self._service.specs(pod))

    def pods(self, names: Iterable[str] | None = None) -> Iterator[PodStatus]:
        """These pods, or all, with their streams, once for each model that a pod serves."""
        wanted = self.pod_names() if names is None else list(names)
        streams: dict[str, dict[str, list[FollowedStream]]] = {pod: {} for pod in wanted}
        for pod in wanted:
            for spec in self._follower.pods.get(pod, ())[:1]:
                streams[pod][spec.model] = []
        for stream in self._follower.streams():
            if (of_pod := streams.get(stream.key.pod)) is not None:
                of_pod.setdefault(stream.key.model, []).append(stream)
        for pod in wanted:
            for model, of_model in streams[pod].items():
                yield self._pod_status(pod, model, of_model)

    def _pod_status(self, pod: str, model: str, streams: Iterable[FollowedStream]) -> PodStatus:
        specs, found = self._specs(pod, model), Origin()
        named = aliases(specs)
        statuses, published_bases = [], []
        for stream in streams:
            published = published_status(stream)
            statuses.append(self._status(stream, published))
            if published is not None:
                published_bases.append(published.http)
                named = (*named, *published.aliases)
                if published.discovered_by:
                    found = Origin(published.ready and found.ready, published.name, published.discovered_by)
        statuses.sort(key=lambda status: status.rank)
        return PodStatus(pod, model, statuses, _base(pod, specs, published_bases), tuple(dict.fromkeys(named)), *found)

    def _specs(self, pod: str, model: str) -> tuple[EngineSpec, ...]:
        """What is registered of a pod, if it serves this model."""
        specs = self._follower.pods.get(pod, ())
        return specs if specs and specs[0].model == model else ()

    def _status(self, stream: FollowedStream, published: PublishedStatus | None) -> StreamStatus:
        trust = self._follower.view.trust(stream.key)
        if published is None:
            return StreamStatus(stream.key.rank, None, trust, False, None, {}, 0, 0, 0, 0, None, None)
        status = StreamStatus(*(getattr(published, name) for name in StreamStatus.__struct_fields__))
        age_s = status.last_batch_age_s
        if age_s is not None:
            age_s = round(age_s + time.monotonic() - stream.status_at_s, 3)
        owner = status.owner if stream.trusted_until_s > time.monotonic() else None
        return msgspec.structs.replace(status, trust=trust, last_batch_age_s=age_s, owner=owner)

    def models_with(self, adapter: str) -> set[str]:
        """The models for which an adapter of this name was announced, as the owners of streams say."""
        published = ((stream.key.model, published_status(stream)) for stream in self._follower.streams())
        return {model for model, each in published if each is not None and adapter in each.adapters}

    def adapters(self, model: str) -> set[str]:
        """Names of the adapters that were announced for a model."""
        published = (published_status(stream) for stream in self._follower.streams() if stream.key.model == model)
        return {name for each in published if each is not None for name in each.adapters}

    def models_named(self, alias: str) -> set[str]:
        """The models that pods serve by this other name too, as registrations and the owners of streams say."""
        registered = {specs[0].model for specs in self._follower.pods.values() if alias in aliases(specs)}
        published = ((stream.key.model, published_status(stream)) for stream in self._follower.streams())
        return registered | {model for model, each in published if each is not None and alias in each.aliases}

    def api(self, pod: str, model: str) -> EngineApi:
        """Where a pod's own API is. What came from Redis is limited, as that which the owner of a stream says is."""
        if self._service is not None and not (own := self._service.api(pod, model)).is_limited:
            return own
        published = (published_status(stream) for stream in self._follower.streams_of(model) if stream.key.pod == pod)
        return self._api(pod, model, [each for each in published if each is not None])

    def apis(self, model: str) -> dict[str, EngineApi]:
        """The same of every pod of a model."""
        published: dict[str, list[PublishedStatus]] = {pod: [] for pod, specs in self._follower.pods.items() if specs[0].model == model}
        for stream in self._follower.streams_of(model):
            of_pod, status = published.setdefault(stream.key.pod, []), published_status(stream)
            if status is not None:
                of_pod.append(status)
        found = {pod: self._api(pod, model, of_pod) for pod, of_pod in published.items()}
        own = {} if self._service is None else self._service.apis(model)
        return found | {pod: api for pod, api in own.items() if not api.is_limited}

    def _api(self, pod: str, model: str, published: Sequence[PublishedStatus]) -> EngineApi:
        """`published`: what the owners of its streams say."""
        specs = self._specs(pod, model)
        role: Role = role_of(specs) if specs else next((each.role for each in published), "both")
        return EngineApi(pod, _base(pod, specs, (each.http for each in published)), True, role)

    async def register(self, specs: tuple[EngineSpec, ...]) -> bool:
        """Make one pod what these specs say, for all replicas. Returns whether it is a new pod. Raises SettingError, StoreError."""
        check_together(specs, "pod")
        for spec in specs:
            check_registration(spec, self._settings.engine_networks)
        self._check_redis()
        pod = specs[0].pod
        was_known = pod in self._known()
        is_new = await self._registry.register(specs) and not was_known
        await self._follower.look()
        log.info("pod registered", extra={"pod": pod, "model": specs[0].model, "is_new": is_new})
        return is_new

    async def forget(self, pod: str) -> bool:
        """Make all replicas drop a pod and all its blocks. Returns whether there was one. Raises StoreError."""
        self._check_redis()
        await self._follower.look()
        if pod not in self._known():
            return False
        streams = {stream.key for stream in self._follower.streams() if stream.key.pod == pod}
        streams.update(_streams_of(self._follower.pods.get(pod, ())))
        await self._registry.unregister(pod)
        await self._follower.look()
        for stream in streams:
            await self._registry.delete(stream)
        await self._wait_until_gone(pod)
        log.info("pod forgotten", extra={"pod": pod})
        return True

    def forget_adapter(self, pod: str, name: str) -> bool:
        """Drop a pod's blocks of a LoRA adapter, whose weights are others now. Returns whether there is such a pod.

        Raises NotFollowedError if the indexer of this process, should there be one, does not follow all of its streams.
        """
        if self._service is not None:
            return self._service.forget_adapter(pod, name)
        if pod not in self._known():
            return False
        raise NotFollowedError(pod)

    def _check_redis(self) -> None:
        """A request does not wait for a Redis that is known to be away. Raises StoreError."""
        failure = self._follower.reader.directory_failure
        if failure is not None and failure[0] == UNREACHABLE:
            raise StoreError(UNREACHABLE)

    def _known(self) -> set[str]:
        return self._follower.pods.keys() | {stream.key.pod for stream in self._follower.streams()}

    async def _wait_until_gone(self, pod: str) -> None:
        """Wait until the log has brought the deletion."""
        until_s = time.monotonic() + GONE_TIMEOUT_S
        while pod in self._known() and time.monotonic() < until_s:  # noqa: ASYNC110 - the log is polled anyway
            await asyncio.sleep(GONE_POLL_S)

    # Readiness

    def is_loaded(self) -> bool:
        """Whether all that there was at first is loaded, however long that takes; where there is nothing, after a while. Then for good."""
        if not self._ready:
            has_waited = time.monotonic() - self._started_s >= self._settings.ready_after_s
            self._ready = self._follower.is_settled or (self._follower.is_empty and has_waited)
        return self._ready

    def is_caught_up(self) -> bool:
        """Whether the owners of all streams have confirmed what is loaded, too; where one does not, after a while."""
        if not self.is_loaded():
            return False
        now_s = time.monotonic()
        self._loaded_s = self._loaded_s or now_s
        return now_s - self._loaded_s >= CONFIRMED_S or not any(self._doubt(stream) for stream in self._follower.streams())

    def readiness(self) -> Readiness:
        """Ready once all is loaded, here and in the other workers that accept requests."""
        is_ready = self.is_loaded()
        reasons = [*self._failures(), *(reason for stream in self._follower.streams() if (reason := self._doubt(stream)))]
        if self._service is not None:
            own = self._service.readiness()
            is_ready = self._ready = is_ready and own.is_ready
            reasons += own.reasons
        if self._worker is not None:
            others_are_ready, of_others = self._worker.readiness()
            is_ready = is_ready and others_are_ready
            reasons += of_others
        return readiness(is_ready=is_ready, reasons=reasons)

    def _failures(self) -> list[str]:
        failure = self._follower.reader.failure
        if failure is None:
            return []
        since = datetime.fromtimestamp(failure[1], UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        return [f"{StoreError(failure[0])} since {since}"]

    def _doubt(self, stream: FollowedStream) -> str | None:
        trust = self._follower.view.trust(stream.key)
        published = published_status(stream)
        if trust is Trust.LIVE or (published is not None and not published.ready):
            return None
        return failure_of(stream.key, trust, None if published is None else published.last_error)


def _base(pod: str, specs: Iterable[EngineSpec], published: Iterable[str | None]) -> str:
    """The base URL of a pod's own API: what its registration says, or else the owners of its streams, or else its name."""
    return next((base for base in (*(spec.http for spec in specs), *published) if base is not None), None) or http_base_of(pod)


def _streams_of(specs: Iterable[EngineSpec]) -> set[StreamKey]:
    return {StreamKey(spec.model, spec.pod, rank) for spec in specs for rank in spec.stream_ranks}

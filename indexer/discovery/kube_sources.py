"""Sources in Kubernetes: the pods of a selector, those of an InferencePool, and the endpoints of a service."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeAlias

from indexer.discovery.errors import Trouble
from indexer.discovery.found_engine import FoundEngine, by_pod
from indexer.discovery.kube_api import KubeApi, Resource, T
from indexer.discovery.kube_objects import EndpointSlice, InferencePool, Pod, engines_of_pod, engines_of_slice
from indexer.discovery.list_watch import Health, ListWatch, WatchTimes
from indexer.discovery.source_spec import DiscoverSpec

log = logging.getLogger(__name__)

NoteError: TypeAlias = Callable[[Trouble], None]


class Source(Protocol):
    """A source of engines. `found`: by pod, None until it was read for the first time. `run` keeps it and calls `changed`."""

    @property
    def spec(self) -> DiscoverSpec: ...

    @property
    def found(self) -> dict[str, FoundEngine] | None: ...

    @property
    def unusable(self) -> int:
        """Objects that say something wrong of their engines, so that these are not known."""

    def failures(self) -> Iterator[str]:
        """Why it cannot be read now, in words."""

    async def run(self) -> None: ...


class _Read(Generic[T]):
    """The engines of each object, read again only when it has changed. What is wrong with one is logged once."""

    def __init__(self, spec: DiscoverSpec, read: Callable[[T], list[FoundEngine]]) -> None:
        self._spec = spec
        self._read: Callable[[T], list[FoundEngine]] = read
        self._known: dict[str, tuple[T, list[FoundEngine] | str]] = {}

    def of(self, objects: dict[str, T]) -> dict[str, FoundEngine]:
        """By pod."""
        self._known = {name: self._of_one(name, each) for name, each in objects.items()}
        return by_pod(engine for _, engines in self._known.values() if not isinstance(engines, str) for engine in engines)

    def _of_one(self, name: str, each: T) -> tuple[T, list[FoundEngine] | str]:
        known = self._known.get(name)
        if known is not None and known[0] is each:
            return known
        try:
            return each, self._read(each)
        except ValueError as error:
            if known is None or known[1] != str(error):
                log.warning("discovered pod not usable", extra={"source": self._spec.text, "pod": name, "error": str(error)})
            return each, str(error)

    @property
    def unusable(self) -> int:
        return sum(isinstance(engines, str) for _, engines in self._known.values())


class _ListedSource:
    """The engines of the objects of one list. Who derives from it sets these three."""

    _health: Health
    _watch: ListWatch[Any]
    _read: _Read[Any]

    @property
    def found(self) -> dict[str, FoundEngine] | None:
        return None if self._watch.objects is None else self._read.of(self._watch.objects)

    @property
    def unusable(self) -> int:
        return self._read.unusable

    def failures(self) -> Iterator[str]:
        return self._health.failures()

    async def run(self) -> None:
        await self._watch.run()


class PodsSource(_ListedSource):
    """`pods:NAMESPACE?selector=…`, and what `inferencepool:` makes of a pool: `target_ports` are the pool's."""

    def __init__(
        self,
        spec: DiscoverSpec,
        api: KubeApi,
        changed: Callable[[], None],
        note_error: NoteError,
        times: WatchTimes,
        *,
        selector: str | None = None,
        target_ports: tuple[int, ...] = (),
    ) -> None:
        self.spec = spec
        self._health = Health(spec.text, note_error)
        query = {"labelSelector": spec.selector if selector is None else selector}
        resource = Resource(Pod, f"/api/v1/namespaces/{spec.namespace}/pods", query, "pods", spec.namespace)
        self._watch = ListWatch(api, resource, self._health, changed, times)
        self._read = _Read[Pod](spec, lambda pod: engines_of_pod(pod, spec.text, spec.options, target_ports))


class ServiceSource(_ListedSource):
    """`service:NAMESPACE/NAME`: the endpoints of all its EndpointSlices. For those who may not read pods: it knows no annotations."""

    def __init__(self, spec: DiscoverSpec, api: KubeApi, changed: Callable[[], None], note_error: NoteError, times: WatchTimes) -> None:
        self.spec = spec
        self._health = Health(spec.text, note_error)
        path = f"/apis/discovery.k8s.io/v1/namespaces/{spec.namespace}/endpointslices"
        query = {"labelSelector": f"kubernetes.io/service-name={spec.name}"}
        resource = Resource(EndpointSlice, path, query, "endpointslices.discovery.k8s.io", spec.namespace)
        self._watch = ListWatch(api, resource, self._health, changed, times)
        self._read = _Read[EndpointSlice](spec, lambda each: engines_of_slice(each, spec.text, spec.options))


class PoolSource:
    """`inferencepool:NAMESPACE/NAME`: the pods that the pool selects, at the pool's ports. A pool that is gone, or not there yet, has none."""

    def __init__(self, spec: DiscoverSpec, api: KubeApi, changed: Callable[[], None], note_error: NoteError, times: WatchTimes) -> None:
        self.spec = spec
        self._health = Health(spec.text, note_error)
        self._note_error = note_error
        self._api = api
        self._changed = changed
        self._times = times
        path = f"/apis/inference.networking.k8s.io/v1/namespaces/{spec.namespace}/inferencepools"
        query = {"fieldSelector": f"metadata.name={spec.name}"}
        resource = Resource(InferencePool, path, query, "inferencepools.inference.networking.k8s.io", spec.namespace)
        self._pool_changed = asyncio.Event()
        self._pool = ListWatch(api, resource, self._health, self._pool_changed.set, times)
        self._pods: PodsSource | None = None
        self._has_none = False

    @property
    def found(self) -> dict[str, FoundEngine] | None:
        if self._has_none:
            return {}
        return None if self._pods is None else self._pods.found

    @property
    def unusable(self) -> int:
        return 0 if self._pods is None else self._pods.unusable

    def failures(self) -> Iterator[str]:
        yield from self._health.failures()
        if self._pods is not None:
            yield from self._pods.failures()
        if self._has_none:
            yield "there is no such InferencePool, or it selects no pods"

    async def run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._pool.run(), name=f"discovery {self.spec.text} pool")
            await self._follow(tasks)

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        """Look for the pool's pods; for others where its selector or its ports change."""
        seen: tuple[str, tuple[int, ...]] | None = None
        looking: asyncio.Task[None] | None = None
        while True:
            await self._pool_changed.wait()
            self._pool_changed.clear()
            wanted = next(self._wanted(), None)
            if wanted == seen and wanted is not None:
                continue
            seen = wanted
            if looking is not None:
                looking.cancel()
                looking = None
            if wanted is None:
                self._pods, self._has_none = None, True
                self._changed()
                continue
            selector, ports = wanted
            pods = PodsSource(self.spec, self._api, self._take_over, self._note_error, self._times, selector=selector, target_ports=ports)
            self._next = pods
            looking = tasks.create_task(pods.run(), name=f"discovery {self.spec.text} pods")

    def _take_over(self) -> None:
        """The pods of a changed pool count from their first list on: until then it is those of before that are known."""
        self._pods, self._has_none = self._next, False
        self._changed()

    def _wanted(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        for pool in (self._pool.objects or {}).values():
            if pool.selector:
                yield pool.selector, pool.target_ports

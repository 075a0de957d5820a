"""Which pods there are, as one of the indexers that share them knows it."""

from collections.abc import Collection, Mapping

from indexer.core.names import StreamKey
from indexer.engines.discovered import DiscoveredPod
from indexer.engines.spec import EngineSpec


class PodDirectory:
    """Which pods there are, by discovery, by flags, by registration, and by having dialled us.

    A registration replaces what a flag says of the same pod, and that what discovery says.
    """

    def __init__(self, flags: Mapping[str, tuple[EngineSpec, ...]]) -> None:
        self._flags = dict(flags)
        self.registered: dict[str, tuple[EngineSpec, ...]] = {}
        self._dial_in_pods: dict[str, tuple[EngineSpec, ...]] = {}
        self._discovered: dict[str, DiscoveredPod] = {}
        self._lost: set[str] = set()
        self._dropped: set[str] = set()
        self._forgotten: frozenset[str] = frozenset()

    def all(self) -> dict[str, tuple[EngineSpec, ...]]:
        """Every pod with its specs."""
        found = {pod: each.specs for pod, each in self._discovered.items()}
        named = {pod: specs for pod, specs in (found | self._flags).items() if pod not in self._dropped} | self.registered
        for pod, dial_in in self._dial_in_pods.items():
            named[pod] = (*named.get(pod, ()), *dial_in)
        return named

    def of(self, pod: str) -> tuple[EngineSpec, ...]:
        """One pod's specs, none where there is no such pod."""
        named = self.registered.get(pod) or self.flagged(pod)
        if not named and pod in self._discovered and pod not in self._dropped:
            named = self._discovered[pod].specs
        return (*named, *self._dial_in_pods.get(pod, ()))

    def flagged(self, pod: str) -> tuple[EngineSpec, ...]:
        """What flags say of a pod, unless it was forgotten or registered since."""
        return () if pod in self._dropped or pod in self.registered else self._flags.get(pod, ())

    def missing(self, registered: Collection[str], forgotten: Collection[str]) -> dict[str, tuple[EngineSpec, ...]]:
        """Those that were registered and that Redis does not know any more, not even as forgotten."""
        return {pod: specs for pod, specs in self.registered.items() if pod not in registered and pod not in forgotten}

    def learn(self, registered: Mapping[str, tuple[EngineSpec, ...]], forgotten: frozenset[str]) -> None:
        """What Redis answers."""
        for pod in forgotten - self._forgotten:
            self.forget(pod)
        self._forgotten = forgotten
        for specs in registered.values():
            if self.registered.get(specs[0].pod) != specs:
                self.register(specs)
        self.registered = dict(registered)

    def register(self, specs: tuple[EngineSpec, ...]) -> None:
        """These specs replace a pod, also one that dialled in."""
        pod = specs[0].pod
        self.registered[pod] = specs
        self._dropped.discard(pod)
        self._dial_in_pods.pop(pod, None)

    def forget(self, pod: str) -> None:
        """Follow it no longer, also where a flag names it."""
        self._dropped.add(pod)
        self.registered.pop(pod, None)
        self._dial_in_pods.pop(pod, None)

    def configure(self, flags: Mapping[str, tuple[EngineSpec, ...]]) -> None:
        """The flags were read again; what is new there counts also where the pod was forgotten."""
        self._dropped -= {pod for pod, specs in flags.items() if self._flags.get(pod) != specs}
        self._flags = dict(flags)

    def is_limited(self, pod: str, spec: EngineSpec) -> bool:
        """Whether this spec of a pod is not the operator's own, so that its networks are checked."""
        return spec in self.registered.get(pod, ()) or (pod not in self.registered and not self.flagged(pod) and self.discovered(pod) is not None)

    def is_deleted(self, pod: str) -> bool:
        """Whether streams of the pod that are not named any more are deleted in Redis too: not where only a flag of ours is gone."""
        return pod in self._dropped or pod in self.registered or pod in self._lost

    # Discovery

    def discover(self, pod: DiscoveredPod) -> None:
        """Discovery shows this pod, or something else of it than before."""
        self._discovered[pod.pod] = pod

    def lose(self, pod: str) -> None:
        """Discovery shows this pod no longer. Where nothing else names it, it counts as deleted until `forget_lost`: it may come back as another."""
        if self._discovered.pop(pod, None) is not None and not self.flagged(pod) and pod not in self.registered:
            self._lost.add(pod)
            self._dropped.discard(pod)

    def forget_lost(self) -> None:
        """The streams of those that were lost were released."""
        self._lost.clear()

    def discovered(self, pod: str) -> DiscoveredPod | None:
        """What discovery says of a pod, if it shows it."""
        return self._discovered.get(pod)

    def is_ready(self, pod: str) -> bool:
        """Whether requests may go to a pod. One that discovery does not know is taken to be ready."""
        discovered = self._discovered.get(pod)
        return discovered is None or discovered.is_ready

    def has_dial_in(self, stream: StreamKey) -> bool:
        """Whether this stream is known because it dialled us."""
        return any(spec.model == stream.model and stream.rank in spec.stream_ranks for spec in self._dial_in_pods.get(stream.pod, ()))

    def add_dial_in(self, spec: EngineSpec) -> None:
        """A pod dialled us."""
        self._dial_in_pods[spec.pod] = (*self._dial_in_pods.get(spec.pod, ()), spec)

    def remove_dial_in(self, stream: StreamKey) -> None:
        """One that dialled us stayed away, or dialled another indexer."""
        left = tuple(spec for spec in self._dial_in_pods.pop(stream.pod, ()) if stream.rank not in spec.stream_ranks)
        if left:
            self._dial_in_pods[stream.pod] = left

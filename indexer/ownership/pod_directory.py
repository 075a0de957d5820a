"""Which pods there are, as one of the indexers that share them knows it."""

from collections.abc import Collection, Mapping

from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec


class PodDirectory:
    """Which pods there are, by flags, by registration, and by having dialled us. A registration replaces what a flag says of the same pod."""

    def __init__(self, flags: Mapping[str, tuple[EngineSpec, ...]]) -> None:
        self._flags = dict(flags)
        self.registered: dict[str, tuple[EngineSpec, ...]] = {}
        self._dial_in_pods: dict[str, tuple[EngineSpec, ...]] = {}
        self._dropped: set[str] = set()
        self._forgotten: frozenset[str] = frozenset()

    def all(self) -> dict[str, tuple[EngineSpec, ...]]:
        """Every pod with its specs."""
        named = {pod: specs for pod, specs in self._flags.items() if pod not in self._dropped} | self.registered
        for pod, dial_in in self._dial_in_pods.items():
            named[pod] = (*named.get(pod, ()), *dial_in)
        return named

    def of(self, pod: str) -> tuple[EngineSpec, ...]:
        """One pod's specs, none where there is no such pod."""
        return (*(self.registered.get(pod) or self.flagged(pod)), *self._dial_in_pods.get(pod, ()))

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

    def is_deleted(self, pod: str) -> bool:
        """Whether streams of the pod that are not named any more are deleted in Redis too: not where only a flag of ours is gone."""
        return pod in self._dropped or pod in self.registered

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

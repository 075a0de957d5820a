"""A pod that discovery found, as those that follow its streams take it."""

from typing import NamedTuple

from msgspec import Struct

from indexer.engines.spec import EngineSpec


class DiscoveredPod(Struct, frozen=True):
    """`specs`: of this pod and no other. `uid`: another one means another pod at the same address; empty where the source tells none.

    `name`: what people call it. `source`: what found it, as the user wrote it. `is_ready`: whether requests may go there; its streams are followed
    either way.
    """

    specs: tuple[EngineSpec, ...]
    uid: str = ""
    name: str = ""
    source: str = ""
    is_ready: bool = True

    @property
    def pod(self) -> str:
        return self.specs[0].pod

    @property
    def model(self) -> str:
        return self.specs[0].model


class Origin(NamedTuple):
    """What is shown of a discovered pod beside its specs."""

    ready: bool = True
    name: str = ""
    discovered_by: str = ""


def origin_of(pod: DiscoveredPod | None) -> Origin:
    """That of a pod that discovery does not know is empty, and it is taken to be ready."""
    return Origin() if pod is None else Origin(pod.is_ready, pod.name, pod.source)

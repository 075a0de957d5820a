"""What was done to pods here and was acknowledged, for as long as it may have to be done again: a failover can lose it."""

import time
from collections.abc import Callable, Mapping

from msgspec import Struct

from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec

# Of as many pods, the last ones: beyond that a failover may lose what was done to the others.
REMEMBERED_MAX = 10_000


class Deed(Struct):
    """A pod was registered as these specs say, or forgotten where they are None. `mark`: which registration was made, or ended; `node`: the server
    that was told; `streams`: those that were deleted with it."""

    specs: tuple[EngineSpec, ...] | None
    mark: str
    node: str
    at_s: float
    streams: list[StreamKey]


class Remembered:
    """The last deed for each pod, for `keep_s` seconds."""

    def __init__(self, keep_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._now_s = now_s
        self._deeds: dict[str, Deed] = {}

    def note(self, pod: str, specs: tuple[EngineSpec, ...] | None, mark: str, node: str) -> None:
        """It was acknowledged just now."""
        self._deeds.pop(pod, None)
        self._deeds[pod] = Deed(specs, mark, node, self._now_s(), [])
        if len(self._deeds) > REMEMBERED_MAX:
            del self._deeds[next(iter(self._deeds))]

    def note_deleted(self, stream: StreamKey) -> None:
        """A stream was deleted, of a pod that was forgotten here or elsewhere."""
        deed = self._deeds.get(stream.pod)
        if deed is not None and deed.specs is None:
            deed.streams.append(stream)

    def hear(self, pods: Mapping[str, tuple[EngineSpec, ...]], node: str, asked_s: float) -> None:
        """These pods are registered, said this server to who asked at this time. What somebody else has done since counts."""
        for pod, deed in list(self._deeds.items()):
            if deed.node == node and deed.at_s < asked_s and pod in pods and pods[pod] != deed.specs:
                del self._deeds[pod]

    def told_another(self, node: str) -> list[tuple[str, Deed]]:
        """What was told to another server than this one."""
        oldest_s = self._now_s() - self._keep_s
        self._deeds = {pod: deed for pod, deed in self._deeds.items() if deed.at_s >= oldest_s}
        return [(pod, deed) for pod, deed in self._deeds.items() if deed.node != node]

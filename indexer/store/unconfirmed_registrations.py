"""Registrations and deletions of pods that this process acknowledged and that a failover may undo: they are kept to be repeated."""

import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from msgspec import Struct

from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec

# The last ones are kept, of this number of pods.
PODS_MAX = 10_000


class RegistrationRecord(Struct):
    """A pod was registered with these specs, or deleted where they are None. `mark`: which registration was made, or ended; `node`: the server that
    confirmed it; `streams`: those that were deleted with the pod."""

    specs: tuple[EngineSpec, ...] | None
    mark: str
    node: str
    at_s: float
    streams: list[StreamKey]


class UnconfirmedRegistrations:
    """The last record of each pod, for `keep_s` seconds."""

    def __init__(self, keep_s: float, now_s: Callable[[], float] = time.monotonic) -> None:
        self._keep_s = keep_s
        self._now_s = now_s
        self._records: OrderedDict[str, RegistrationRecord] = OrderedDict()

    def note(self, pod: str, specs: tuple[EngineSpec, ...] | None, mark: str, node: str) -> None:
        """This was acknowledged just now."""
        self._records.pop(pod, None)
        self._records[pod] = RegistrationRecord(specs, mark, node, self._now_s(), [])
        if len(self._records) > PODS_MAX:
            self._records.popitem(last=False)

    def note_deleted(self, stream: StreamKey) -> None:
        """A stream was deleted, of a pod that was deleted here or elsewhere."""
        record = self._records.get(stream.pod)
        if record is not None and record.specs is None:
            record.streams.append(stream)

    def note_registered(self, pods: Mapping[str, tuple[EngineSpec, ...]], node: str, asked_s: float) -> None:
        """This server answered a request of this time: these pods are registered. What another indexer has changed since counts."""
        for pod, record in list(self._records.items()):
            if record.node == node and record.at_s < asked_s and pod in pods and pods[pod] != record.specs:
                del self._records[pod]

    def confirmed_by_others(self, node: str) -> list[tuple[str, RegistrationRecord]]:
        """What other servers than this one confirmed."""
        oldest_s = self._now_s() - self._keep_s
        self._records = OrderedDict((pod, record) for pod, record in self._records.items() if record.at_s >= oldest_s)
        return [(pod, record) for pod, record in self._records.items() if record.node != node]

"""The streams that an indexer knows: those of all pods, owned or not."""

import asyncio
import logging
from enum import Enum, auto

from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec
from indexer.errors import SettingError
from indexer.ownership.assignment import Duty
from indexer.ownership.pod_directory import PodDirectory
from indexer.streams.pool import Source, Streams, sources_of
from indexer.streams.stream import Stream

log = logging.getLogger(__name__)


class ReleaseReason(Enum):
    """Why an indexer gives up a stream."""

    MOVED = auto()
    """Another indexer may take it."""
    DELETED = auto()
    """Its pod is deleted."""
    LOST = auto()
    """Another indexer has it already."""


class KnownStream(Struct, eq=False):
    """A stream that this indexer knows. `stream`: the subscribed one, run or not. `move`: the task that takes it or hands it over, if there is one.
    `wanted_by`: another indexer that asks for it, where it runs here. `not_before_s`: it is not claimed before, by time.monotonic()."""

    source: Source
    is_dial_in: bool = False
    stream: Stream | None = None
    duty: Duty = Duty.NOTHING
    move: asyncio.Task[None] | None = None
    wanted_by: str | None = None
    not_before_s: float = 0.0

    @property
    def key(self) -> StreamKey:
        return self.source.key

    @property
    def dials_us(self) -> bool:
        return self.source.events is None

    @property
    def is_moving(self) -> bool:
        return self.move is not None and not self.move.done()


class KnownStreams:
    """`by_key` follows the pods with each `update`."""

    def __init__(self, settings: Settings, pods: PodDirectory, streams: Streams) -> None:
        self.by_key: dict[StreamKey, KnownStream] = {}
        self._settings = settings
        self._pods = pods
        self._streams = streams
        self._usable: dict[tuple[EngineSpec, bool], bool] = {}
        self._excess = 0

    def update(self) -> list[tuple[KnownStream, ReleaseReason]]:
        """Know the streams that the pods have now, and no others. Returns those that were taken off, to be released."""
        sources = self._sources()
        removed = []
        for key, known in list(self.by_key.items()):
            reason = self._reason_to_remove(known, sources)
            if reason is not None:
                removed.append((self.by_key.pop(key), reason))
        for key, source in sources.items():
            if key not in self.by_key and not self.is_full:
                self.by_key[key] = KnownStream(source)
        self._note_excess(len(sources))
        return removed

    def _sources(self) -> dict[StreamKey, Source]:
        sources: dict[StreamKey, Source] = {}
        for pod, specs in self._pods.all().items():
            # Any replica may have registered it, and each has its own allowed networks.
            for spec in specs:
                is_limited = self._pods.is_limited(pod, spec)
                if self._can_use(spec, is_limited=is_limited):
                    sources |= sources_of([spec], is_limited=is_limited)
        return sources

    def _reason_to_remove(self, known: KnownStream, sources: dict[StreamKey, Source]) -> ReleaseReason | None:
        is_named = known.key in sources
        if known.is_dial_in:
            if self._pods.has_dial_in(known.key):
                return None
            return ReleaseReason.MOVED if is_named else ReleaseReason.DELETED
        if sources.get(known.key) == known.source:
            return None
        return ReleaseReason.DELETED if not is_named and self._pods.is_deleted(known.key.pod) else ReleaseReason.MOVED

    def add_dial_in(self, source: Source, stream: Stream) -> KnownStream:
        """A pod dialled us that is not registered."""
        known = self.by_key[source.key] = KnownStream(source, is_dial_in=True, stream=stream)
        return known

    @property
    def is_full(self) -> bool:
        return len(self.by_key) >= self._settings.streams_max

    def _note_excess(self, count: int) -> None:
        """One line in the log for each change of how many streams there are beyond those that may be followed."""
        excess = max(0, count - self._settings.streams_max)
        if excess > self._excess:
            log.error("too many streams", extra={"streams": count, "streams_max": self._settings.streams_max})
        self._excess = excess

    def _can_use(self, spec: EngineSpec, *, is_limited: bool) -> bool:
        """What another replica registered need not be of use to us: it may dial those that listen, or be where ours may not."""
        checked = spec, is_limited
        if checked not in self._usable:
            try:
                self._streams.check(spec, is_limited=is_limited)
            except SettingError as error:
                log.warning("pod cannot be followed from here", extra={"pod": spec.pod, "error": str(error)})
                self._usable[checked] = False
            else:
                self._usable[checked] = True
        return self._usable[checked]

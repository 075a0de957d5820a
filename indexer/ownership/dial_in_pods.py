"""Dial-in pods: pods that dial us and that are not registered."""

import logging

from indexer.core.names import StreamKey
from indexer.ownership.known_streams import KnownStreams
from indexer.ownership.moves import Moves
from indexer.ownership.pod_directory import PodDirectory
from indexer.receiving.listening import Announced
from indexer.streams.pool import Streams

log = logging.getLogger(__name__)


class DialInPods:
    """`run` takes them in as they come."""

    def __init__(self, pods: PodDirectory, known: KnownStreams, streams: Streams, moves: Moves) -> None:
        self._pods = pods
        self._known = known
        self._streams = streams
        self._moves = moves

    async def run(self) -> None:
        """Cancel it."""
        while True:
            announced = await self._streams.announced.get()
            key = StreamKey(announced.model, announced.pod, announced.rank)
            specs = self._pods.all().get(key.pod, ())
            if self._known.is_full:
                await self._streams.block(announced, "too many streams")
            elif key in self._known.by_key or (specs and specs[0].model != key.model):
                await self._streams.block(announced, "pod is known otherwise")
            else:
                self._add(key, announced)

    def _add(self, key: StreamKey, announced: Announced) -> None:
        spec, source = self._streams.invite(announced)
        self._pods.add_dial_in(spec)
        known = self._known.add_dial_in(source, self._streams.make(source, announced.inbox))
        log.info("pod dialled us", extra={"pod": key.pod, "rank": key.rank, "model": key.model, "host": announced.host})
        self._moves.begin_for_dialling(known)

"""What is known of one shard of a model that is followed: its streams, and the log offset that was reached.

The log reader, the surveyor and the reloader work on it; it changes the view with them.
"""

import asyncio
import time
from collections.abc import Iterable
from typing import Protocol

from indexer.config.settings import Settings
from indexer.core.names import StreamKey, Trust
from indexer.store.keyspace import Shard, stream_id
from indexer.store.reader import LOG_START, LogOffset, Reader, StateVersion
from scorer_api.following.followed_stream import FollowedStream
from scorer_api.index.holding import Holding
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics


class FollowerContext(Protocol):
    """What all models' followers have in common."""

    reader: Reader
    view: View
    settings: Settings
    metrics: FollowerMetrics

    def loads_of(self, shard: Shard) -> asyncio.Semaphore:
        """How many streams may be loaded at a time."""

    def give_back(self, holding: Holding | None) -> None:
        """What a stream held is not needed any more."""


class FollowedModel:
    """`streams`: by their names in Redis. `loads`: the running load of each that is being loaded.

    `offset`: entries of the log up to there were read. It belongs to one log and one server: `log_epoch` counts how often the log turned out to be
    another one, `server_epoch` is the reader's of that moment. `clock_s`: what to add to a time of Redis to have one of the monotonic clock.
    """

    def __init__(self, shard: Shard, context: FollowerContext) -> None:
        self.shard = shard
        self.name = shard.model
        self.streams: dict[str, FollowedStream] = {}
        self.loads: dict[str, asyncio.Task[None]] = {}
        self.offset: LogOffset = LOG_START
        self.log_epoch = 0
        self.server_epoch = 0
        self.clock_s: float | None = None
        self._context = context
        self._view = context.view
        self._registered: frozenset[str] = frozenset()

    def expect(self, registered: Iterable[StreamKey]) -> None:
        """These streams are registered: they are shown even while nothing is known of them."""
        keys = {stream_id(key): key for key in registered}
        self._registered = frozenset(keys)
        for name, key in keys.items():
            if name not in self.streams:
                self.open(name, key)
        for name, stream in list(self.streams.items()):
            if name not in keys and stream.version is None and name not in self.loads:
                self.close(stream)

    def is_registered(self, stream: FollowedStream) -> bool:
        """Whether its pod is."""
        return stream_id(stream.key) in self._registered

    def open(self, name: str, key: StreamKey) -> FollowedStream:
        """Follow a stream, of which nothing is held yet."""
        stream = self.streams[name] = FollowedStream(key)
        self._view.open(key)
        self.set_trust(stream)
        return stream

    def settle(self, stream: FollowedStream, holding: Holding | None, version: StateVersion | None, offset: LogOffset, trust: Trust) -> None:
        """From now on this is what the stream holds."""
        self.stop_loading(stream)
        self._context.give_back(self._view.exchange(stream.key, holding))
        stream.version, stream.offset, stream.trust = version, max(offset, stream.offset), trust
        stream.is_lost = stream.may_be_newer = stream.is_of_former_server = False
        self.set_trust(stream)

    def remove(self, stream: FollowedStream, offset: LogOffset) -> None:
        """It was deleted. While it is registered it is shown all the same, holding nothing."""
        if self.is_registered(stream):
            self.settle(stream, None, None, offset, Trust.STALE)
            stream.note_status(None, time.monotonic())
        else:
            self.close(stream)

    def close(self, stream: FollowedStream) -> None:
        """Follow it no longer."""
        self.stop_loading(stream)
        self._context.give_back(self._view.exchange(stream.key, None))
        self._view.close(stream.key)
        del self.streams[stream_id(stream.key)]

    def stop_loading(self, stream: FollowedStream) -> None:
        """End its load, if one runs."""
        task = self.loads.pop(stream_id(stream.key), None)
        stream.stop_buffering()
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def set_trust(self, stream: FollowedStream) -> None:
        """Show in the view how far the stream can be relied on, and until when."""
        self._view.set_trust(stream.key, Trust.STALE if stream.is_lost else stream.trust, until_s=stream.trusted_until_s)

    def go_to(self, offset: LogOffset) -> None:
        """Read on from this offset of what is another log: what is held may differ from what led there."""
        self.offset = offset
        self.log_epoch += 1
        for stream in self.streams.values():
            stream.offset = min(stream.offset, offset)
            stream.incarnation = b""
            stream.must_load_again = stream.buffered is not None

    def note_heartbeat(self, at_ms: int) -> None:
        """An owner sent a heartbeat at this time of Redis."""
        if self.clock_s is not None:
            self._view.note_heartbeat(min(time.monotonic(), self.clock_s + at_ms / 1000))

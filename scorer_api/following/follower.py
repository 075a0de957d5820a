"""Following all that indexers write to Redis: a task per shard of each model, and one that frees in pieces what streams no longer hold."""

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Self

from msgspec import Struct
from prometheus_client import Gauge

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec
from indexer.errors import StoreError
from indexer.store.keyspace import Shard
from indexer.store.reader import Directory, Reader
from indexer.store.registry import Registry
from scorer_api.following.followed_stream import FollowedStream
from scorer_api.following.model_follower import ModelFollower
from scorer_api.index.holding import Holding
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics

log = logging.getLogger(__name__)

LOOK_S = 1.0
# Pause while Redis does not answer.
RETRY_S = 0.1
# Pause before a model's follower that failed by an error of ours is started again.
AFTER_FAILURE_S = 1.0
LOADS_MAX = 2
# Blocks freed at a stretch, well below a millisecond of the event loop, and the pause until the next.
PIECE_BLOCKS = 1_000
PIECE_PAUSE_S = 0.001


class _Running(Struct):
    follower: ModelFollower
    task: asyncio.Task[None]


class Follower:
    """`async with Follower(settings, view, metrics) as follower:` it starts whether Redis is up or not."""

    def __init__(self, settings: Settings, view: View, metrics: FollowerMetrics, up: Gauge | None = None) -> None:
        """`up`: the gauge that says whether Redis answers, None where another part sets it."""
        self.settings = settings
        self.view = view
        self.metrics = metrics
        self.reader = Reader(settings, up)
        self.registry = Registry(self.reader.client, self.reader.keyspace, settings)
        self._loads: dict[int, asyncio.Semaphore] = {}
        self.pods: dict[str, tuple[EngineSpec, ...]] = {}
        """The registered ones."""
        self._looking = asyncio.Lock()
        self._to_give_back: asyncio.Queue[Holding] = asyncio.Queue()
        self._running: dict[Shard, _Running] = {}
        self._first: list[ModelFollower] = []
        self._has_looked = False
        self._is_settled = False

    async def __aenter__(self) -> Self:
        self.view.note_heartbeat(time.monotonic())
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self.reader.aclose)
            self._tasks = await stack.enter_async_context(asyncio.TaskGroup())
            stack.callback(self._cancel_all)
            self._own = [
                self._tasks.create_task(self._watch_directory(), name="directory"),
                self._tasks.create_task(self._give_back(), name="give back"),
            ]
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    def _cancel_all(self) -> None:
        for task in (*self._own, *(running.task for running in self._running.values())):
            task.cancel()

    def loads_of(self, shard: Shard) -> asyncio.Semaphore:
        """How many streams may be loaded at a time from what holds this shard: loads wait for no others than those."""
        return self._loads.setdefault(self.reader.slot_of(shard), asyncio.Semaphore(LOADS_MAX))

    # What is known

    @property
    def is_settled(self) -> bool:
        """Whether everything that there was at first is loaded, and there was something."""
        self._note_settled()
        return self._is_settled

    def _note_settled(self) -> None:
        """Once true it stays true."""
        if not self._is_settled and self._first:
            with_streams = {follower.shard.model for follower in self._first if follower.streams}
            self._is_settled = all(follower.is_settled and follower.shard.model in with_streams for follower in self._first)

    @property
    def is_empty(self) -> bool:
        """Whether Redis answers that it holds nothing: no indexer has written yet, or Redis has just lost everything."""
        return self._has_looked and self.reader.failure is None and not any(self.streams())

    def streams(self) -> Iterator[FollowedStream]:
        """Every stream that is followed."""
        for running in self._running.values():
            yield from running.follower.streams.values()

    def streams_of(self, model: str) -> Iterator[FollowedStream]:
        """Every stream of one model that is followed."""
        for number in range(self.reader.keyspace.shards):
            if (running := self._running.get(Shard(model, number))) is not None:
                yield from running.follower.streams.values()

    # The directory

    async def _watch_directory(self) -> None:
        while True:
            try:
                await self.look()
            except StoreError:
                await asyncio.sleep(RETRY_S)
            else:
                await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Read the directory, and follow what it names. Raises StoreError."""
        async with self._looking:
            self._note_settled()
            await self.registry.repeat_unconfirmed()
            asked_s, node = time.monotonic(), self.registry.node
            directory = await self.reader.directory()
            self.registry.note_registered(directory.pods, node, asked_s)
            await self._follow(directory)

    async def _follow(self, directory: Directory) -> None:
        self.pods = directory.pods
        if directory.shards not in (None, self.reader.keyspace.shards):
            await self._split(directory.shards)
        expected: dict[Shard, list[StreamKey]] = {shard: [] for model in directory.models for shard in self.reader.keyspace.shards_of(model)}
        for pod, specs in directory.pods.items():
            for spec in specs:
                for shard in self.reader.keyspace.shards_of(spec.model):
                    expected.setdefault(shard, [])
                streams = [StreamKey(spec.model, pod, rank) for rank in spec.stream_ranks]
                expected[self.reader.keyspace.shard(streams[0])] += streams
        now_s = time.monotonic()
        for shard in self._running.keys() - expected.keys():
            await self._note_missing(shard, now_s)
        for shard, streams in expected.items():
            if shard not in self._running:
                self._start(shard)
            follower = self._running[shard].follower
            follower.missing_since_s = None
            follower.expect(streams)
        if not self._first:
            self._first = [running.follower for running in self._running.values()]
        self._has_looked = True

    async def _split(self, shards: int) -> None:
        """Indexers split models into this number of shards: what was followed is there no more, or never was."""
        log.info("models in redis split into another number of shards", extra={"shards": shards})
        for shard in list(self._running):
            await self._stop(shard)
        self.reader.keyspace.shards = shards
        self._first = []

    async def _note_missing(self, shard: Shard, now_s: float) -> None:
        """No indexer has the model any more; or Redis lost it, and its indexers will write it again."""
        follower = self._running[shard].follower
        follower.expect(())
        if follower.missing_since_s is None:
            follower.missing_since_s = now_s
        if now_s - follower.missing_since_s > self.settings.pod_expiry_s:
            await self._stop(shard)

    def _start(self, shard: Shard) -> None:
        follower = ModelFollower(shard, self)
        self._running[shard] = _Running(follower, self._tasks.create_task(self._run(follower), name=f"follow {shard.model} {shard.number}"))

    async def _stop(self, shard: Shard) -> None:
        running = self._running[shard]
        running.task.cancel()
        await asyncio.wait([running.task])
        del self._running[shard]
        running.follower.close()
        self.reader.forget(shard, self._running)

    async def _run(self, follower: ModelFollower) -> None:
        try:
            await follower.run()
        except Exception:
            log.exception("following failed", extra={"model": follower.shard.model, "shard": follower.shard.number})
            await asyncio.sleep(AFTER_FAILURE_S)
            follower.close()
            del self._running[follower.shard]  # the next round starts it again

    # Giving back

    def give_back(self, holding: Holding | None) -> None:
        """What a stream held is not needed any more."""
        if holding is not None:
            self._to_give_back.put_nowait(holding)

    async def _give_back(self) -> None:
        while True:
            holding = await self._to_give_back.get()
            while True:
                if not holding.give_back(PIECE_BLOCKS):
                    break
                await asyncio.sleep(PIECE_PAUSE_S)

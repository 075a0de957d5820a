"""Processes of the product in the simulated surroundings: indexers and scorers that start, stop, die and freeze."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from random import Random
from typing import Any

from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec
from indexer.limits import Limits
from indexer.metrics import IndexerMetrics
from indexer.ownership.replica import ReplicaService
from indexer.store.keyspace import Keyspace
from scorer_api.following.follower import Follower
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics
from tests.simulation.engine import SimulatedEngine
from tests.simulation.engine_network import EngineNetwork
from tests.simulation.redis_client import RedisLink, SimulatedClient
from tests.simulation.redis_server import RedisServer
from tests.simulation.schedule import BLOCK_SIZE, EngineKind, Schedule
from tests.simulation.surroundings import UNIX_TIME_S
from tests.simulation.virtual_loop import PROCESS, Process, VirtualLoop
from tests.simulation.watched_view import WatchedView
from tests.workload import Publisher

MODEL = "m"
# Copies that an engine's gpu holds.
CAPACITY = 16
LEASE_S = 0.6
TIMEOUT_S = 0.15
LIMITS = Limits.of(
    silence_s=0.15, silence_max_s=0.2, replay_idle_s=0.1, replay_retry_s=0.05, replay_retry_max_s=0.1, replay_give_up_s=2.0, replay_total_s=5.0
)


@cache
def indexer_metrics() -> IndexerMetrics:
    """Nobody reads them, and making them takes as long as a schedule."""
    return IndexerMetrics(CollectorRegistry())


@cache
def follower_metrics() -> FollowerMetrics:
    return FollowerMetrics(CollectorRegistry(), View(Settings()))


class Member:
    """A process of the product. `run` is called with it, and ends once `stopping` is set."""

    def __init__(self, world: "World", name: str, run: Callable[["Member"], Any]) -> None:
        self.process = Process(name)
        self.stopping = asyncio.Event()
        self.links: list[RedisLink] = []
        self.view: WatchedView | None = None
        self.service: ReplicaService | None = None
        self._world = world
        world.member_of[self.process] = self
        self.task = world.loop.start(self.process, run(self))

    @property
    def answers(self) -> bool:
        """Whether it answers requests now."""
        return not self.process.is_dead and self.process.held is None and not self.stopping.is_set()

    def cut_redis(self, *, is_cut: bool) -> None:
        for link in self.links:
            link.is_cut = is_cut

    def lose_answers(self, *, is_lossy: bool) -> None:
        for link in self.links:
            link.loses_answers = is_lossy

    def kill(self) -> None:
        """It does nothing any more; what it sent is on its way."""
        self.process.is_dead = True
        self._world.network.forget(self.process)
        for link in self.links:
            link.is_closed = True
        if self.process.held is None:
            self._world.loop.freeze(self.process)

    async def end(self) -> None:
        """Nothing of it is left afterwards."""
        for link in self.links:
            link.is_closed = True
        if self.process.held is not None:
            self._world.loop.thaw(self.process)
        self.task.cancel()
        with suppress(asyncio.CancelledError):
            await self.task


class World:
    """`publishers`: the engines, with the reference of each. `indexers`, `scorers`: the processes that run, or are frozen."""

    def __init__(self, loop: VirtualLoop, random: Random, network: EngineNetwork, schedule: Schedule) -> None:
        self.loop = loop
        self.random = random
        self.redis = RedisServer(loop, int(UNIX_TIME_S * 1000))
        self.network = network
        self._slowness = schedule.slowness
        self.publishers = [self._publisher(number, kind, schedule) for number, kind in enumerate(schedule.engines)]
        dialling = [engine for engine in map(self.engine_of, self.publishers) if engine.dials]
        self.settings = Settings(
            engines=tuple(self._spec(publisher) for publisher in self.publishers if not self.engine_of(publisher).dials),
            listen="tcp://*:5557" if dialling else None,
            listen_replay="tcp://{host}:5558" if any(engine.replay for engine in dialling) else None,
            redis="redis://redis",
            lease_s=LEASE_S,
            redis_timeout_s=TIMEOUT_S,
            pod_expiry_s=30.0,
            load_interval_s=0.0,
            shards=schedule.shards,
            limits=LIMITS,
        )
        keyspace = Keyspace(self.settings.namespace, schedule.shards)
        self.log_keys = [keyspace.model(MODEL, shard).log for shard in range(schedule.shards)]
        self.member_of: dict[Process, Member] = {}
        self.indexers: list[Member] = []
        self.scorers: list[Member] = []
        self._ended: list[Member] = []

    def _publisher(self, number: int, kind: EngineKind, schedule: Schedule) -> Publisher:
        host, dialect = f"tcp://10.0.0.{number + 1}", kind.dialect
        topic = f"kv@pod{number}@{MODEL}".encode()
        replay = f"{host}:5558" if kind.has_replay else None
        engine = SimulatedEngine(dialect, f"{host}:5557", replay, kind.history_max, topic, dials=kind.dials)
        self.network.add(engine)
        is_plain = dialect.is_plain or any(layer.size != BLOCK_SIZE for layer in kind.layers)  # what images a larger block has is not told
        plain = [text for text in schedule.texts if not (text.lora or text.salt or text.images)]
        publisher = Publisher(
            f"pod{number}",
            0,
            engine,  # type: ignore[arg-type]
            plain if is_plain else schedule.texts,
            seed=schedule.seed,
            block_size=BLOCK_SIZE,
            counts_copies=dialect.counts_copies,
            capacity=CAPACITY * max(1, len(kind.layers)),
            late_offloads=False,  # the next owner of a stream does not know blocks that went before the first one was offloaded
            without=dialect.without,
            layers=kind.layers,
        )
        publisher.start()
        return publisher

    @staticmethod
    def engine_of(publisher: Publisher) -> SimulatedEngine:
        engine = publisher.engine
        assert isinstance(engine, SimulatedEngine), "no other engine is driven here"
        return engine

    @classmethod
    def _spec(cls, publisher: Publisher) -> EngineSpec:
        engine = cls.engine_of(publisher)
        return EngineSpec(publisher.pod, MODEL, engine.events, replay=engine.replay, counting="copies" if publisher.counts_copies else "set")

    def key_of(self, publisher: Publisher) -> StreamKey:
        return StreamKey(MODEL, publisher.pod, publisher.number)

    def connect(self, url: str, timeout_s: float) -> SimulatedClient:
        """A client of Redis for the process that runs."""
        link = RedisLink(self.loop, self.redis, self.random, timeout_s, self._slowness)
        process = PROCESS.get()
        assert process is not None, "only processes of the product connect"
        self.member_of[process].links.append(link)
        return SimulatedClient(link)

    def owners(self, publisher: Publisher) -> list[str]:
        """The indexers that follow an engine and write what it says."""
        key = self.key_of(publisher)
        return [member.process.name for member in self.indexers if member.service is not None and key in member.service._streams.running]

    # Processes

    def start_indexer(self) -> Member:
        async def run(member: Member) -> None:
            async with ReplicaService(self.settings, indexer_metrics()) as member.service:
                await member.stopping.wait()

        member = Member(self, f"indexer {len(self.member_of)}", run)
        self.indexers.append(member)
        return member

    def start_scorer(self) -> Member:
        async def run(member: Member) -> None:
            member.view = WatchedView(self.settings, "redis")
            async with Follower(self.settings, member.view, follower_metrics()):
                await member.stopping.wait()

        member = Member(self, f"scorer {len(self.member_of)}", run)
        self.scorers.append(member)
        return member

    def stop(self, member: Member, *, is_killed: bool) -> None:
        """It ends, by itself or not."""
        for members in (self.indexers, self.scorers):
            if member in members:
                members.remove(member)
        self._ended.append(member)
        if is_killed:
            member.kill()
        else:
            member.stopping.set()

    async def end(self) -> None:
        """End all processes."""
        for member in (*self._ended, *self.indexers, *self.scorers):
            await member.end()

"""The indexer's way into Redis and the scorer's out of it, in this process and without sockets to engines: decoder, stream state, store, follower
and view are the product's own.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry

from bench.workload import MODEL
from indexer.config.settings import Settings
from indexer.core.events import Tier
from indexer.core.names import StreamKey, Trust
from indexer.core.sequence import Sequence
from indexer.core.snapshot import Snapshot
from indexer.core.store import StreamPosition
from indexer.core.stream_state import StreamState
from indexer.metrics import IndexerMetrics
from indexer.store.keyspace import Keyspace
from indexer.store.leases import Claim
from indexer.store.redis import RedisStore
from indexer.streams.applier import Applier
from indexer.streams.progress import TURN_S
from scorer_api.following.follower import Follower
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics
from tests.redis_server import RedisServer

POLL_S = 0.002
TIMEOUT_S = 30.0


class OwnedStream:
    """A stream whose engine is whoever calls `apply`."""

    def __init__(self, key: StreamKey, settings: Settings, store: RedisStore, metrics: IndexerMetrics) -> None:
        self.key = key
        self._store = store
        self._applier = Applier(key, "copies", None, settings, metrics, with_records=store.needs_records)
        self._sequence = Sequence()

    @property
    def state(self) -> StreamState:
        return self._applier.state

    @property
    def position(self) -> StreamPosition:
        """Where the stream stands."""
        return StreamPosition(self._sequence.last, self._sequence.fingerprint, True, Trust.LIVE, False)

    async def apply(self, payloads: Iterable[bytes]) -> int | None:
        """Apply these batches at the pace of the store, in turns as a connected stream does. Returns the last one's number."""
        until_s = 0.0
        for payload in payloads:
            if time.monotonic() >= until_s:
                self._applier.count_applied()
                await asyncio.sleep(0)
                await self._store.room(self.key)
                until_s = time.monotonic() + TURN_S
            number = self._sequence.expected
            applied = self._applier.apply(payload, number, is_live=True)
            self._sequence.applied(number, payload)
            self._store.append(self.key, self.state.shape, applied.change, self.position)
        return self._sequence.last


class Indexer:
    """Owns a stream for each pod. What is applied counts once Redis has it."""

    def __init__(self, settings: Settings, store: RedisStore, metrics: IndexerMetrics, server: RedisServer) -> None:
        self._settings = settings
        self._store = store
        self._metrics = metrics
        self._client: Any = server.client()
        self._names = Keyspace(settings.namespace).model(MODEL)
        self._streams: dict[str, OwnedStream] = {}

    async def own(self, pod: str) -> None:
        """Become the owner of a pod's stream, empty at first."""
        key = StreamKey(MODEL, pod, 0)
        stream = self._streams[pod] = OwnedStream(key, self._settings, self._store, self._metrics)
        claim = await self._store.claim(key, "free")
        if not isinstance(claim, Claim):
            raise RuntimeError(f"{claim} owns the stream")
        self._store.own(key, claim, Snapshot(stream.state), stream.position, is_loaded=False)
        await self._store.heartbeat([MODEL])
        await self._written(key, None)

    async def apply(self, pod: str, payloads: Iterable[bytes]) -> None:
        """Apply these batches, and wait until Redis has them."""
        stream = self._streams[pod]
        await self._written(stream.key, await stream.apply(payloads))

    def blocks(self, pod: str) -> int:
        """How many blocks Redis has of a pod on the gpu."""
        key = self._streams[pod].key
        generation = int(self._client.hget(self._names.state(key), "gen"))
        return int(self._client.hlen(self._names.parts(key, generation)[Tier.GPU]))

    async def _written(self, key: StreamKey, sequence: int | None) -> None:
        """Raises TimeoutError."""
        name = self._names.state(key)
        await until(lambda: (head := self._client.hget(name, "head")) is not None and msgspec.msgpack.decode(head)[0] == sequence)


@asynccontextmanager
async def indexer_of(server: RedisServer) -> AsyncIterator[Indexer]:
    """An indexer that writes to this Redis."""
    settings, metrics = _settings(server), IndexerMetrics(CollectorRegistry())
    async with RedisStore(settings, metrics, "bench") as store:
        yield Indexer(settings, store, metrics, server)


class Scorer:
    """What a follower has brought into the scorer's memory."""

    def __init__(self, view: View) -> None:
        self._view = view

    def look_up(self, tokens: bytes) -> dict[str, int]:
        """Each pod's matched blocks; see `View.score`."""
        return {pod.pod: pod.ranks[0].match.matched_blocks for pod in self._view.score(Prompt(MODEL, tokens))}


@asynccontextmanager
async def scorer_of(server: RedisServer) -> AsyncIterator[Scorer]:
    """A scorer that follows this Redis and has loaded what was there. What it holds at the end it goes on holding."""
    settings = _settings(server)
    view = View(settings, "redis")
    async with Follower(settings, view, FollowerMetrics(CollectorRegistry(), view)) as follower:
        await until(lambda: follower.is_settled)
        yield Scorer(view)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for it. Raises TimeoutError."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline_s:
            raise TimeoutError("what was published did not arrive")
        await asyncio.sleep(POLL_S)


def _settings(server: RedisServer) -> Settings:
    # This process does other things too: for as long as the other way keeps it, nothing here answers.
    return Settings(redis=server.url, redis_timeout_s=TIMEOUT_S, lease_s=TIMEOUT_S)

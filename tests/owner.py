"""An indexer without engines: a test says what its streams' engines would, and it writes that to a real Redis as indexers do."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from xxhash import xxh3_64_intdigest

from indexer.config.settings import Settings
from indexer.core.events import Event, Tier
from indexer.core.names import StreamKey, Trust
from indexer.core.snapshot import Snapshot
from indexer.core.store import StreamPosition
from indexer.core.stream_state import StreamState
from indexer.metrics import IndexerMetrics
from indexer.store.leases import Claim
from indexer.store.redis import RedisStore
from indexer.store.renewal import OwnedStatus
from indexer.streams.status import StreamStatus
from tests.events import BLOCK_SIZE, tokens_of
from tests.redis_server import RedisServer
from tests.waiting import wait_until_async

KEEP_S = 0.2


class OwnedStream:
    """One stream. Its engine's hashes are numbers, the content of a block is a number too."""

    def __init__(self, owner: "Owner", key: StreamKey) -> None:
        self.key = key
        settings = owner.settings
        self.state = StreamState(key.model, "", with_records=True, with_hash_mapping=settings.engine_hashes)
        self.is_connected = True
        self.trust = Trust.LIVE
        self._owner = owner
        self._sequence: int | None = None

    @property
    def position(self) -> StreamPosition:
        return StreamPosition(self._sequence, b"fingerprint", True, self.trust, False)

    def resume(self, head: Any) -> None:
        self._sequence = head.sequence

    def apply(self, *events: Event) -> None:
        """One batch."""
        change = self.state.apply(events, time.monotonic())
        self._sequence = 0 if self._sequence is None else self._sequence + 1
        self._owner.store.append(self.key, self.state.shape, change, self.position)

    def set_trust(self, trust: Trust) -> None:
        self.trust = trust
        self._owner.store.set_trust(self.key, trust, self.position)

    def forget(self) -> None:
        """The engine was restarted."""
        self.state.forget()
        self._owner.store.drop(self.key, self.position)

    async def flushed(self) -> None:
        """Wait until Redis has everything."""
        await wait_until_async(lambda: self._owner.store._flusher.streams[self.key].is_settled)  # nobody else has to know

    def status(self) -> bytes:
        blocks = {tier.word: self.state.count(tier) for tier in Tier if self.state.count(tier)}
        status = StreamStatus(self.key.rank, self._sequence, self.trust, True, BLOCK_SIZE, blocks, 1, 2, 3, 4, 0.5, None, self._owner.store.member)
        return msgspec.json.encode(status)


class Owner:
    """Owns streams, keeps them alive, and says which models there are. `is_keeping`: switch off to have it look dead."""

    def __init__(self, store: RedisStore, settings: Settings) -> None:
        self.store = store
        self.settings = settings
        self.streams: dict[StreamKey, OwnedStream] = {}
        self.is_keeping = True

    async def own(self, key: StreamKey, how: Any = "free") -> OwnedStream:
        """A stream, with what Redis has of it."""
        claim = await self.store.claim(key, how)
        assert isinstance(claim, Claim), claim
        stream = self.streams[key] = OwnedStream(self, key)
        head = await self.store.load(claim, key, stream.state)
        if head is not None:
            stream.resume(head)
        self.store.own(key, claim, Snapshot(stream.state), stream.position, is_loaded=head is not None)
        await stream.flushed()
        await self.keep()
        return stream

    async def keep(self) -> None:
        await self.store.renew({key: OwnedStatus(stream.status(), stream.is_connected) for key, stream in self.streams.items()})
        await self.store.heartbeat({key.model for key in self.streams})

    async def _keep_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(KEEP_S)
            if self.is_keeping:
                try:
                    await self.keep()
                except Exception:  # noqa: BLE001, S112 - Redis is away, as the test wants it
                    continue


@asynccontextmanager
async def owner_of(settings: Settings, member: str = "owner") -> AsyncIterator[Owner]:
    async with RedisStore(settings, IndexerMetrics(CollectorRegistry()), member) as store:
        owner = Owner(store, settings)
        keeping = asyncio.create_task(owner._keep_again_and_again(), name="keep")
        try:
            yield owner
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)


def settings_of(server: RedisServer, **more: Any) -> Settings:
    return Settings(redis=server.url, **{"redis_timeout_s": 0.5, "pod_expiry_s": 60.0, "lease_s": 1.0, **more})


def keys_of(model: str, contents: Iterable[int]) -> list[int]:
    """The block keys of a prompt of these blocks, by xxhash and msgpack alone."""
    key = xxh3_64_intdigest(msgspec.msgpack.encode([1, "", model, None]))
    found = []
    for content in contents:
        key = xxh3_64_intdigest(tokens_of([content]), key)
        found.append(key)
    return found

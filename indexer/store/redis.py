"""The store that replicas share: what indexers own lies in Redis, and every change of it in a log.

    health, session   how Redis is, and what all parts share
    leases, renewal   becoming the owner of a stream, and staying it
    members           which indexers there are
    registry          which pods there are
    pending, flusher  what is not written yet, and the task that writes it
    takeover          reading what a former owner wrote

Nothing that streams call waits for Redis. While it is away they go on in memory and changes gather, bounded by what the streams hold. Each shard of a
model lies in one slot of a Cluster; a Redis that is no Cluster is one slot. The health of Redis is known per slot.
"""

import asyncio
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self

from indexer.config.settings import Settings
from indexer.core.change import Change
from indexer.core.groups import CacheShape
from indexer.core.names import StreamKey, Trust
from indexer.core.snapshot import Snapshot
from indexer.core.store import StreamPosition
from indexer.core.stream_state import StreamState
from indexer.metrics import IndexerMetrics
from indexer.store import takeover
from indexer.store.flusher import Flusher, Loss
from indexer.store.leases import Claim, ClaimMode, Leases
from indexer.store.members import Heartbeat, Members
from indexer.store.pending import PendingWrites
from indexer.store.published_loads import LoadWriter
from indexer.store.records import Head
from indexer.store.registry import Registry
from indexer.store.renewal import OwnedStatus, Renewal, Renewed
from indexer.store.session import StoreSession

log = logging.getLogger(__name__)


class RedisStore:
    """`async with RedisStore(settings, metrics, member) as store:` it does not matter whether Redis is up."""

    has_limits = True
    needs_records = True

    def __init__(self, settings: Settings, metrics: IndexerMetrics, member: str) -> None:
        self.member = member
        self._session = session = StoreSession(settings, metrics, member)
        self.loads = LoadWriter(session.client, session.keyspace)
        self.registry = Registry(session.client, session.keyspace, settings, session.note_error)
        self._leases = Leases(session)
        self._members = Members(session)
        self._flusher = Flusher(session, self._leases, self._start)
        self._renewal = Renewal(session, self._flusher)
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._start(self.loads.run(), "loads")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.client.aclose()

    def _start(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("task failed", extra={"task": task.get_name()}, exc_info=error)

    # Health

    @property
    def failure(self) -> str | None:
        """What is wrong with Redis, or with a part of it."""
        failure = self._session.health.failure
        return None if failure is None else failure.reason

    def is_well(self, slot: int) -> bool:
        """Whether Redis accepts writes there, as far as is known."""
        return self._session.health.failure_in(slot) is None

    def outage_ended_s(self, stream: StreamKey | None = None) -> float:
        """When Redis was last away, by time.monotonic(): the slot of the members, and the one that holds this stream."""
        session = self._session
        ended_s = session.health.outage_ended_s(session.slot(session.keyspace.directory.incarnation).number)
        return ended_s if stream is None else max(ended_s, session.health.outage_ended_s(self.slot_of(stream)))

    def note_data_loss(self) -> None:
        """Redis has other data than before: as after an outage."""
        self._session.health.note_data_loss()

    def slot_of(self, stream: StreamKey) -> int:
        """The number of the slot in which all of a stream lies."""
        return self._session.slot_of(stream)

    # What streams call: the protocol of indexer.core.store

    def open(self, stream: StreamKey) -> None:
        """A stream exists in Redis once it is owned."""

    def append(self, stream: StreamKey, shape: CacheShape | None, change: Change, position: StreamPosition | None) -> None:
        assert position is not None, "this store needs records, and positions with them"
        pending = self._flusher.streams.get(stream)
        if pending is not None:
            pending.append(change, position)
            self._flusher.mark(pending)

    def drop(self, stream: StreamKey, position: StreamPosition) -> None:
        pending = self._flusher.streams.get(stream)
        if pending is not None:
            pending.position = position
            pending.require_full_write()
            self._flusher.mark(pending)

    def set_trust(self, stream: StreamKey, trust: Trust, position: StreamPosition) -> None:
        pending = self._flusher.streams.get(stream)
        if pending is not None:
            pending.set_trust(trust, position)
            self._flusher.mark(pending)

    def close(self, stream: StreamKey) -> None:
        """The owner says by `release`, `disown` or `registry.delete` what becomes of a stream."""

    async def room(self, stream: StreamKey) -> None:
        await self._flusher.wait_for_room(stream)

    # Owning

    async def claim(self, stream: StreamKey, mode: ClaimMode) -> Claim | str:
        """Become the stream's owner. Returns its present owner where that is another indexer. Raises StoreError."""
        return await self._leases.claim(stream, mode)

    async def load(self, claim: Claim, stream: StreamKey, state: StreamState) -> Head | None:
        """Let the state hold what Redis has of a stream. Returns the head to go on from, None where it starts from nothing. Raises StoreError."""
        return await takeover.load(self._session, self._leases, claim, stream, state)

    def own(self, stream: StreamKey, claim: Claim, snapshot: Snapshot, position: StreamPosition, *, is_loaded: bool) -> None:
        """From now on what the stream holds is written. `snapshot`: to write it in full. `is_loaded`: it holds what Redis has; else that does not
        count."""
        session, keys = self._session, self._session.keyspace.of(stream)
        pending = PendingWrites(stream, snapshot, position, keys, session.settings, claim.fence, partial(session.trusted_until_ms, keys.streams))
        if claim.generation is not None:
            pending.continue_from(claim.generation, claim.fence_before, claim.number)
        if is_loaded:
            pending.note_unwritten()
        else:
            pending.require_full_write()
        self._flusher.add(pending)

    def disown(self, stream: StreamKey) -> None:
        """Write nothing more of it. Idempotent."""
        self._flusher.remove(stream)

    async def release(self, stream: StreamKey) -> None:
        """Write what is left, if that can be done soon, and give the lease back. Never raises StoreError."""
        await self._flusher.flush(stream)
        self.disown(stream)
        await self._leases.release(stream)

    async def owners(self, streams: Sequence[StreamKey]) -> dict[StreamKey, str | None]:
        """Who has these streams; of a Cluster, those of the nodes that answer. Raises StoreError where none does."""
        return await self._leases.owners(streams)

    @property
    def losses(self) -> asyncio.Queue[Loss]:
        """Owned streams that turned out not to be ours any more when they were written; `renew` returns what it finds itself."""
        return self._flusher.losses

    @property
    def owned_slots(self) -> frozenset[int]:
        """Those in which something is ours. What lies in one is renewed by one call of `renew`, whatever becomes of the others."""
        return frozenset(self.slot_of(stream) for stream in self._flusher.streams)

    async def renew(self, statuses: Mapping[StreamKey, OwnedStatus], slot: int | None = None) -> dict[StreamKey, Renewed]:
        """Renew what is ours, in one slot or in all, and see whether it still is. Raises StoreError."""
        return await self._renewal.renew(statuses, slot)

    # Indexers

    async def heartbeat(self, models: Iterable[str], *, is_candidate: bool = True) -> Heartbeat:
        """Send the heartbeat with this indexer's models, and read the other members. `is_candidate`: whether it may own streams.

        Raises StoreError.
        """
        heartbeat = await self._members.heartbeat(models, is_candidate=is_candidate)
        await self._flusher.probe()
        return heartbeat

    async def check_shards(self) -> None:
        """Raises ShardsError where other indexers split their models otherwise; StoreError where Redis does not answer."""
        await self._members.check_shards()

    async def leave(self) -> None:
        """This indexer ends: the others need not wait for its membership to run out. Never raises StoreError."""
        await self._members.leave()

"""What an indexer does again and again to share the streams with others.

    every third of a lease:   renew what is ours ─▶ heartbeat: live members, registered pods ─▶ who owns the others ─▶ decide, see `assignment`

Each slot of a Cluster is renewed by its own call, and these wait neither for one another nor for the other steps of a round: a node that is away must
not cost us what others hold. A Redis that is no Cluster is one slot.
"""

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.engines.discovered import origin_of
from indexer.engines.spec import EngineSpec, http_base, role_of
from indexer.errors import ShardsError, StoreError
from indexer.ownership.assignment import Assignment, ObservedStream
from indexer.ownership.known_streams import KnownStream, KnownStreams
from indexer.ownership.moves import Moves
from indexer.ownership.pod_directory import PodDirectory
from indexer.store.flusher import Ownership
from indexer.store.redis import RedisStore
from indexer.store.renewal import OwnedStatus
from indexer.streams.pool import Streams
from indexer.streams.status import PublishedStatus

log = logging.getLogger(__name__)

# Rounds are a third of a lease apart, and no further than this: every second it is renewed until when a stream's content counts.
ROUND_MAX_S = 1.0
# Pause after a round that failed by an error of ours.
AFTER_FAILURE_S = 1.0


class Rounds:
    """`run` them. `changing`: held while it is looked up or changed which pods there are. `members`: the living indexers. `heartbeat_s`: when Redis
    answered the last heartbeat, by time.monotonic(). `excluded`: why this indexer may take part in nothing, where that is so."""

    def __init__(
        self,
        settings: Settings,
        store: RedisStore,
        pods: PodDirectory,
        known: KnownStreams,
        streams: Streams,
        moves: Moves,
        aliases_of: Callable[[str, tuple[EngineSpec, ...]], tuple[str, ...]],
    ) -> None:
        """`aliases_of`: the other names by which a pod with these specs serves its model."""
        self.members: tuple[str, ...] = ()
        self.heartbeat_s: float | None = None
        self.excluded: str | None = None
        self.changing = asyncio.Lock()
        self._settings = settings
        self._store = store
        self._pods = pods
        self._known = known
        self._streams = streams
        self._moves = moves
        self._aliases_of = aliases_of
        self._assignment = Assignment(store.member, settings.lease_s)
        self._owned_by: dict[StreamKey, str | None] = {}
        self._incarnation: str | None = None
        self._renewals: dict[int, asyncio.Task[bool]] = {}

    def begin_soon(self) -> None:
        """Do not wait for the next round's time."""
        self._moves.round_due.set()

    def has_owner(self, key: StreamKey) -> bool:
        """Whether the stream runs here, or another indexer owned it in the last round."""
        return key in self._streams.running or self._owned_by.get(key) not in (None, self._store.member)

    async def run(self) -> None:
        """Cancel it."""
        interval_s = min(self._settings.lease_s / 3, ROUND_MAX_S)
        under_way: asyncio.Task[None] | None = None
        try:
            while True:
                due_s = time.monotonic() + interval_s
                self._begin_renewals()
                if under_way is None or under_way.done():
                    self._moves.round_due.clear()
                    under_way = asyncio.create_task(self._round(), name="round")
                await asyncio.wait([under_way], timeout=interval_s)
                try:
                    async with asyncio.timeout(max(0.0, due_s - time.monotonic())):
                        await self._moves.round_due.wait()
                except TimeoutError:
                    pass
        finally:
            ending = [task for task in (under_way, *self._renewals.values()) if task is not None]
            for task in ending:
                task.cancel()
            await asyncio.gather(*ending, return_exceptions=True)

    async def release_lost(self) -> None:
        """Stop what the store found to be lost, at once and not in the next round: its new owner runs it already. Cancel it."""
        while True:
            loss = await self._store.losses.get()
            self._moves.note_lost(loss.stream, loss.ownership)

    async def _round(self) -> None:
        """Never fails."""
        try:
            await self._wait_for_renewals()
            await self._look_at_others()
        except ShardsError as error:
            self._exclude(str(error))
        except StoreError:
            pass  # the store logs it, once
        except Exception:
            log.exception("sharing failed")
            await asyncio.sleep(AFTER_FAILURE_S)

    def _exclude(self, reason: str) -> None:
        """Others lay out Redis otherwise, since it lost its data or answers only now: nobody reads what is written here."""
        if self.excluded is None:
            log.error("excluded from sharing", extra={"reason": reason})
        self.excluded = reason
        for key in list(self._streams.running):
            self._moves.note_lost(key, Ownership.LOST)

    # Renewing what is ours

    def _begin_renewals(self) -> None:
        """In every slot where none is under way."""
        for slot in self._store.owned_slots:
            renewal = self._renewals.get(slot)
            if renewal is None or renewal.done():
                self._renewals[slot] = asyncio.create_task(self._renew(slot), name=f"renew {slot}")

    async def _wait_for_renewals(self) -> None:
        """Wait for all that were begun, but for slots whose node was away before. Raises StoreError where all that it waits for fail."""
        under_way = {slot: task for slot, task in self._renewals.items() if not task.done()}
        waits_for = [task for slot, task in under_way.items() if len(under_way) == 1 or self._store.is_well(slot)]
        if waits_for:
            await asyncio.wait(waits_for)
            if not any(task.result() for task in waits_for):
                raise StoreError(self._store.failure or "unreachable")

    async def _renew(self, slot: int) -> bool:
        """Returns whether Redis answered."""
        try:
            renewed = await self._store.renew(self._statuses(), slot)
        except StoreError:
            return False
        except Exception:
            log.exception("renewing failed")
            return False
        for key, each in renewed.items():
            if (known := self._known.by_key.get(key)) is not None:
                known.wanted_by = each.wanted_by
            if each.ownership is not Ownership.OURS:
                self._moves.note_lost(key, each.ownership)
        return True

    def _statuses(self) -> dict[StreamKey, OwnedStatus]:
        """Of all streams that run here."""
        found = {}
        for key, running in self._streams.running.items():
            specs, status = self._pods.of(key.pod), running.stream.status()
            published = PublishedStatus(
                **msgspec.structs.asdict(status),
                http=http_base(specs) if specs else None,
                aliases=self._aliases_of(key.pod, specs),
                role=role_of(specs),
                **origin_of(self._pods.discovered(key.pod))._asdict(),
            )
            found[key] = OwnedStatus(msgspec.json.encode(published), status.connected)
        return found

    # Heartbeat

    async def heartbeat(self) -> None:
        """Send the heartbeat, and read the live members and the registered pods. Hold `changing`. Raises StoreError."""
        registry = self._store.registry
        await registry.repeat_unconfirmed()
        models = {specs[0].model for specs in self._pods.all().values()}
        # One that knows no stream, such as a gateway's own scorer, must not win any: the others would wait for it.
        is_candidate = any(not known.dials_us for known in self._known.by_key.values())
        asked_s, node = time.monotonic(), registry.node
        answer = await self._store.heartbeat(models, is_candidate=is_candidate)
        self.excluded = None
        registry.note_registered(answer.pods, node, asked_s)
        now_s = time.monotonic()
        is_other = self._incarnation not in (None, answer.incarnation)
        # A pod that was deleted is remembered as such for as long as pods are: that it is in neither list means something only within that time.
        if is_other or (self.heartbeat_s is not None and now_s - self.heartbeat_s < self._settings.pod_expiry_s):
            for specs in self._pods.missing(answer.pods, answer.forgotten).values():
                await registry.register(specs, keeps_old=True)
                answer.pods.setdefault(specs[0].pod, specs)
        if is_other:
            log.warning("redis has other data than before", extra={"registered": len(answer.pods)})
            self._store.note_data_loss()
        self._incarnation, self.members, self.heartbeat_s = answer.incarnation, answer.members, now_s
        self._pods.learn(answer.pods, answer.forgotten)
        self._moves.update_streams()

    # Deciding

    async def _look_at_others(self) -> None:
        """Raises StoreError."""
        async with self.changing:
            await self.heartbeat()
        others = [key for key in self._known.by_key if key not in self._streams.running]
        self._owned_by = await self._store.owners(others) if others else {}
        self._begin_moves()

    def _begin_moves(self) -> None:
        """Begin what is due with each stream."""
        shared = [known for known in self._known.by_key.values() if not known.dials_us]
        observed = [self._observed(known) for known in shared]
        duties = self._assignment.decide(observed, self.members, time.monotonic(), self._store.outage_ended_s())
        for known in shared:
            known.duty = duties[known.key]
            self._moves.begin(known)
        for known in self._known.by_key.values():
            if known.dials_us:
                self._moves.begin_for_dialling(known)

    def _observed(self, known: KnownStream) -> ObservedStream:
        key, runs_here = known.key, known.key in self._streams.running
        return ObservedStream(
            key,
            has_replay=known.source.replay is not None,
            runs_here=runs_here,
            stands_by=known.stream is not None,
            owner=self._owned_by.get(key),
            wanted_by=known.wanted_by,
            outage_ended_s=self._store.outage_ended_s(key),
            is_hidden=not runs_here and key not in self._owned_by,
        )

"""Applying one stream's payloads: decode, change the state, hand the change to the store, count."""

import math
import time
from collections import Counter

from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.events import Event, Tier
from indexer.core.names import StreamKey
from indexer.core.store import Store
from indexer.core.stream_state import Counting, StreamState
from indexer.errors import LOSSY_REASONS, Refused
from indexer.metrics import IndexerMetrics
from indexer.wire.decoder import Batch, WireDecoder

ORPHAN_FATES = {"orphan": "parked", "orphan_adopted": "adopted", "orphan_dropped": "dropped"}


class Applied(Struct, frozen=True):
    """What came of a payload. `cleared`: the gpu tier was emptied. `lossy`: the reason of a refusal after which something may be missing."""

    cleared: bool = False
    lossy: str | None = None


NOTHING_MORE = Applied()


class Applier:
    """What one stream holds, and everything that has to happen when that changes."""

    def __init__(
        self,
        key: StreamKey,
        counting: Counting,
        offload_block_size: int | None,
        settings: Settings,
        store: Store,
        metrics: IndexerMetrics,
    ) -> None:
        self._key = key
        self._store = store
        self._metrics = metrics
        self._decoder = WireDecoder(settings.limits.wire)
        self.state = StreamState(key.model, settings.hash_seed, counting, settings.limits.state, offload_block_size)
        self._batches = 0
        self._events: Counter[type[Event]] = Counter()
        self._parked_seen = 0

    @property
    def is_simulator(self) -> bool:
        """Whether the engine is known to count its batches from 1."""
        return self._decoder.is_simulator

    @is_simulator.setter
    def is_simulator(self, known: bool) -> None:
        self._decoder.is_simulator = known

    @property
    def block_size(self) -> int | None:
        """Tokens per block, None before any block was announced."""
        return self.state.block_size

    @property
    def first_number(self) -> int:
        """What the engine counts its batches from."""
        return 1 if self._decoder.is_simulator else 0

    def blocks(self) -> dict[str, int]:
        """Held blocks by tier."""
        return {tier.word: count for tier in Tier if (count := self.state.count(tier)) or tier is Tier.GPU}

    def apply(self, payload: bytes, number: int, *, is_live: bool) -> Applied:
        """Apply the payload of the batch with this number. One that cannot be read is counted and changes nothing."""
        self._batches += 1
        try:
            batch = self._decoder.decode(payload)
        except Refused as refused:
            return Applied(lossy=self.refuse(refused.reason))
        if batch.rank is not None and batch.rank != self._key.rank:
            batch.refused["rank_mismatch"] += 1
        change = self.state.apply(batch.events, time.monotonic())
        change.sequence = number
        if change and (block_size := self.state.block_size) is not None:
            self._store.append(self._key, block_size, change)
        if is_live and batch.published_at_s is not None and math.isfinite(batch.published_at_s):
            self._metrics.event_age.observe(max(0.0, time.time() - batch.published_at_s))
        for event in batch.events:
            self._events[type(event)] += 1
        if batch.unknown_events:
            self._metrics.unknown.labels("event").inc(batch.unknown_events)
        if batch.unknown_fields:
            self._metrics.unknown.labels("field").inc(batch.unknown_fields)
        lossy = self._count_refused(batch) if batch.refused or self.state.tally else None
        return Applied(change.cleared, lossy) if change.cleared or lossy else NOTHING_MORE

    def lose(self) -> None:
        """Hold nothing any more; the same engine goes on."""
        self.state.lose()
        self._store.drop(self._key)

    def forget(self) -> None:
        """Start again from nothing."""
        self.state.forget()
        self._store.drop(self._key)

    def close(self) -> None:
        """The stream ends: it counts no longer."""
        self.count_applied()
        self._metrics.orphans_parked.dec(self._parked_seen)

    def refuse(self, reason: str, count: int = 1) -> str | None:
        """Count what could not be used. Returns the reason if something may be missing now."""
        self._metrics.refused.labels(reason).inc(count)
        return reason if reason in LOSSY_REASONS else None

    def count_applied(self) -> None:
        """Add to the metrics what was applied since this was last called: once per turn, since it costs as much as a small batch."""
        metrics, state = self._metrics, self.state
        metrics.batches.inc(self._batches)
        self._batches = 0
        for kind, count in self._events.items():
            metrics.events_of_kind[kind].inc(count)
        self._events.clear()
        for tier, count in state.stored.items():
            metrics.blocks_stored_in[tier].inc(count)
        for tier, count in state.removed.items():
            metrics.blocks_removed_from[tier].inc(count)
        state.stored.clear()
        state.removed.clear()
        if state.parked != self._parked_seen:
            metrics.orphans_parked.inc(state.parked - self._parked_seen)
            self._parked_seen = state.parked

    def _count_refused(self, batch: Batch) -> str | None:
        """Returns the reason of a lossy refusal."""
        tally = self.state.tally
        for reason, fate in ORPHAN_FATES.items():
            self._metrics.orphans.labels(fate).inc(tally.pop(reason, 0))
        lossy = [self.refuse(reason, count) for reason, count in (batch.refused + tally).items()]
        tally.clear()
        return next((reason for reason in lossy if reason), None)

"""Applying one stream's payloads: decode, change the state, count."""

import time
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import islice
from typing import final

from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.change import Change
from indexer.core.event_pieces import Steps, result_of
from indexer.core.events import Cleared, Event, Events, Removed, Stored, Tier
from indexer.core.names import StreamKey
from indexer.core.stream_state import Counting, StreamState
from indexer.errors import LOSSY_REASONS, Refused
from indexer.metrics import IndexerMetrics
from indexer.streams.adapter_blocks import AdapterBlocks
from indexer.streams.status import GroupStatus
from indexer.tracing.current import Attributes, active_tracer, pack_span
from indexer.wire.decoder import Batch, WireDecoder

# A larger payload is decoded and applied in steps, and so is one of odd events that is larger than the second. They take up to 10 ms.
STEP_BYTES_MAX = 262_144
ODD_STEP_BYTES_MAX = 65_536
# So many events are observed in one step.
OBSERVED_EVENTS_MAX = 64
# An older time stamp is no time: one of them would make the sum of all ages useless for good.
AGE_MAX_S = 10.0 * 365 * 86_400
NS = 1_000_000_000
# A trace of a batch that is older would show nothing.
TRACED_AGE_MAX_S = 3_600.0
# Ranks that may be found at one port without being given in a spec.
SHARED_RANKS_MAX = 64
MIXED_RANKS = "batches of several ranks come by this port; give ranks=N,ranks_share_port=true in the spec"
ORPHAN_FATES = {"orphan": "parked", "orphan_adopted": "adopted", "orphan_dropped": "dropped"}

Observe = Callable[[StreamKey, Events, StreamState], None]
"""Called with the events of each batch, once the state has applied them; of a large batch with some of them at a time."""


@final
class Applied(Struct, frozen=True):
    """Result of applying one payload. `lossy`: the reason of a refusal after which something may be missing."""

    change: Change
    lossy: str | None = None
    is_refused_rank: bool = False
    """Whether it was not applied: the stream is about to be replaced by one for each rank."""


class Applier:
    """Applies the payloads of one stream to `state`. `dialect`: what is known of how its engine publishes."""

    def __init__(
        self,
        key: StreamKey,
        counting: Counting,
        offload_block_size: int | None,
        settings: Settings,
        metrics: IndexerMetrics,
        note_rank: Callable[[StreamKey, int], bool] | None = None,
        observe: Observe | None = None,
        *,
        with_records: bool,
        shares_port: bool = False,
    ) -> None:
        """`with_records`: whether changes say what became of each engine hash. `shares_port`: batches of other ranks come too; they change nothing.

        `note_rank` is called with the highest rank that batches named so far, whenever a batch names a rank for the first time. It returns whether
        the stream will be replaced because of it.
        """
        self._key = key
        self._metrics = metrics
        self._decoder = WireDecoder(settings.limits.wire)
        self.dialect = self._decoder.dialect
        self.state = StreamState(
            key.model,
            settings.hash_seed,
            counting,
            settings.limits.state,
            offload_block_size,
            with_records=with_records,
            with_hash_mapping=with_records and settings.engine_hashes,
        )
        self.refused: Counter[str] = Counter()
        """Reason → how much of what the engine announced could not be used."""
        self.announcements = 0
        """Events that announced blocks, without the refused ones."""
        self._shares_port = shares_port
        self._note_rank = note_rank
        self._observe = observe
        self._ranks: set[int] = set()
        self.has_mixed_ranks = False
        """Whether batches of several ranks were applied as if they were one rank's."""
        limits = settings.limits.state
        self._adapters = AdapterBlocks(limits.copies_max if counting == "copies" else 1, limits.gpu_blocks_max + limits.lower_tier_blocks_max)
        self._tracer = active_tracer()
        self._batches = 0
        self._events: defaultdict[type[Event], int] = defaultdict(int)
        self._parked_seen = 0

    @property
    def block_size(self) -> int | None:
        """Tokens per block, as hits are counted; None before any block was announced."""
        return None if self.state.shape is None else self.state.shape.alignment

    @property
    def first_number(self) -> int:
        """What the engine counts its batches from."""
        return 1 if self.dialect.is_simulator else 0

    def blocks(self) -> dict[str, int]:
        """Held blocks by tier, of the gpu and of the tiers that the engine named."""
        return {tier.word: count for tier in Tier if (count := self.state.count(tier)) or tier is Tier.GPU or tier in self.state.tiers}

    def groups(self) -> tuple[GroupStatus, ...]:
        """The KV-cache groups that the engine announced."""
        found = []
        for group in self.state.groups:
            slot = self.state.slot_of(group.number)
            blocks = {} if slot is None else {tier.word: count for tier in Tier if (count := self.state.count(tier, slot))}
            found.append(GroupStatus(group.number, group.kind, group.block_size, group.window, blocks))
        return tuple(found)

    def apply(self, payload: bytes, number: int, *, is_live: bool) -> Applied:
        """Apply the payload of the batch with this number. One that cannot be read is counted and changes nothing."""
        applied = self.start(payload, number, is_live=is_live)
        return applied if type(applied) is Applied else result_of(applied)

    def start(self, payload: bytes, number: int, *, is_live: bool) -> Applied | Steps[Applied]:
        """The same, or where it takes long the steps that are left. Nothing else may be applied until they are carried out, or all is forgotten."""
        self._batches += 1
        started_ns = 0 if self._tracer is None else time.time_ns()
        if len(payload) > STEP_BYTES_MAX or self._adapters.adapter_of:  # one event may remove all that is held of an adapter
            return self._in_steps(self._decoder.decode_in_steps(payload), number, started_ns, is_live=is_live)
        try:
            batch = self._decoder.start(payload) if len(payload) <= ODD_STEP_BYTES_MAX else _begun(self._decoder.decode_in_steps(payload))
        except Refused as refused:
            return self._refused(number, refused.reason)
        if not isinstance(batch, Batch):
            return self._in_steps(batch, number, started_ns, is_live=is_live)
        if (passed_over := self._passed_over(batch, number)) is not None:
            return passed_over
        change = self.state.start(self._adapters.follow(batch.events), time.monotonic())
        if not isinstance(change, Change):
            return self._go_on(batch, change, number, started_ns, is_live=is_live)
        if self._observe is not None:
            self._observe(self._key, batch.events, self.state)
        return self._applied(batch, change, number, started_ns, is_live=is_live)

    def start_snapshot(self, payload: bytes, number: int, keeps: Callable[[Event], bool]) -> Steps[Applied]:
        """Apply a part of a snapshot, without the events that `keeps` says are nothing to us: the same in steps, however large it is."""
        self._batches += 1
        try:
            batch = yield from self._decoder.decode_in_steps(payload)
        except Refused as refused:
            return self._refused(number, refused.reason)
        if (passed_over := self._passed_over(batch, number)) is not None:
            return passed_over
        yield
        batch.events = [event for event in batch.events if keeps(event)]
        return (yield from self._go_on(batch, self._in_state(batch), number, 0, is_live=False))

    def start_some(self, messages: list[list[bytes]], number: int) -> tuple[int, Applied | Steps[Applied]] | None:
        """Apply the first of these live messages as `start` does, as many as follow each other from this number on and can be applied as one batch.

        Returns how many these are, with one change for all; None where they have to be applied one by one.
        """
        if self._tracer is not None or self._observe is not None or self._adapters.adapter_of:
            return None
        batch = self._decoder.decode_some(messages, number)
        if batch is None or (batch.rank is not None and batch.rank not in self._ranks) or (self._shares_port and (batch.rank or 0) != self._key.rank):
            return None
        events = batch.events
        if isinstance(events, list) or events.stamps is None or events.adapters or not self.state.knows(events.said):
            return None
        count = len(events.stamps)
        if batch.rank is not None and batch.rank != self._key.rank:
            batch.refused["rank_mismatch"] += count
        self._batches += count
        last = number + count - 1
        change = self.state.start(events, time.monotonic())
        if isinstance(change, Change):
            return count, self._applied(batch, change, last, 0, is_live=True)
        return count, self._go_on(batch, change, last, 0, is_live=True)

    def _in_steps(self, decoding: Steps[Batch], number: int, started_ns: int, *, is_live: bool) -> Steps[Applied]:
        try:
            batch = yield from decoding
        except Refused as refused:
            return self._refused(number, refused.reason)
        if (passed_over := self._passed_over(batch, number)) is not None:
            return passed_over
        return (yield from self._go_on(batch, self._in_state(batch), number, started_ns, is_live=is_live))

    def _in_state(self, batch: Batch) -> Steps[Change]:
        """The steps of its events."""
        return self.state.apply_in_steps(self._adapters.follow_each(batch.events), batch.events, time.monotonic())

    def _go_on(self, batch: Batch, steps: Steps[Change], number: int, started_ns: int, *, is_live: bool) -> Steps[Applied]:
        change = yield from steps
        if self._observe is not None:
            events = iter(batch.events)
            while some := list(islice(events, OBSERVED_EVENTS_MAX)):
                self._observe(self._key, some, self.state)
                yield
        return self._applied(batch, change, number, started_ns, is_live=is_live)

    def _refused(self, number: int, reason: str) -> Applied:
        """A payload that cannot be read."""
        change = Change()
        change.sequence = number
        return Applied(change, self.refuse(reason))

    def _passed_over(self, batch: Batch, number: int) -> Applied | None:
        """Of a batch that is not applied, since it is of another rank."""
        rank = batch.rank
        if rank is not None and rank not in self._ranks and self._is_replaced_for(rank):
            return Applied(Change(), is_refused_rank=True)
        if self._shares_port and (rank or 0) != self._key.rank:
            change = Change()
            change.sequence = number
            return Applied(change)
        if rank is not None and rank != self._key.rank:
            batch.refused["rank_mismatch"] += 1
        return None

    def _applied(self, batch: Batch, change: Change, number: int, started_ns: int, *, is_live: bool) -> Applied:
        """What was applied is counted."""
        change.sequence = number
        if is_live and not isinstance(batch.events, list) and batch.events.stamps is not None:
            self._observe_ages(batch.events.stamps)
        elif is_live and batch.published_at_s is not None and abs(age_s := time.time() - batch.published_at_s) < AGE_MAX_S:
            self._metrics.event_age.observe(max(0.0, age_s))
        if self._tracer is not None and is_live:
            change.spans = self._trace(batch, number, started_ns)
        self._count_events(batch.events)
        if batch.unknown_events:
            self._metrics.unknown.labels("event").inc(batch.unknown_events)
        if batch.unknown_fields:
            self._metrics.unknown.labels("field").inc(batch.unknown_fields)
        lossy = self._count_refused(batch) if batch.refused or self.state.tally else None
        return Applied(change, lossy)

    def _observe_ages(self, stamps: list[float]) -> None:
        now_s = time.time()
        ages_s = [max(0.0, age_s) for stamp in stamps if abs(age_s := now_s - stamp) < AGE_MAX_S]
        if ages_s:
            self._metrics.event_age.observe_all(ages_s)

    def _count_events(self, events: Events) -> None:
        if isinstance(events, list):
            for event in events:
                self._events[type(event)] += 1
        else:
            if stored := events.stored:
                self._events[Stored] += stored
            if len(events) > stored:
                self._events[Removed] += events.removed
                self._events[Cleared] += events.cleared

    def _trace(self, batch: Batch, number: int, started_ns: int) -> bytes:
        """The way of a batch from its engine to here. Returns its span, packed; empty where it is not kept."""
        assert self._tracer is not None, "asked for by the caller"
        key, published_at_s = self._key, batch.published_at_s
        attributes: Attributes = {
            "kv.model": key.model,
            "kv.pod": key.pod,
            "kv.rank": key.rank,
            "kv.sequence": number,
            "kv.events": len(batch.events),
        }
        parts = [("kv_events.apply", started_ns)]
        # By the engine's clock, which may be another.
        if published_at_s is not None and 0 <= started_ns / NS - published_at_s < TRACED_AGE_MAX_S:
            parts.insert(0, ("kv_events.transport", min(int(published_at_s * NS), started_ns)))
        exemplar = self._tracer.past("kv_events.batch", attributes, *parts)
        if exemplar is None:
            return b""
        if len(parts) > 1:
            self._metrics.event_age.lead_to((time.time_ns() - parts[0][1]) / NS, exemplar)
        return pack_span(exemplar)

    def forget(self) -> None:
        """Hold nothing and remember nothing."""
        self.state.forget()
        self._adapters.forget()
        self._ranks.clear()
        self.has_mixed_ranks = False

    def drop_held(self) -> Steps[None]:
        """The steps after which nothing is held, and what engine hashes stand for is remembered."""
        self._adapters.forget()
        return self.state.drop_held()

    def forget_adapter(self, name: str) -> Steps[Change]:
        """The steps that remove all blocks of a LoRA adapter."""
        return self.state.apply_in_steps(self._adapters.remove(name), (), time.monotonic())

    def _is_replaced_for(self, rank: int) -> bool:
        """A batch names this rank for the first time. One rank alone may be that of a spec that names another."""
        if not 0 <= rank < SHARED_RANKS_MAX:
            return False
        self._ranks.add(rank)
        self.has_mixed_ranks = len(self._ranks) > 1 and not self._shares_port
        if self._note_rank is None or not (self._shares_port or self.has_mixed_ranks):
            return False
        return self._note_rank(self._key, max(self._ranks))

    def close(self) -> None:
        """The stream ends: it counts no longer."""
        self.count_applied()
        self._metrics.orphans_parked.dec(self._parked_seen)

    def refuse(self, reason: str, count: int = 1) -> str | None:
        """Count what could not be used. Returns the reason if something may be missing now."""
        self._metrics.refused.labels(reason).inc(count)
        self.refused[reason] += count
        return reason if reason in LOSSY_REASONS else None

    def count_applied(self) -> None:
        """Add to the metrics what was applied since this was last called: once per turn, since it costs as much as a small batch."""
        metrics, state = self._metrics, self.state
        self.announcements += self._events[Stored]
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
            count = tally[reason] if reason == "orphan_dropped" else tally.pop(reason, 0)
            self._metrics.orphans.labels(fate).inc(count)
        lossy = [self.refuse(reason, count) for reason, count in (batch.refused + tally).items()]
        tally.clear()
        return next((reason for reason in lossy if reason), None)


def _begun(decoding: Steps[Batch]) -> Batch | Steps[Batch]:
    """The batch where it is decoded in the first step, as one of plain events is; else the other steps."""
    try:
        next(decoding)
    except StopIteration as end:
        batch: Batch = end.value
        return batch
    return decoding

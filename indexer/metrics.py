"""The indexer's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics

from indexer.errors import REASONS
from indexer.events import Cleared, Removed, Stored, Tier

disable_created_metrics()  # type: ignore[no-untyped-call]  # else each counter has a second series that nobody reads

AGE_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)


class IndexerMetrics:
    """All metrics of the ingest side, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.batches = Counter("kv_indexer_batches", "Batches applied, live and replayed.", registry=registry)
        self.events = Counter("kv_indexer_events", "Events decoded, by kind.", ["kind"], registry=registry)
        self.blocks_stored = Counter("kv_indexer_blocks_stored", "Copies of blocks announced as stored, by tier.", ["tier"], registry=registry)
        self.blocks_removed = Counter("kv_indexer_blocks_removed", "Copies of blocks announced as removed, by tier.", ["tier"], registry=registry)
        self.refused = Counter("kv_indexer_refused", "Frames, batches, events and blocks passed over, by reason.", ["reason"], registry=registry)
        self.unknown = Counter("kv_indexer_unknown", "Events of an unknown type, or with an unknown field.", ["what"], registry=registry)
        self.gaps = Counter("kv_indexer_gaps", "Gaps noticed in a stream's sequence.", registry=registry)
        self.replays = Counter("kv_indexer_replays", "Replays asked of engines, by outcome.", ["outcome"], registry=registry)
        self.replayed = Counter("kv_indexer_replayed_batches", "Batches applied from replays.", registry=registry)
        self.restarts = Counter("kv_indexer_restarts", "Engine restarts noticed.", registry=registry)
        self.losses = Counter("kv_indexer_losses", "Times a stream was dropped since missed batches could not be had again.", registry=registry)
        self.inbox_dropped = Counter("kv_indexer_inbox_dropped_frames", "Frames dropped because a stream's inbox was full.", registry=registry)
        self.orphans = Counter(
            "kv_indexer_orphans", "Blocks announced before their parent, by fate: parked, adopted, dropped.", ["fate"], registry=registry
        )
        self.orphans_parked = Gauge("kv_indexer_orphans_parked", "Blocks that wait for their parent now.", registry=registry)
        self.streams = Gauge("kv_indexer_streams", "Streams, by trust.", ["trust"], registry=registry)
        self.event_age = Histogram(
            "kv_indexer_event_age_seconds",
            "From the engine's time stamp on a live batch to its application, by the two machines' clocks.",
            buckets=AGE_BUCKETS_S,
            registry=registry,
        )

        # Every series exists from the start, and the hot path looks none of them up by name.
        kinds: dict[type, str] = {Stored: "stored", Removed: "removed", Cleared: "cleared"}
        self.events_of_kind = {kind: self.events.labels(name) for kind, name in kinds.items()}
        self.blocks_stored_in = {tier: self.blocks_stored.labels(tier.word) for tier in Tier}
        self.blocks_removed_from = {tier: self.blocks_removed.labels(tier.word) for tier in Tier}
        for reason in REASONS:
            self.refused.labels(reason)
        for outcome in ("ended", "restarted", "hole", "cut", "unanswered", "abandoned"):
            self.replays.labels(outcome)
        for fate in ("parked", "adopted", "dropped"):
            self.orphans.labels(fate)
        for what in ("event", "field"):
            self.unknown.labels(what)

"""The indexer's metrics."""

import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate
from typing import ClassVar

from msgspec import Struct
from prometheus_client import CollectorRegistry, Counter, Gauge, disable_created_metrics
from prometheus_client.metrics_core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.samples import Exemplar
from prometheus_client.utils import floatToGoString

from indexer.core.events import Cleared, Removed, Stored, Tier
from indexer.core.names import StreamKey
from indexer.errors import REASONS

disable_created_metrics()  # type: ignore[no-untyped-call]  # else each counter has a second series of no use

AGE_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0)

LOAD_OUTCOMES = ("load", "timeout", "unreachable", "status", "too_large", "malformed", "outside")


class LastBatches:
    """One series per stream, read from the streams at each scrape: a batch costs nothing, and a removed stream leaves no series.

    The label is `engine_pod`, since Prometheus in Kubernetes puts the name of the indexer's own pod into `pod`.
    """

    def __init__(self) -> None:
        self.read: Callable[[], Iterable[tuple[StreamKey, float]]] = tuple

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily(
            "kv_indexer_stream_last_batch_timestamp_seconds",
            "Unix time at which the stream's last batch was applied; 0 before the first.",
            labels=["model", "engine_pod", "rank"],
        )
        for key, applied_at_s in self.read():
            family.add_metric([key.model, key.pod, str(key.rank)], applied_at_s)
        yield family


class DiscoveryState(Struct, frozen=True):
    """One source of engines. `pods`: how many in each state; `is_up`: whether it can be read."""

    STATES: ClassVar = ("ready", "not_ready", "no_model", "refused", "unusable")

    source: str
    is_up: bool
    pods: dict[str, int]


class DiscoveryStates:
    """The sources of engines, read at each scrape."""

    def __init__(self) -> None:
        self.read: Callable[[], Iterable[DiscoveryState]] = tuple

    def collect(self) -> Iterator[Metric]:
        up = GaugeMetricFamily("kv_indexer_discovery_up", "1 while the source of engines can be read, else 0.", labels=["source"])
        pods = GaugeMetricFamily(
            "kv_indexer_discovered_pods",
            "Engines that the source shows, by state: ready, not_ready, no_model (its API names none yet), refused, unusable.",
            labels=["source", "state"],
        )
        for each in self.read():
            up.add_metric([each.source], float(each.is_up))
            for state, count in each.pods.items():
                pods.add_metric([each.source, state], count)
        yield from (up, pods)


class EventAges:
    """A histogram whose `observe` is cheap: it is called for each batch, and the library's would take a tenth of the time of a small one."""

    def __init__(self) -> None:
        self._sum_s = 0.0
        self._batches = [0] * (len(AGE_BUCKETS_S) + 1)
        """How many fall into each bucket, and above all of them."""
        self._exemplars: dict[int, Exemplar] = {}
        """The last one of each bucket that has any."""

    def lead_to(self, age_s: float, exemplar: dict[str, str]) -> None:
        """A batch of about this age has a trace."""
        self._exemplars[bisect_left(AGE_BUCKETS_S, age_s)] = Exemplar(exemplar, age_s, time.time())

    def observe(self, age_s: float) -> None:
        """A batch was applied so long after its engine published it."""
        self._sum_s += age_s
        self._batches[bisect_left(AGE_BUCKETS_S, age_s)] += 1

    def observe_all(self, ages_s: list[float]) -> None:
        """So many batches were applied together."""
        bucket = bisect_left(AGE_BUCKETS_S, min(ages_s))
        if bucket == bisect_left(AGE_BUCKETS_S, max(ages_s)):  # as nearly always
            self._sum_s += sum(ages_s)
            self._batches[bucket] += len(ages_s)
            return
        for age_s in ages_s:
            self.observe(age_s)

    def collect(self) -> Iterator[Metric]:
        bounds = map(floatToGoString, (*AGE_BUCKETS_S, math.inf))
        counts = zip(bounds, accumulate(self._batches), strict=True)
        buckets = [(*each, self._exemplars[number]) if number in self._exemplars else each for number, each in enumerate(counts)]
        yield HistogramMetricFamily(
            "kv_indexer_event_age_seconds",
            "Time from the engine's timestamp of a live batch to its application, by the clocks of the two machines.",
            buckets=buckets,
            sum_value=self._sum_s,
        )


class HttpMetrics:
    """Metrics of the HTTP API, in every role."""

    def __init__(self, registry: CollectorRegistry) -> None:
        denied = Counter("kv_indexer_denied", "Requests refused for lack of a valid token, by reason.", ["reason"], registry=registry)
        self.denied = {reason: denied.labels(reason) for reason in ("no_token", "wrong_token", "not_admin")}
        self.no_room = Counter("kv_indexer_bodies_refused", "Requests refused because the bodies of all together were too large.", registry=registry)


class RedisMetrics:
    """Metrics of Redis, in every role that uses it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.up = Gauge("kv_indexer_redis_up", "1 while Redis answers and accepts commands, else 0.", registry=registry)
        self.appends = Counter("kv_indexer_redis_appends", "Changes written to Redis, each with its entry in the log.", registry=registry)
        self.full_writes = Counter(
            "kv_indexer_redis_full_writes",
            "Streams written again in full because Redis had lost data, by reason.",
            ["reason"],
            registry=registry,
        )
        for reason in ("went_back", "lost"):
            self.full_writes.labels(reason)


class DiscoveryMetrics:
    """Metrics of discovery, where it is used."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.states = DiscoveryStates()
        registry.register(self.states)
        self.errors = Counter(
            "kv_indexer_discovery_errors", "Failures to read a source of engines, by reason.", ["source", "reason"], registry=registry
        )


class IndexerMetrics:
    """All metrics of the ingest side, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.redis = RedisMetrics(registry)
        self.batches = Counter("kv_indexer_batches", "Batches applied, live and replayed.", registry=registry)
        self.events = Counter("kv_indexer_events", "Events decoded, by kind.", ["kind"], registry=registry)
        self.blocks_stored = Counter("kv_indexer_blocks_stored", "Copies of blocks announced as stored, by tier.", ["tier"], registry=registry)
        self.blocks_removed = Counter("kv_indexer_blocks_removed", "Copies of blocks announced as removed, by tier.", ["tier"], registry=registry)
        self.refused = Counter(
            "kv_indexer_refused", "Unusable frames, batches, events and blocks that were skipped, by reason.", ["reason"], registry=registry
        )
        self.unknown = Counter("kv_indexer_unknown", "Events of an unknown type or with an unknown field.", ["what"], registry=registry)
        self.gaps = Counter("kv_indexer_gaps", "Gaps detected in the sequence numbers of streams.", registry=registry)
        self.replays = Counter("kv_indexer_replays", "Replays requested from engines, by outcome.", ["outcome"], registry=registry)
        self.snapshots = Counter("kv_indexer_snapshots", "Snapshots requested from engines, by outcome.", ["outcome"], registry=registry)
        self.replayed = Counter("kv_indexer_replayed_batches", "Batches applied from replays.", registry=registry)
        self.restarts = Counter("kv_indexer_restarts", "Engine restarts detected.", registry=registry)
        self.losses = Counter("kv_indexer_losses", "Times that missed batches could not be replayed and a stream was dropped.", registry=registry)
        self.inbox_dropped = Counter("kv_indexer_inbox_dropped_frames", "Frames dropped because a stream's inbox was full.", registry=registry)
        self.orphans = Counter(
            "kv_indexer_orphans", "Blocks announced before their parent, by outcome: parked, adopted, dropped.", ["fate"], registry=registry
        )
        self.orphans_parked = Gauge("kv_indexer_orphans_parked", "Blocks that currently wait for their parent.", registry=registry)
        self.streams = Gauge("kv_indexer_streams", "Streams, by trust.", ["trust"], registry=registry)
        self.streams_not_ready = Gauge(
            "kv_indexer_streams_not_ready", "Those of pods that discovery finds not ready, by trust.", ["trust"], registry=registry
        )
        self.owned_streams = Gauge("kv_indexer_owned_streams", "Streams that this indexer owns, where indexers share them.", registry=registry)
        self.takeovers = Counter("kv_indexer_takeovers", "Streams continued from a former owner's position.", registry=registry)
        self.fenced = Counter("kv_indexer_fenced", "Streams lost to another indexer, whose fence rejects further writes.", registry=registry)
        loads = Counter("kv_indexer_load_requests", "Requests to the metrics of pods for their load, by outcome.", ["outcome"], registry=registry)
        self.load_requests = {outcome: loads.labels(outcome) for outcome in LOAD_OUTCOMES}
        self.last_batches = LastBatches()
        registry.register(self.last_batches)
        self.event_age = EventAges()
        registry.register(self.event_age)

        # Every series exists from the start, and the hot path looks none of them up by name.
        kinds: dict[type, str] = {Stored: "stored", Removed: "removed", Cleared: "cleared"}
        self.events_of_kind = {kind: self.events.labels(name) for kind, name in kinds.items()}
        self.blocks_stored_in = {tier: self.blocks_stored.labels(tier.word) for tier in Tier}
        self.blocks_removed_from = {tier: self.blocks_removed.labels(tier.word) for tier in Tier}
        for reason in REASONS:
            self.refused.labels(reason)
        for outcome in ("ended", "restarted", "hole", "cut", "unanswered", "abandoned", "missed"):
            self.replays.labels(outcome)
        for outcome in ("loaded", "none", "unavailable", "refused", "hole", "cut", "unanswered", "abandoned"):
            self.snapshots.labels(outcome)
        for fate in ("parked", "adopted", "dropped"):
            self.orphans.labels(fate)
        for what in ("event", "field"):
            self.unknown.labels(what)

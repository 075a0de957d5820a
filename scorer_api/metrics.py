"""The scorer's metrics."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from scorer_api.view import View

PHASE_BUCKETS_S = (0.00001, 0.00002, 0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.05, 0.2, 1.0)
OUTCOMES = ("match", "no_match", "malformed", "unknown_model", "too_large", "unsupported_type", "wrong_value", "too_slow", "disconnected", "failed")
PHASES = ("decode", "look_up", "encode")


class ScorerMetrics:
    """All metrics of the query side, in one registry."""

    def __init__(self, registry: CollectorRegistry, view: View) -> None:
        requests = Counter("kv_indexer_score_requests", "Score requests, by outcome.", ["outcome"], registry=registry)
        latency = Histogram(
            "kv_indexer_score_seconds", "Time spent on a score request, by phase.", ["phase"], buckets=PHASE_BUCKETS_S, registry=registry
        )
        self.requests = {outcome: requests.labels(outcome) for outcome in OUTCOMES}
        self.seconds = {phase: latency.labels(phase) for phase in PHASES}
        blocks = Gauge("kv_indexer_index_blocks", "Blocks in the prefix index that anybody holds, counted once per tier.", registry=registry)
        holders = Gauge("kv_indexer_index_holders", "Holders of these blocks: (block, tier, rank) triples.", registry=registry)
        blocks.set_function(lambda: sum(index.blocks for index in view.indexes))
        holders.set_function(lambda: sum(index.holders for index in view.indexes))

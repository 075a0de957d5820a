"""The metrics of picks for gateways."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from scorer_api.api.client_body import BY_LOAD, ByLoad

PICK_OUTCOMES = ("picked", "by_load", "malformed", "unknown_model", "too_slow", "no_room", "no_pod", "disconnected", "failed")
PREFILL_OUTCOMES = ("remote", "short", "no_pod")
SECONDS_BUCKETS = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class PickMetrics:
    """All metrics of `/v1/pick`, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = Counter("kv_indexer_pick_requests", "Requests of gateways for a pick, by outcome.", ["outcome"], registry=registry)
        by_load = Counter("kv_indexer_pick_by_load", "Picks for gateways by load and not by prefix, by reason.", ["why"], registry=registry)
        prefills = Counter(
            "kv_indexer_pick_prefills",
            "Picks for gateways of models with pods for prefill, by whether one of them is to compute the prompt.",
            ["outcome"],
            registry=registry,
        )
        self.prefills = {outcome: prefills.labels(outcome) for outcome in PREFILL_OUTCOMES}
        self.requests = {outcome: requests.labels(outcome) for outcome in PICK_OUTCOMES}
        self._by_load = {why: by_load.labels(why) for why in BY_LOAD}
        self._seconds = Histogram(
            "kv_indexer_pick_seconds", "Time from a gateway's body to its pick, with that for its tokens.", buckets=SECONDS_BUCKETS, registry=registry
        )

    def note_pick(self, by_load: ByLoad | None, seconds: float, exemplar: dict[str, str] | None = None) -> None:
        """Count a pick. `by_load`: why it was by load, None where it was by prefix."""
        self._seconds.observe(seconds, exemplar)
        self.requests["picked" if by_load is None else "by_load"].inc()
        if by_load is not None:
            self._by_load[by_load].inc()

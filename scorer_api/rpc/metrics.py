"""The metrics of calls over gRPC. What was asked and found in them is counted by those of scores, picks and explanations."""

from prometheus_client import CollectorRegistry, Counter, Gauge

METHODS = ("Score", "ScoreBatch", "Route", "Done", "Explain", "Watch")


class RpcMetrics:
    """All metrics of the scorer over gRPC, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        calls = Counter("kv_indexer_rpc_calls", "Calls over gRPC that have ended, by method and status code.", ["method", "code"], registry=registry)
        self.watches = Gauge("kv_indexer_rpc_watches", "Clients that watch the pods over gRPC.", registry=registry)
        self.missed = Counter("kv_indexer_rpc_watch_missed", "How often a client that watches was too slow and was told all anew.", registry=registry)
        self._calls = calls
        for method in METHODS:
            calls.labels(method, "OK")

    def note_call(self, method: str, code: str) -> None:
        """`code`: the name of the status."""
        self._calls.labels(method, code).inc()

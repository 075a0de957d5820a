"""The metrics of the endpoint picker. What it picks is counted by those of `/v1/pick`."""

from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge

CallOutcome = Literal["answered", "unanswered", "refused", "aborted", "malformed", "failed"]
CALL_OUTCOMES: tuple[CallOutcome, ...] = get_args(CallOutcome)
ServedBy = Literal["picked", "fallback", "other", "unknown"]
SERVED_BY: tuple[ServedBy, ...] = get_args(ServedBy)
REFUSAL_STATUSES = (400, 404, 429, 500, 503)


class GatewayMetrics:
    """All metrics of calls of gateways, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        calls = Counter("kv_indexer_gateway_calls", "Calls of gateways that have ended, one per request of a client.", ["outcome"], registry=registry)
        refusals = Counter("kv_indexer_gateway_refusals", "Requests that clients got an error for in place of a pod.", ["status"], registry=registry)
        served = Counter("kv_indexer_gateway_served", "Responses, by the endpoint that the gateway says sent them.", ["by"], registry=registry)
        cached = Counter(
            "kv_indexer_gateway_cached_tokens",
            "Tokens of prompts in the pod's cache, as predicted by the pick and as the engine's usage says, where the response passes through.",
            ["source"],
            registry=registry,
        )
        predictions = Counter(
            "kv_indexer_gateway_predictions",
            "These responses, by whether the engine took fewer or more tokens from its cache than predicted, by more than a block.",
            ["cached"],
            registry=registry,
        )
        self.open = Gauge("kv_indexer_gateway_open", "Calls of gateways in progress.", registry=registry)
        self.pieces = Counter("kv_indexer_gateway_echoed_pieces", "Pieces of responses that passed through.", registry=registry)
        self.calls = {outcome: calls.labels(outcome) for outcome in CALL_OUTCOMES}
        self.refusals = {status: refusals.labels(str(status)) for status in REFUSAL_STATUSES}
        self.served = {by: served.labels(by) for by in SERVED_BY}
        self._cached = {source: cached.labels(source) for source in ("predicted", "reported")}
        self._predictions = {found: predictions.labels(found) for found in ("as_predicted", "fewer", "more")}

    def note_cached(self, predicted: int, reported: int, block_size: int) -> None:
        """Compare the tokens that the pick expected in the cache with those that the engine found there."""
        self._cached["predicted"].inc(predicted)
        self._cached["reported"].inc(reported)
        difference = reported - predicted
        found = "as_predicted" if abs(difference) <= block_size else "more" if difference > 0 else "fewer"
        self._predictions[found].inc()

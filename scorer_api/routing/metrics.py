"""The metrics of routing."""

import time
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from scorer_api.metrics import OUTCOMES, PHASE_BUCKETS_S
from scorer_api.routing.pick import Pick
from scorer_api.routing.policies import PICK_REASONS, POLICY_NAMES
from scorer_api.routing.router import Router
from scorer_api.routing.speculative_scores import BLOCKS_OUTCOMES, BlocksOutcome

ROUTE_OUTCOMES = ("picked", "no_pod", *(outcome for outcome in OUTCOMES if outcome not in ("match", "no_match")))
PHASES = ("decode", "pick", "encode")
AGE_BUCKETS_S = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0)


class RouteMetrics:
    """All metrics of picks, in one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        requests = Counter("kv_indexer_route_requests", "Requests for a pick, by outcome.", ["outcome"], registry=registry)
        latency = Histogram("kv_indexer_route_seconds", "Time spent on a pick, by phase.", ["phase"], buckets=PHASE_BUCKETS_S, registry=registry)
        picks = Counter("kv_indexer_route_picks", "Picks, by policy and by reason.", ["policy", "picked_for"], registry=registry)
        blocks = Counter("kv_indexer_route_blocks", "Blocks of every eighth routed prompt, by prediction and result.", ["outcome"], registry=registry)
        done = Counter("kv_indexer_route_done", "Routed requests reported as done, by whether they were known.", ["outcome"], registry=registry)
        forgotten = Counter(
            "kv_indexer_route_forgotten", "Routed requests forgotten without being reported as done, by reason.", ["why"], registry=registry
        )
        self.requests = {outcome: requests.labels(outcome) for outcome in ROUTE_OUTCOMES}
        self.seconds = {phase: latency.labels(phase) for phase in PHASES}
        self._picks = {(policy, why): picks.labels(policy, why) for policy in POLICY_NAMES for why in (*PICK_REASONS, "stale")}
        self._blocks = {outcome: blocks.labels(outcome) for outcome in BLOCKS_OUTCOMES}
        self._done = {is_known: done.labels("known" if is_known else "unknown") for is_known in (True, False)}
        self._forgotten = {why: forgotten.labels(why) for why in ("time", "room")}
        self._load_age = Histogram("kv_indexer_route_load_age_seconds", "Age of the picked pod's load.", buckets=AGE_BUCKETS_S, registry=registry)
        self._load_unknown = Counter("kv_indexer_route_load_unknown", "Picks of a pod whose load is unknown.", registry=registry)
        self._open = Gauge("kv_indexer_route_open", "Routed requests in progress.", registry=registry)
        self._speculative = Gauge(
            "kv_indexer_route_speculative_blocks", "Blocks of routed prompts that the pod has not announced yet.", registry=registry
        )

    def show(self, router: Router) -> None:
        """Let the gauges report this router."""

        def open_requests() -> float:
            router.expire(time.monotonic())
            return router.requests

        self._open.set_function(open_requests)
        self._speculative.set_function(lambda: router.speculation.blocks)

    def picked(self, pick: Pick) -> None:
        """Count a pick, whoever asked for it."""
        self._picks[pick.policy, pick.picked_for].inc()
        age_s = pick.reasons[pick.order[0]].load_age_s
        if age_s is None:
            self._load_unknown.inc()
        else:
            self._load_age.observe(age_s)

    def note_done(self, *, is_known: bool) -> None:
        """Count a call of /v1/route/done."""
        self._done[is_known].inc()

    def blocks(self, outcome: BlocksOutcome, count: int) -> None:
        """Count the outcome of blocks of a sampled prompt."""
        if count:
            self._blocks[outcome].inc(count)

    def forgotten(self, why: Literal["time", "room"], count: int) -> None:
        """Count requests that the router forgot."""
        if count:
            self._forgotten[why].inc(count)

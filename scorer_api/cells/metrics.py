"""The metrics of a scorer that answers for cells."""

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

ROUTES = ("score", "route")
OUTCOMES = ("answered", "problem", "no_cell", "disconnected")
STATES = ("answered", "unknown_model", "late", "failed", "down")
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class CellMetrics:
    """All of them, in one registry. `cells`: their URLs."""

    def __init__(self, registry: CollectorRegistry, cells: Sequence[str] = ()) -> None:
        requests = Counter("kv_indexer_cells_requests", "Requests for all cells, by route and outcome.", ["route", "outcome"], registry=registry)
        answers = Counter("kv_indexer_cell_answers", "What became of a cell's part of a request.", ["cell", "state"], registry=registry)
        latency = Histogram(
            "kv_indexer_cells_seconds",
            "Time until all cells answered a request, or were not waited for.",
            ["route"],
            buckets=BUCKETS_S,
            registry=registry,
        )
        up = Gauge("kv_indexer_cell_up", "Whether a cell is asked: it was ready at the last look, and answers.", ["cell"], registry=registry)
        self.requests = {(route, outcome): requests.labels(route, outcome) for route in ROUTES for outcome in OUTCOMES}
        self.seconds = {route: latency.labels(route) for route in ROUTES}
        self.answers = {(cell, state): answers.labels(cell, state) for cell in cells for state in STATES}
        self.up = {cell: up.labels(cell) for cell in cells}

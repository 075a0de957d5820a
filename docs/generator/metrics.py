"""The metrics, from the registries that the roles fill."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Metric

from docs.generator.markdown import cell, code, sections, table
from indexer.config.settings import Settings
from indexer.http.loop_lag import LoopLag
from indexer.http.worker_metrics import WorkerStates
from indexer.metrics import DiscoveryMetrics, HttpMetrics, IndexerMetrics
from indexer.workers.board import WorkerBoard
from scorer_api.api.pick_metrics import PickMetrics
from scorer_api.cells.metrics import CellMetrics
from scorer_api.gateway.metrics import GatewayMetrics
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics, ScorerMetrics, TokenMetrics
from scorer_api.routing.metrics import RouteMetrics
from scorer_api.rpc.metrics import RpcMetrics

GROUPS: dict[str, Callable[[CollectorRegistry], object]] = {
    "Following engines, and Redis": IndexerMetrics,
    "Discovery": DiscoveryMetrics,
    "Following Redis": lambda registry: FollowerMetrics(registry, View(Settings())),
    "Scores and explanations": lambda registry: ScorerMetrics(registry, View(Settings())),
    "Routing": RouteMetrics,
    "Picks for gateways": PickMetrics,
    "The endpoint picker, with `--gateway-listen`": GatewayMetrics,
    "The scorer over gRPC, with `--gateway-listen`": RpcMetrics,
    "Answers for cells, with `--cells`": CellMetrics,
    "Tokens of prompts and chats": TokenMetrics,
    "Access": HttpMetrics,
    "The process": LoopLag,
    "Workers, with `--workers`": lambda registry: registry.register(WorkerStates(WorkerBoard(2))),
}
# More values than these belong into a table of their own.
VALUES_MAX = 20


class Registry(CollectorRegistry):
    """Remembers which labels a metric has, also while it has no series."""

    def __init__(self) -> None:
        super().__init__()
        self.labels: dict[str, tuple[str, ...]] = {}

    def register(self, collector: Any) -> None:
        """Called by each metric as it is made."""
        super().register(collector)
        for metric in collector.collect():
            source = collector if hasattr(collector, "_labelnames") else metric
            self.labels[metric.name] = tuple(getattr(source, "_labelnames", ()))


def families() -> dict[str, list[tuple[Metric, dict[str, list[str]]]]]:
    """Heading → its metrics, each with its labels and the values that they have from the start."""
    found = {}
    for heading, register in GROUPS.items():
        registry = Registry()
        register(registry)
        found[heading] = [(metric, _label_values(metric, registry.labels[metric.name])) for metric in registry.collect()]
    return found


def shown_name(metric: Metric) -> str:
    """As Prometheus shows it: a counter ends in _total."""
    return metric.name + ("_total" if metric.type == "counter" else "")


def metrics_section() -> str:
    """A table for each part of the service."""
    return sections(3, ((heading, _table(metrics)) for heading, metrics in families().items()))


def _label_values(metric: Metric, labels: Sequence[str]) -> dict[str, list[str]]:
    return {label: list(dict.fromkeys(sample.labels[label] for sample in metric.samples)) for label in labels}


def _table(metrics: Iterable[tuple[Metric, dict[str, list[str]]]]) -> str:
    rows = ([code(shown_name(metric)), metric.type, cell(metric.documentation), _shown_labels(labels)] for metric, labels in metrics)
    return table(["Metric", "Type", "Meaning", "Labels"], rows)


def _shown_labels(labels: dict[str, list[str]]) -> str:
    return "<br>".join(
        code(label) + (f": {', '.join(map(code, values))}" if 0 < len(values) <= VALUES_MAX else "") for label, values in labels.items()
    )

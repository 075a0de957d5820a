"""What answers requests for scores, picks and explanations, whether they come over HTTP or gRPC: one of each per service, with one set of metrics."""

from msgspec import Struct
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.http.routes import Pods
from scorer_api.api.explain import ExplainHandler
from scorer_api.api.picking import Picking
from scorer_api.api.resolve import RequestResolver
from scorer_api.api.route import RouteHandler
from scorer_api.api.score import ScoreHandler
from scorer_api.index.view import View
from scorer_api.metrics import ScorerMetrics
from scorer_api.routing.metrics import RouteMetrics


class Handlers(Struct, frozen=True):
    """The handlers, and the metrics that who takes a request counts it in where it fails."""

    scores: ScoreHandler
    picks: RouteHandler
    explanations: ExplainHandler
    resolver: RequestResolver
    metrics: ScorerMetrics
    route_metrics: RouteMetrics


def make_handlers(settings: Settings, view: View, pods: Pods, picking: Picking, registry: CollectorRegistry) -> Handlers:
    """`registry`: where the metrics go."""
    metrics = ScorerMetrics(registry, view)
    resolver = picking.resolver
    return Handlers(
        ScoreHandler(view, resolver, metrics, picking.router),
        RouteHandler(view, resolver, picking.router, picking.routed, picking.apis, picking.route_metrics),
        ExplainHandler(view, resolver, pods, picking.adapters, metrics, settings.limits.routing.load_max_age_s),
        resolver,
        metrics,
        picking.route_metrics,
    )

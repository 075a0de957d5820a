"""What picks, for all that ask: `/v1/route`, `/v1/pick` and the endpoint picker share the queues and speculative blocks of one router."""

from msgspec import Struct
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings, read_pairs
from indexer.http.routes import Pods
from indexer.workers.worker import Worker
from scorer_api.api.adapters import Adapters
from scorer_api.api.pick import Picker
from scorer_api.api.pick_metrics import PickMetrics
from scorer_api.api.pod_apis import PodApis
from scorer_api.api.resolve import RequestResolver
from scorer_api.api.routed_requests import RoutedRequests
from scorer_api.index.view import View
from scorer_api.routing.metrics import RouteMetrics
from scorer_api.routing.router import Router
from scorer_api.tokens.resolver import TokenResolver


class Picking(Struct, frozen=True):
    """The parts, made for one view."""

    adapters: Adapters
    resolver: RequestResolver
    apis: PodApis
    router: Router
    routed: RoutedRequests
    picker: Picker
    route_metrics: RouteMetrics
    pick_metrics: PickMetrics


def make_picking(
    settings: Settings, view: View, pods: Pods, tokens: TokenResolver, registry: CollectorRegistry, worker: Worker | None = None
) -> Picking:
    """`registry`: where the metrics go. `worker`: this one, where processes share the port."""
    adapters = Adapters(read_pairs(settings.lora, "--lora"), pods)
    resolver = RequestResolver(view, tokens, adapters)
    route_metrics = RouteMetrics(registry)
    router = Router(settings, view, route_metrics) if worker is None else Router(settings, view, route_metrics, worker.new_id)
    route_metrics.show(router)
    apis = PodApis(pods)
    pick_metrics = PickMetrics(registry)
    picker = Picker(settings, view, resolver, router, apis, pick_metrics, route_metrics)
    routed = RoutedRequests(router, route_metrics, worker)
    return Picking(adapters, resolver, apis, router, routed, picker, route_metrics, pick_metrics)

"""The role that only indexes, as an ASGI app: pods, health, readiness and metrics."""

from fastapi import APIRouter
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.http.access import Access
from indexer.http.app import make_app
from indexer.http.loop_lag import LoopLag
from indexer.http.routes import add_root, add_routes
from indexer.http.schemas import components
from indexer.http.server import Served
from indexer.metrics import HttpMetrics, IndexerMetrics
from indexer.ownership.replica import ReplicaService

SUMMARY = "Follows engines and writes what they cache to Redis, where scorers read it."


def make_ingest(settings: Settings) -> Served:
    """The `ingest` role: an indexer that shares the streams with others."""
    registry = CollectorRegistry()
    service = ReplicaService(settings, IndexerMetrics(registry))
    access = Access(settings, HttpMetrics(registry))
    router = APIRouter()
    add_root(router, "docs")
    add_routes(router, settings, service, registry, access)
    return Served(
        make_app(SUMMARY, router, components(allows_ipc=settings.engine_networks.allows_ipc), settings, access),
        [LoopLag(registry), service],
        [access],
        service,
    )

"""The embedded service: indexer and scorer in one process, behind one ASGI app."""

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import CollectorRegistry

from indexer import __version__
from indexer.metrics import IndexerMetrics
from indexer.service import Service
from indexer.settings import Settings
from scorer_api import openapi, problems
from scorer_api.metrics import ScorerMetrics
from scorer_api.routes import make_router
from scorer_api.view import View


def make_embedded(settings: Settings) -> tuple[FastAPI, Service]:
    """The app, and the service that it asks, which the caller starts and stops: `async with service: …`."""
    registry = CollectorRegistry()
    view = View(settings)
    service = Service(settings, view, IndexerMetrics(registry))
    app = FastAPIOffline(
        title="KV Event Indexer",
        summary="Tells any LLM router which pod already holds the longest prefix of a prompt.",
        version=__version__,
        redoc_url=None,
    )
    router = make_router(settings, view, service, ScorerMetrics(registry, view), registry)
    app.include_router(router)
    problems.install(app, router.routes)
    openapi.install(app)
    return app, service

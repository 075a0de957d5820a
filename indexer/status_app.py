"""What an indexer alone shows over HTTP: health, readiness, metrics, and the streams that it owns."""

from typing import Any

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from indexer.metrics import IndexerMetrics
from indexer.server import Served
from indexer.settings import Settings
from indexer.shared import SharedService

_encode = msgspec.json.Encoder().encode


def make_ingest(settings: Settings) -> Served:
    """The `ingest` role."""
    registry = CollectorRegistry()
    service = SharedService(settings, IndexerMetrics(registry))

    async def healthz(request: Request) -> Response:
        return _json({"status": "alive"})

    async def readyz(request: Request) -> Response:
        readiness = service.readiness()
        return _json(readiness, 200 if readiness.is_ready else 503)

    async def pods(request: Request) -> Response:
        return _json({"pods": service.pods()})

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    # GET; Starlette adds HEAD.
    routes = [Route("/healthz", healthz), Route("/readyz", readyz), Route("/v1/pods", pods), Route("/metrics", metrics)]
    return Served(Starlette(routes=routes), [service], service)


def _json(answer: Any, status: int = 200) -> Response:
    return Response(_encode(answer), status, media_type="application/json")

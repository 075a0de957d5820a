"""The HTTP routes of a scorer that answers for cells."""

from collections.abc import Generator
from contextlib import contextmanager

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from starlette.requests import ClientDisconnect

from indexer.config.settings import Settings
from indexer.http.negotiation import JSON, MSGPACK, accepted_type, encode, media_type_of, read_body, respond
from indexer.http.problems import Problem
from indexer.http.routes import add_health, add_metrics
from scorer_api.api.decode import decode_done
from scorer_api.cells import openapi
from scorer_api.cells.answering import Answering
from scorer_api.cells.fan_out import FanOut
from scorer_api.cells.metrics import CellMetrics

DIRECT = frozenset({"/v1/score", "/v1/route", "/v1/route/done"})
# What a cell is told of who asks, beside the body.
PASSED_ON = ("authorization", "x-kv-indexer-token", "traceparent", "tracestate")


def make_router(settings: Settings, cells: FanOut, registry: CollectorRegistry, metrics: CellMetrics) -> APIRouter:
    """All routes of the role, over these cells."""
    router = APIRouter()
    answering = Answering(settings, cells, metrics)

    async def read(request: Request) -> tuple[bytes, str, str]:
        media_type = media_type_of(request, JSON, MSGPACK)
        return await read_body(request, settings.body_bytes_max, settings.limits.http.body_timeout_s), media_type, accepted_type(request, media_type)

    @contextmanager
    def counted(route: str) -> Generator[None, None, None]:
        try:
            yield
        except Problem as problem:
            metrics.requests[route, "no_cell" if problem.status == 503 else "problem"].inc()
            raise
        except ClientDisconnect:
            metrics.requests[route, "disconnected"].inc()
            raise
        metrics.requests[route, "answered"].inc()

    @router.post("/v1/score", **openapi.SCORE)
    async def score(request: Request) -> Response:
        """Which pods of all cells hold the longest prefix of this prompt?"""
        with counted("score"):
            body, media_type, accepted = await read(request)
            return Response(await answering.score(body, media_type, accepted, _passed_on(request, media_type)), media_type=accepted)

    @router.post("/v1/route", **openapi.ROUTE)
    async def route(request: Request) -> Response:
        """Which pod of all cells is this prompt to go to, and which ones after it?"""
        with counted("route"):
            body, media_type, accepted = await read(request)
            return Response(await answering.route(body, media_type, accepted, _passed_on(request, media_type)), media_type=accepted)

    @router.post("/v1/route/done", **openapi.DONE)
    async def done(request: Request) -> Response:
        """A routed request is over, or never was."""
        body, media_type, accepted = await read(request)
        answer = await answering.done(decode_done(body, media_type), _passed_on(request, media_type))
        return Response(encode(answer, accepted), media_type=accepted)

    @router.get("/v1/models", **openapi.MODELS)
    async def models(request: Request) -> Response:
        """Every model that a cell knows, with its pods."""
        return respond(await answering.models(_passed_on(request, None)))

    add_health(router, cells.readiness)
    add_metrics(router, registry)
    return router


def _passed_on(request: Request, media_type: str | None) -> dict[str, str]:
    """Without values that no token and no trace has: a request with one could not be sent to any cell."""
    headers = {name: value for name in PASSED_ON if (value := request.headers.get(name)) is not None and value.isascii() and value.isprintable()}
    return headers if media_type is None else {**headers, "Content-Type": media_type}

"""The HTTP routes of the roles that answer from the prefix index."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.http.access import Access
from indexer.http.direct import REST
from indexer.http.negotiation import JSON, MSGPACK, accepted_type, media_type_of, read_body, respond, respond_in_pieces
from indexer.http.routes import Pods, add_routes
from indexer.workers.worker import Worker
from scorer_api.api import openapi
from scorer_api.api.batch import BatchHandler
from scorer_api.api.candidates import CandidatesHandler
from scorer_api.api.handlers import Handlers
from scorer_api.api.hot import HotHandler
from scorer_api.api.outcomes import count_failures
from scorer_api.api.page import add_page
from scorer_api.api.pick_http import add_pick
from scorer_api.api.picking import Picking
from scorer_api.api.schemas import ModelAnswer, ModelsAnswer
from scorer_api.index.view import View

DIRECT = frozenset({"/v1/score", "/v1/score/batch", "/v1/route", "/v1/route/done", "/v1/candidates", "/v1/pick", f"/v1/pick{REST}"})
"""Routes that are called for each request of a router or a gateway."""


def make_router(
    settings: Settings,
    view: View,
    pods: Pods,
    picking: Picking,
    handlers: Handlers,
    registry: CollectorRegistry,
    access: Access,
    worker: Worker | None = None,
) -> APIRouter:
    """All routes of such a role, over these parts."""
    router = APIRouter()
    scores, picks, explanations = handlers.scores, handlers.picks, handlers.explanations
    metrics, route_metrics = handlers.metrics, handlers.route_metrics
    candidates = CandidatesHandler(view, handlers.resolver, picking.router, picking.apis)
    hottest = HotHandler(view, settings.hot_prefixes, worker)
    batches = BatchHandler(scores, handlers.resolver, metrics)

    async def read(request: Request) -> tuple[bytes, str, str]:
        """A request's body, its media type, and that of the answer."""
        media_type = media_type_of(request, JSON, MSGPACK)
        return await read_body(request, settings.body_bytes_max, settings.limits.http.body_timeout_s), media_type, accepted_type(request, media_type)

    @router.post("/v1/score", **openapi.SCORE)
    async def score(request: Request) -> Response:
        """Which pods hold the longest prefix of this prompt?"""
        with count_failures(metrics.requests):
            body, media_type, accepted = await read(request)
            return Response(await scores.answer(body, media_type, accepted), media_type=accepted)

    @router.post("/v1/score/batch", **openapi.BATCH)
    async def batch(request: Request) -> Response:
        """The same for many prompts, answered in their order."""
        body, media_type, accepted = await read(request)
        return await respond_in_pieces(await batches.answer(body, media_type, accepted), accepted)

    @router.post("/v1/route", **openapi.ROUTE)
    async def route(request: Request) -> Response:
        """Which pod is this prompt to go to, and which ones after it?"""
        with count_failures(route_metrics.requests):
            body, media_type, accepted = await read(request)
            return Response(await picks.answer(body, media_type, accepted), media_type=accepted)

    @router.post("/v1/candidates", **openapi.CANDIDATES)
    async def candidate_pods(request: Request) -> Response:
        """What would `/v1/route` pick from? For who picks from the pods of several scorers."""
        body, media_type, accepted = await read(request)
        return Response(await candidates.answer(body, media_type, accepted), media_type=accepted)

    @router.post("/v1/route/done", **openapi.DONE)
    async def done(request: Request) -> Response:
        """A routed request is over, or never was: what counted of it counts no more. One that does not count here is no mistake."""
        body, media_type, accepted = await read(request)
        return Response(await picks.done(body, media_type, accepted), media_type=accepted)

    @router.post("/v1/explain", **openapi.EXPLAIN)
    async def explain(request: Request) -> Response:
        """Why does each pod hold as much of this prompt as it does, and no more?"""
        with count_failures(metrics.explanations):
            body, media_type, accepted = await read(request)
        return Response(await explanations.answer(body, media_type, accepted), media_type=accepted)

    @router.get("/v1/models", **openapi.MODELS)
    async def models() -> Response:
        """Every known model, with its pods."""
        return respond(ModelsAnswer([ModelAnswer(name, names) for name, names in view.models().items()]))

    @router.get("/v1/hot", **openapi.HOT)
    async def hot(request: Request) -> Response:
        """Which prefixes are asked for most, how often, and which pods hold them? Known by their block keys, never by their tokens."""
        return await respond_in_pieces(hottest.encoded(request.query_params), JSON)

    add_pick(router, settings, picking.picker, picking.routed, picking.pick_metrics)
    add_page(router)
    add_routes(router, settings, pods, registry, access, worker)
    return router

"""The HTTP routes of the roles that answer from the prefix index."""

from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings, read_pairs
from indexer.http.access import Access
from indexer.http.negotiation import JSON, MSGPACK, accepted_type, media_type_of, read_body, respond, respond_in_pieces
from indexer.http.routes import Pods, add_routes
from scorer_api.api import openapi
from scorer_api.api.adapters import Adapters
from scorer_api.api.batch import BatchHandler
from scorer_api.api.explain import ExplainHandler
from scorer_api.api.outcomes import count_failures
from scorer_api.api.page import add_page
from scorer_api.api.pick import Picker
from scorer_api.api.pick_http import add_pick
from scorer_api.api.pick_metrics import PickMetrics
from scorer_api.api.pod_apis import PodApis
from scorer_api.api.resolve import RequestResolver
from scorer_api.api.route import RouteHandler
from scorer_api.api.schemas import ModelAnswer, ModelsAnswer
from scorer_api.api.score import ScoreHandler
from scorer_api.index.view import View
from scorer_api.metrics import ScorerMetrics
from scorer_api.routing.metrics import RouteMetrics
from scorer_api.routing.router import Router
from scorer_api.tokens.resolver import TokenResolver


def make_router(
    settings: Settings, view: View, pods: Pods, tokens: TokenResolver, metrics: ScorerMetrics, registry: CollectorRegistry, access: Access
) -> APIRouter:
    """All routes of such a role, over these parts."""
    router = APIRouter()
    adapters = Adapters(read_pairs(settings.lora, "--lora"), pods)
    resolver = RequestResolver(view, tokens, adapters)
    route_metrics = RouteMetrics(registry)
    pod_router = Router(settings, view, route_metrics)
    route_metrics.show(pod_router)
    scores = ScoreHandler(view, resolver, metrics, pod_router)
    batches = BatchHandler(scores, resolver, metrics)
    explanations = ExplainHandler(view, resolver, pods, adapters, metrics, settings.limits.routing.load_max_age_s)
    apis = PodApis(pods)
    picks = RouteHandler(view, resolver, pod_router, apis, route_metrics)
    pick_metrics = PickMetrics(registry)
    picker = Picker(settings, view, resolver, pod_router, apis, pick_metrics, route_metrics)

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

    @router.post("/v1/route/done", **openapi.DONE)
    async def done(request: Request) -> Response:
        """A routed request is over, or never was: what counted of it counts no more. One that does not count here is no mistake."""
        body, media_type, accepted = await read(request)
        return Response(picks.done(body, media_type, accepted), media_type=accepted)

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

    add_pick(router, settings, picker, pick_metrics)
    add_page(router)
    add_routes(router, settings, pods, registry, access)
    return router

"""The HTTP routes of the roles that answer from the prefix index."""

import time

import msgspec
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from starlette.requests import ClientDisconnect

from indexer.events import Tier
from indexer.http.access import Access
from indexer.http.negotiation import JSON, MSGPACK, accepted_type, media_type_of, read_body, respond
from indexer.http.problems import Problem
from indexer.http.routes import Pods, add_routes
from indexer.settings import Settings
from scorer_api import openapi, score_request
from scorer_api.metrics import ScorerMetrics
from scorer_api.prefix_index import OWN_TIERS
from scorer_api.schemas import ModelAnswer, ModelsAnswer, PodAnswer, ScoreAnswer, ScoreRequest, ViewAnswer
from scorer_api.view import PodScore, View, ranks_by_number

OUTCOME_OF_STATUS = {400: "malformed", 404: "unknown_model", 408: "too_slow", 413: "too_large", 415: "unsupported_type", 422: "wrong_value"}


def make_router(settings: Settings, view: View, pods: Pods, metrics: ScorerMetrics, registry: CollectorRegistry, access: Access) -> APIRouter:
    """All routes of such a role, over these parts."""
    router = APIRouter()

    @router.post("/v1/score", **openapi.SCORE)
    async def score(request: Request) -> Response:
        """Which pods hold the longest prefix of this prompt?"""
        try:
            response, outcome = await answer_score(request)
        except Problem as problem:
            metrics.requests[OUTCOME_OF_STATUS[problem.status]].inc()
            raise
        except ClientDisconnect:
            metrics.requests["disconnected"].inc()
            raise
        except Exception:
            metrics.requests["failed"].inc()
            raise
        metrics.requests[outcome].inc()
        return response

    async def answer_score(request: Request) -> tuple[Response, str]:
        media_type = media_type_of(request, JSON, MSGPACK)
        body = await read_body(request, settings.body_bytes_max, settings.body_timeout_s)
        started_s = time.perf_counter()
        asked = score_request.decode(body, media_type)
        prompt = score_request.prompt_of(asked)
        decoded_s = time.perf_counter()
        try:
            scores = view.score(prompt, None if asked.pods is None else frozenset(asked.pods))
        except KeyError:
            raise Problem(404, f"model: {asked.model!r} is not known; it is once a pod of it is registered, see /v1/models") from None
        found_s = time.perf_counter()
        answer = _score_answer(asked, prompt.length, scores, ViewAnswer(view.source, view.age_s))
        response = respond(answer, accepted_type(request, media_type))
        encoded_s = time.perf_counter()
        metrics.seconds["decode"].observe(decoded_s - started_s)
        metrics.seconds["look_up"].observe(found_s - decoded_s)
        metrics.seconds["encode"].observe(encoded_s - found_s)
        return response, "match" if answer.best is not None else "no_match"

    @router.get("/v1/models", **openapi.MODELS)
    async def models() -> Response:
        """Every known model, with its pods."""
        return respond(ModelsAnswer([ModelAnswer(name, names) for name, names in view.models().items()]))

    add_routes(router, settings, pods, registry, access)
    return router


def _score_answer(asked: ScoreRequest, tokens: int, scores: list[PodScore], seen: ViewAnswer) -> ScoreAnswer:
    answers = [_pod_answer(score) for score in scores[: asked.limit]]
    best = answers[0].pod if answers and answers[0].matched_blocks else None
    answer = ScoreAnswer(asked.model, tokens, best, answers, seen)
    if asked.pods is None:
        return answer
    known = {score.pod for score in scores}
    return msgspec.structs.replace(answer, unknown_pods=[pod for pod in dict.fromkeys(asked.pods) if pod not in known])


def _pod_answer(score: PodScore) -> PodAnswer:
    best = score.ranks[0]
    return PodAnswer(
        pod=score.pod,
        score=best.score,
        matched_tokens=best.match.matched_blocks * (best.block_size or 0),
        matched_blocks=best.match.matched_blocks,
        usable_blocks=best.usable_blocks,
        block_size=best.block_size,
        tiers={TIER_WORDS[tier]: count for tier, count in enumerate(best.match.tiers) if count},
        rank=best.rank,
        ranks=ranks_by_number(score.ranks),
        trust=best.trust,
    )


TIER_WORDS = [Tier(tier).word for tier in OWN_TIERS]

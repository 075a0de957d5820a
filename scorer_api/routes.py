"""The HTTP routes."""

import time
from typing import Any, Protocol

import msgspec
from fastapi import APIRouter, Request, Response
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect

from indexer.engine_spec import EngineSpec
from indexer.errors import SettingError, StoreError
from indexer.events import Tier
from indexer.settings import Settings
from indexer.streams import PodStatus, Readiness
from scorer_api import openapi, score_request
from scorer_api.metrics import ScorerMetrics
from scorer_api.negotiation import JSON, MSGPACK, accepted_type, media_type_of, read_body, respond
from scorer_api.prefix_index import OWN_TIERS
from scorer_api.problems import Problem
from scorer_api.schemas import HealthAnswer, ModelAnswer, ModelsAnswer, PodAnswer, PodsAnswer, ScoreAnswer, ScoreRequest, ViewAnswer
from scorer_api.view import PodScore, View, ranks_by_number

OUTCOME_OF_STATUS = {400: "malformed", 404: "unknown_model", 408: "too_slow", 413: "too_large", 415: "unsupported_type", 422: "wrong_value"}
POD_BYTES_MAX = 65_536


# A client that was told that Redis is away may ask again so soon.
RETRY_AFTER_S = 1


class Pods(Protocol):
    """Which pods there are, and whether all is well with them. Where they are shared, changes raise StoreError while Redis is away."""

    def pods(self) -> list[PodStatus]: ...

    async def register(self, specs: tuple[EngineSpec, ...]) -> bool: ...

    async def forget(self, pod: str) -> bool: ...

    def readiness(self) -> Readiness: ...


class _AnyText(Convertor[str]):
    """The rest of a path, whatever is in it: the `path` of Starlette's own ends at a line break."""

    regex = r"[\s\S]*"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


register_url_convertor("any", _AnyText())


def make_router(settings: Settings, view: View, pods: Pods, metrics: ScorerMetrics, registry: CollectorRegistry) -> APIRouter:
    """All routes, over these parts."""
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

    @router.get("/v1/pods", **openapi.PODS)
    async def get_pods() -> Response:
        """Every registered pod, with the state of its streams."""
        return respond(PodsAnswer(pods.pods()))

    @router.put("/v1/pods/{pod:any}", **openapi.PUT_POD)
    async def put_pod(pod: str, request: Request) -> Response:
        """Register a pod, or replace it. What stays the same keeps its blocks."""
        media_type_of(request, JSON)
        spec = _pod_spec(pod, await read_body(request, POD_BYTES_MAX, settings.body_timeout_s))
        try:
            is_new = await pods.register((spec,))
        except SettingError as error:
            raise Problem(422, f"{error.key}: {error.allowed}") from None
        except StoreError as error:
            raise _unavailable(error) from None
        status = next((status for status in pods.pods() if status.pod == pod), PodStatus(pod, spec.model, []))
        return respond(status, status=201 if is_new else 200)

    @router.delete("/v1/pods/{pod:any}", status_code=204, **openapi.DELETE_POD)
    async def delete_pod(pod: str) -> Response:
        """Forget a pod and its blocks at once. One that a flag names comes back at the next start."""
        try:
            was_known = await pods.forget(pod)
        except StoreError as error:
            raise _unavailable(error) from None
        if not was_known:
            raise Problem(404, f"pod: {pod!r} is not registered, see /v1/pods")
        return Response(status_code=204)

    @router.get("/v1/models", **openapi.MODELS)
    async def models() -> Response:
        """Every known model, with its pods."""
        return respond(ModelsAnswer([ModelAnswer(name, names) for name, names in view.models().items()]))

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz", **openapi.HEALTH)
    async def healthz() -> Response:
        """The process lives."""
        return respond(HealthAnswer("alive"))

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", **openapi.READY)
    async def readyz() -> Response:
        """Whether answers can be relied on, and what is not as it should be."""
        readiness = pods.readiness()
        return respond(readiness, status=200 if readiness.is_ready else 503)

    @router.get("/metrics", **openapi.METRICS)
    async def prometheus(request: Request) -> Response:
        """Metrics in the text format of Prometheus."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    return router


def _unavailable(error: StoreError) -> Problem:
    return Problem(503, f"{error}: pods cannot be changed now, try again", retry_after_s=RETRY_AFTER_S)


def _pod_spec(pod: str, body: bytes) -> EngineSpec:
    """Raises Problem."""
    try:
        given: dict[str, Any] = msgspec.json.decode(body, type=dict[str, Any])
    except msgspec.ValidationError:
        raise Problem(422, "the body should be a JSON object with the keys of an engine spec") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply") from None
    if given.get("pod") not in (None, pod):
        raise Problem(422, f"pod: {given['pod']!r} should be the name in the path, {pod!r}, or left out")
    try:
        return EngineSpec.from_mapping({**given, "pod": pod}, "spec")
    except SettingError as error:
        raise Problem(422, error.allowed) from None


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

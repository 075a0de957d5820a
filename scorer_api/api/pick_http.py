"""`/v1/pick` over HTTP: the client's own request in, headers out."""

import re
from collections.abc import Mapping

from fastapi import APIRouter, Request, Response

from indexer.config.settings import Settings
from indexer.http.negotiation import JSON, read_body
from indexer.http.problems import Problem
from scorer_api.api import openapi
from scorer_api.api.asking import asked_of, why_unread
from scorer_api.api.client_body import ByLoad
from scorer_api.api.outcomes import count_failures
from scorer_api.api.pick import Picked, Picker
from scorer_api.api.pick_metrics import PickMetrics
from scorer_api.api.pick_schemas import encoded_error
from scorer_api.api.routed_requests import RoutedRequests

DESTINATION = "x-gateway-destination-endpoint"
FALLBACKS = "x-kv-fallbacks"
REQUEST_ID = "x-kv-request-id"
PICKED_FOR = "x-kv-picked-for"
BY_LOAD = "x-kv-by-load"
# Read by the proxy beside a pod for decode, as llm-d has it.
PREFILLER = "x-prefiller-host-port"
# Envoy's ext_authz says so of a body that it has cut.
PARTIAL_BODY = "x-envoy-auth-partial-body"
_ID = re.compile(r"[0-9a-f]{16}")
# Others, such as a body that arrives too slowly, are problems of this API and not of the picked one.
PICK_ERRORS = (400, 404, 503)


def add_pick(router: APIRouter, settings: Settings, picker: Picker, routed: RoutedRequests, metrics: PickMetrics) -> None:
    """Add the routes to the router of a role that answers scores."""

    async def answer(request: Request, path: str) -> Response:
        headers: dict[str, str] = {}
        try:
            with count_failures(metrics.requests):
                body, by_load = await _body_of(request, settings, headers)
                return _picked(await picker.pick(asked_of(request.headers, path, body, by_load)), headers)
        except Problem as problem:
            if problem.status not in PICK_ERRORS:
                raise
            return _refused(problem, headers)

    @router.get("/v1/pick", **openapi.PICK)
    @router.get("/v1/pick/{path:any}", **openapi.PICK)
    async def pick_get(request: Request, path: str = "") -> Response:
        """Which pod is a request without a body to go to?"""
        return await answer(request, path)

    @router.post("/v1/pick", **openapi.PICK_BODY)
    @router.post("/v1/pick/{path:any}", **openapi.PICK_BODY)
    async def pick(request: Request, path: str = "") -> Response:
        """Which pod is this request of a client to go to? The path behind this one is the engine's."""
        return await answer(request, path)

    @router.delete("/v1/pick/{path:any}", **openapi.PICK_DONE)
    async def done(request: Request, path: str) -> Response:
        """A picked request is over, by its id; any other path is a client's DELETE, which gets a pod."""
        if _ID.fullmatch(path) is None:
            return await answer(request, path)
        await routed.done(path)
        return Response(status_code=204)


async def _body_of(request: Request, settings: Settings, headers: dict[str, str]) -> tuple[bytes | None, ByLoad | None]:
    """The body, or why it is not read. `headers`: of the answer. Raises Problem 408, 429."""
    if (by_load := why_unread(request.headers)) is not None:
        return None, by_load
    if request.headers.get(PARTIAL_BODY) == "true":
        return None, "over_limit"
    try:
        return await read_body(request, settings.body_bytes_max, settings.limits.http.body_timeout_s), None
    except Problem as problem:
        if problem.status != 413:
            raise
        if problem.closes:
            headers["Connection"] = "close"
        return None, "over_limit"


def _picked(picked: Picked, headers: Mapping[str, str]) -> Response:
    more = {DESTINATION: picked.destination, REQUEST_ID: picked.id, PICKED_FOR: picked.picked_for}
    if picked.fallbacks:
        more[FALLBACKS] = ",".join(picked.fallbacks)
    if picked.prefill is not None:
        more[PREFILLER] = picked.prefill
    if picked.by_load is not None:
        more[BY_LOAD] = picked.by_load
    return Response(headers={**headers, **more})


def _refused(problem: Problem, headers: Mapping[str, str]) -> Response:
    more = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
    return Response(encoded_error(problem.status, problem.detail), problem.status, {**headers, **more}, JSON)

"""`/v1/pick` over HTTP: the client's own request in, headers out."""

import re
from collections.abc import Mapping

import msgspec
from fastapi import APIRouter, Request, Response

from indexer.config.settings import Settings
from indexer.http.negotiation import JSON, read_body
from indexer.http.problems import Problem
from scorer_api.api import openapi
from scorer_api.api.client_body import ByLoad
from scorer_api.api.outcomes import count_failures
from scorer_api.api.pick import Asked, Picked, Picker
from scorer_api.api.pick_metrics import PickMetrics
from scorer_api.api.pick_schemas import ErrorDetails, PickError
from scorer_api.api.schemas import TEXT_LENGTH_MAX

DESTINATION = "x-gateway-destination-endpoint"
FALLBACKS = "x-kv-fallbacks"
REQUEST_ID = "x-kv-request-id"
PICKED_FOR = "x-kv-picked-for"
BY_LOAD = "x-kv-by-load"
SESSION = "x-session-id"
# Set by a body-based router in front of the gateway.
MODEL = "x-gateway-model-name"
# Envoy's ext_authz says so of a body that it has cut.
PARTIAL_BODY = "x-envoy-auth-partial-body"
_ID = re.compile(r"[0-9a-f]{16}")
# Some clients send JSON under these too, or under none.
_JSON_TYPES = ("", JSON, "application/x-www-form-urlencoded", "text/plain")
ERROR_TYPES = {400: "invalid_request_error", 404: "not_found_error", 503: "service_unavailable_error"}


def add_pick(router: APIRouter, settings: Settings, picker: Picker, metrics: PickMetrics) -> None:
    """Add the routes to the router of a role that answers scores."""

    async def answer(request: Request, path: str) -> Response:
        headers: dict[str, str] = {}
        try:
            with count_failures(metrics.requests):
                body, by_load = await _body_of(request, settings, headers)
                return _picked(await picker.pick(_asked(request, path, body, by_load)), headers)
        except Problem as problem:
            if problem.status not in ERROR_TYPES:
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
        picker.done(path)
        return Response(status_code=204)


def _asked(request: Request, path: str, body: bytes | None, by_load: ByLoad | None) -> Asked:
    headers = request.headers
    session_id = headers.get(SESSION)
    if session_id is not None and not 0 < len(session_id) <= TEXT_LENGTH_MAX:
        session_id = None
    return Asked(body, path, by_load, headers.get(MODEL), session_id, is_anthropic="anthropic-version" in headers)


async def _body_of(request: Request, settings: Settings, headers: dict[str, str]) -> tuple[bytes | None, ByLoad | None]:
    """The body, or why it is not read. `headers`: of the answer. Raises Problem 408, 429."""
    given = request.headers
    media_type = given.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in _JSON_TYPES and not media_type.endswith("+json"):
        return None, "other_type"
    if given.get("content-encoding", "identity") != "identity":
        return None, "other_type"
    if given.get(PARTIAL_BODY) == "true":
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
    if picked.by_load is not None:
        more[BY_LOAD] = picked.by_load
    return Response(headers={**headers, **more})


def _refused(problem: Problem, headers: Mapping[str, str]) -> Response:
    content = msgspec.json.encode(PickError(ErrorDetails(problem.detail, ERROR_TYPES[problem.status], problem.status)))
    more = {} if problem.retry_after_s is None else {"Retry-After": str(problem.retry_after_s)}
    return Response(content, problem.status, {**headers, **more}, JSON)

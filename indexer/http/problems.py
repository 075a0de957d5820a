"""Errors as clients see them: `application/problem+json` (RFC 9457)."""

import http
import logging
from collections.abc import Mapping, Sequence

import msgspec
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from msgspec import Struct
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute, Match

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class ProblemDetails(Struct, frozen=True):
    """`detail` says which field was wrong and what would be right."""

    type: str
    title: str
    status: int
    detail: str


class Problem(Exception):
    """The request fails.

    Attributes: `status`, an HTTP status; `detail`, for the client; `closes`, whether the connection is closed; `retry_after_s`, when to retry;
    `headers`, of the response.
    """

    def __init__(
        self, status: int, detail: str, *, closes: bool = False, retry_after_s: int | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(detail)
        self.headers = dict(headers or {})
        self.retry_after_s = retry_after_s
        self.status = status
        self.detail = detail
        self.closes = closes


def details_of(status: int, detail: str) -> ProblemDetails:
    """The body of a problem response."""
    return ProblemDetails("about:blank", http.HTTPStatus(status).phrase, status, detail)


def encoded_problem(status: int, detail: str) -> bytes:
    """The body of a problem response, in JSON."""
    return msgspec.json.encode(details_of(status, detail))


def response_of(status: int, detail: str, headers: dict[str, str] | None = None) -> Response:
    """A problem response."""
    return Response(encoded_problem(status, detail), status, headers, MEDIA_TYPE)


def response_to_problem(problem: Problem) -> Response:
    """What the client gets."""
    headers = problem.headers | ({"Connection": "close"} if problem.closes else {})
    if problem.retry_after_s is not None:
        headers["Retry-After"] = str(problem.retry_after_s)
    return response_of(problem.status, problem.detail, headers)


def response_to_disconnect() -> Response:
    """To a client that went away while it sent its request."""
    return response_of(400, "the client went away before its request was whole")


def _methods_at(request: Request, routes: Sequence[BaseRoute]) -> list[str]:
    methods: set[str] = set()
    for route in routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= getattr(route, "methods", None) or set()
    return sorted(methods)


def install(app: FastAPI, routes: Sequence[BaseRoute]) -> None:
    """Turn every error of the app into a problem response that shows no internals."""

    @app.exception_handler(Problem)
    async def on_problem(request: Request, error: Problem) -> Response:
        return response_to_problem(error)

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        if error.status_code == 405:
            # Starlette names the methods of the first route at this path only.
            return response_of(405, f"{request.method} is not allowed at {request.url.path}", {"Allow": ", ".join(_methods_at(request, routes))})
        detail = {404: f"there is nothing at {request.url.path}"}
        return response_of(error.status_code, detail.get(error.status_code, str(error.detail)), dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        return response_of(422, "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()))

    @app.exception_handler(ClientDisconnect)
    async def on_disconnect(request: Request, error: ClientDisconnect) -> Response:
        return response_to_disconnect()

    @app.exception_handler(Exception)
    async def on_failure(request: Request, error: Exception) -> Response:
        return response_of(500, "an internal error; the service's log says more")

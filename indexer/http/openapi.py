"""What the OpenAPI document says about each route."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import PlainTextResponse

from indexer.engines.spec import NAME_LENGTH_MAX
from indexer.http.access import OPEN_PATHS, OWN_HEADER, Access
from indexer.http.negotiation import JSON
from indexer.http.pods_page import PAGE_PODS_MAX
from indexer.http.problems import MEDIA_TYPE as PROBLEM
from indexer.http.schemas import COMPONENT

SCHEME = "token"
SCHEMES = {SCHEME: {"type": "http", "scheme": "bearer", "description": f"Or in {OWN_HEADER}, alone."}}
PATH_EXAMPLES = {"pod": "10.0.0.7:8000", "path": "v1/chat/completions"}
PROBLEMS = {
    400: "The body, or the request, is malformed.",
    401: "A token is missing, or is not good.",
    403: "This token is not good for changing pods.",
    404: "There is no such thing.",
    408: "The body took too long.",
    409: "Another indexer follows streams of the pod.",
    413: "The body is over the limit.",
    415: "The body is of another type.",
    422: "A value is wrong; `detail` says which field and what would be right.",
    429: "The bodies of all requests together are too large now.",
    501: "This service does not keep what it would take.",
    502: "No engine said what the tokens are; `detail` says which were asked, and why each failed.",
    503: "The service is starting.",
}


def content(name: str, *media_types: str) -> dict[str, Any]:
    """A body of the type with this name, in each of these media types."""
    return {media_type: {"schema": {"$ref": COMPONENT.format(name=name)}} for media_type in media_types}


def body(content: dict[str, Any], example: dict[str, Any]) -> dict[str, Any]:
    """A request whose body must have this content. `example`: one in JSON; without it `/docs` would send every field, as null."""
    return {"requestBody": {"required": True, "content": {**content, JSON: {**content[JSON], "example": example}}}}


def responses(answer: str, name: str, *problems: int, media_types: tuple[str, ...] = (JSON,)) -> dict[int | str, dict[str, Any]]:
    """The response with status 200, and these problems."""
    documented: dict[int | str, dict[str, Any]] = {200: {"description": answer, "content": content(name, *media_types)}}
    documented.update({status: problem(PROBLEMS[status]) for status in problems})
    return documented


def problem(description: str) -> dict[str, Any]:
    """A response that is a problem."""
    return {"description": description, "content": content("ProblemDetails", PROBLEM)}


PODS: dict[str, Any] = {
    "responses": responses("Every registered pod, or a page of them.", "PodsAnswer", 422),
    "openapi_extra": {
        "parameters": [
            {
                "name": "limit",
                "in": "query",
                "required": False,
                "description": "At most so many pods, by name. Where there are more, `next` in the answer is the `after` of the next page.",
                "schema": {"type": "integer", "minimum": 1, "maximum": PAGE_PODS_MAX},
            },
            {
                "name": "after",
                "in": "query",
                "required": False,
                "description": "Pods behind this name only.",
                "schema": {"type": "string"},
            },
        ]
    },
}
UNAVAILABLE = "Redis, which all replicas share, is away or refuses."
PUT_POD: dict[str, Any] = {
    "responses": {
        **responses("The pod was changed.", "PodStatus", 400, 408, 413, 415, 422, 429),
        201: {"description": "The pod is new.", "content": content("PodStatus", JSON)},
        503: problem(UNAVAILABLE),
    },
    "openapi_extra": body(content("PodSpec", JSON), {"model": "demo/chat", "events": "tcp://10.0.0.7:5557", "replay": "tcp://10.0.0.7:5558"}),
}
DELETE_POD: dict[str, Any] = {
    "responses": {
        204: {"description": "The pod, or its adapter, is forgotten."},
        404: problem(PROBLEMS[404]),
        409: problem(PROBLEMS[409]),
        503: problem(UNAVAILABLE),
    },
    "openapi_extra": {
        "parameters": [
            {
                "name": "lora",
                "in": "query",
                "required": False,
                "description": "Forget the pod's blocks of this LoRA adapter only: its weights are others now.",
                "schema": {"type": "string"},
            }
        ]
    },
}
HEALTH: dict[str, Any] = {"responses": responses("The process lives.", "HealthAnswer")}
READY: dict[str, Any] = {
    "responses": {
        **responses("Ready, or ready and degraded.", "Readiness"),
        503: {"description": PROBLEMS[503], "content": content("Readiness", JSON)},
    }
}
METRICS: dict[str, Any] = {
    "response_class": PlainTextResponse,
    "responses": {200: {"description": "Metrics in the text format of Prometheus.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
}


def install(app: FastAPI, components: dict[str, Any], access: Access) -> None:
    """Make the app's document name our own types. `components`: their JSON schemas by name. `access`: which routes need a token."""

    def make_document() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
            document["components"] = {"schemas": components}
            for path, operations in document["paths"].items():
                for method, operation in operations.items():
                    _correct(operation)
                    _secure(operation, path, access, is_change=method in ("put", "delete") and path.startswith("/v1/pods"))
            if access.changes_need_token:
                document["components"]["securitySchemes"] = SCHEMES
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = make_document  # type: ignore[method-assign]  # FastAPI's documented way to replace the document


def _secure(operation: dict[str, Any], path: str, access: Access, *, is_change: bool) -> None:
    """State whether the operation needs a token."""
    if path in OPEN_PATHS or not (access.needs_token or (is_change and access.changes_need_token)):
        return
    operation["security"] = [{SCHEME: []}]
    challenge = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    operation["responses"]["401"] = {**problem(PROBLEMS[401]), "headers": challenge}
    if is_change and access.needs_token and access.has_admin_tokens:
        operation["responses"]["403"] = problem(PROBLEMS[403])


def _correct(operation: dict[str, Any]) -> None:
    """Remove FastAPI's own validation errors, which no route here responds with, and bound the names of pods."""
    responses = operation["responses"]
    if responses.get("422", {}).get("content", {}).get(JSON) is not None:
        del responses["422"]["content"][JSON]
        if not responses["422"]["content"]:
            del responses["422"]
    for parameter in operation.get("parameters", ()):
        if parameter["name"] in PATH_EXAMPLES:
            parameter["example"] = PATH_EXAMPLES[parameter["name"]]
        if parameter["name"] == "pod":
            parameter["schema"] |= {"minLength": 1, "maxLength": NAME_LENGTH_MAX}

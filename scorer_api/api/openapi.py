"""The bodies and responses of the routes that answer from the prefix index, for the OpenAPI document."""

from typing import Any

from fastapi import Response

from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.openapi import PROBLEMS, body, content, problem, responses

# What `kv-indexer demo` answers. A word is a token there, and all prompts of its engines begin with the tokens 1 to 64.
EXAMPLE = {"model": "demo/chat", "prompt": " ".join(map(str, range(1, 66)))}
CLIENT_EXAMPLE = {"model": "demo/chat", "messages": [{"role": "user", "content": EXAMPLE["prompt"]}], "stream": True}

SCORE: dict[str, Any] = {
    "responses": responses(
        "Every pod of the model, best first.", "ScoreAnswer", 400, 404, 408, 413, 415, 422, 429, 501, 502, media_types=(JSON, MSGPACK)
    ),
    "openapi_extra": body({**content("ScoreRequest", JSON), **content("ScoreRequestMsgpack", MSGPACK)}, EXAMPLE),
}
BATCH: dict[str, Any] = {
    "responses": responses(
        "An answer or a problem for each request, in their order.", "BatchAnswer", 400, 408, 413, 415, 422, 429, media_types=(JSON, MSGPACK)
    ),
    "openapi_extra": body({**content("BatchRequest", JSON), **content("BatchRequestMsgpack", MSGPACK)}, {"requests": [EXAMPLE]}),
}
EXPLAIN: dict[str, Any] = {
    "responses": responses(
        "Why each pod matches as it does.", "ExplainAnswer", 400, 404, 408, 413, 415, 422, 429, 501, 502, media_types=(JSON, MSGPACK)
    ),
    "openapi_extra": SCORE["openapi_extra"],
}
ROUTE: dict[str, Any] = {
    "responses": {
        **responses("The pod to send the prompt to.", "RouteAnswer", 400, 404, 408, 413, 415, 422, 429, 501, 502, media_types=(JSON, MSGPACK)),
        503: problem("No pod can be picked; `detail` says why."),
    },
    "openapi_extra": body({**content("RouteRequest", JSON), **content("RouteRequestMsgpack", MSGPACK)}, EXAMPLE),
}
CANDIDATES: dict[str, Any] = {
    "responses": responses(
        "What a pick would be made from.", "CandidatesAnswer", 400, 404, 408, 413, 415, 422, 429, 501, 502, media_types=(JSON, MSGPACK)
    ),
    "openapi_extra": ROUTE["openapi_extra"],
}
DONE: dict[str, Any] = {
    "responses": responses("Nothing counts of the request any more.", "DoneAnswer", 400, 408, 413, 415, 422, 429, media_types=(JSON, MSGPACK)),
    "openapi_extra": body(content("DoneRequest", JSON, MSGPACK), {"id": "0123456789abcdef"}),
}
_HEADER = {"schema": {"type": "string"}}
_PICKED = {
    "description": "The pod to send the request to, in headers.",
    "headers": {
        "x-gateway-destination-endpoint": {**_HEADER, "description": "address:port of the pod."},
        "x-kv-fallbacks": {**_HEADER, "description": "Those of the pods to try after it, separated by commas; left out where there are none."},
        "x-kv-request-id": {**_HEADER, "description": "For DELETE /v1/pick/{id} or /v1/route/done, once the request is over."},
        "x-kv-picked-for": {**_HEADER, "description": "Why this pod is the first."},
        "x-kv-by-load": {**_HEADER, "description": "Why it was picked by load; left out where it was picked by its prompt."},
    },
}
_PICK_PROBLEMS = {
    400: "The body is malformed JSON.",
    404: "No pod is registered for the model.",
    503: "No pod can be picked.",
}
_PICK: dict[int | str, Any] = {
    200: _PICKED,
    **{status: {"description": text, "content": content("PickError", JSON)} for status, text in _PICK_PROBLEMS.items()},
    **{status: problem(PROBLEMS[status]) for status in (408, 429)},
}
PICK: dict[str, Any] = {"response_class": Response, "responses": _PICK}
PICK_BODY: dict[str, Any] = {
    "response_class": Response,
    "responses": _PICK,
    "openapi_extra": {"requestBody": {"required": False, "content": {JSON: {"schema": {"type": "object"}, "example": CLIENT_EXAMPLE}}}},
}
PICK_DONE: dict[str, Any] = {
    "response_class": Response,
    "responses": {**_PICK, 204: {"description": "The picked request with this id counts no more."}},
}
MODELS: dict[str, Any] = {"responses": responses("Every known model.", "ModelsAnswer")}
HOT_LIMIT_MAX, HOT_LIMIT = 200, 50
HOT: dict[str, Any] = {
    "responses": responses("The prefixes that are asked for most.", "HotAnswer", 422, 501),
    "openapi_extra": {
        "parameters": [
            {
                "name": "model",
                "in": "query",
                "required": False,
                "description": "Prefixes of this model only.",
                "schema": {"type": "string"},
            },
            {
                "name": "limit",
                "in": "query",
                "required": False,
                "description": "At most so many.",
                "schema": {"type": "integer", "minimum": 1, "maximum": HOT_LIMIT_MAX, "default": HOT_LIMIT},
            },
        ]
    },
}

"""The bodies and responses of the routes that answer from the prefix index, for the OpenAPI document."""

from typing import Any

from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.openapi import body, content, problem, responses

SCORE: dict[str, Any] = {
    "responses": responses(
        "Every pod of the model, best first.", "ScoreAnswer", 400, 404, 408, 413, 415, 422, 429, 501, 502, media_types=(JSON, MSGPACK)
    ),
    "openapi_extra": body({**content("ScoreRequest", JSON), **content("ScoreRequestMsgpack", MSGPACK)}),
}
BATCH: dict[str, Any] = {
    "responses": responses(
        "An answer or a problem for each request, in their order.", "BatchAnswer", 400, 408, 413, 415, 422, 429, media_types=(JSON, MSGPACK)
    ),
    "openapi_extra": body({**content("BatchRequest", JSON), **content("BatchRequestMsgpack", MSGPACK)}),
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
    "openapi_extra": body({**content("RouteRequest", JSON), **content("RouteRequestMsgpack", MSGPACK)}),
}
DONE: dict[str, Any] = {
    "responses": responses("Nothing counts of the request any more.", "DoneAnswer", 400, 408, 413, 415, 422, 429, media_types=(JSON, MSGPACK)),
    "openapi_extra": body(content("DoneRequest", JSON, MSGPACK)),
}
MODELS: dict[str, Any] = {"responses": responses("Every known model.", "ModelsAnswer")}

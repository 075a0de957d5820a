"""The bodies and responses of the routes for cells, for the OpenAPI document."""

from typing import Any

from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.openapi import problem, responses
from scorer_api.api import components, openapi
from scorer_api.cells.schemas import CellsRouteAnswer, CellsScoreAnswer

_CODES = (400, 404, 408, 413, 415, 422, 429)
_NO_CELL = {503: problem("No cell answers; `detail` says why.")}

SCORE: dict[str, Any] = {
    "responses": {**responses("Every pod of the model, best first.", "CellsScoreAnswer", *_CODES, media_types=(JSON, MSGPACK)), **_NO_CELL},
    "openapi_extra": openapi.SCORE["openapi_extra"],
}
ROUTE: dict[str, Any] = {
    "responses": {**responses("The pod to send the prompt to.", "CellsRouteAnswer", *_CODES, media_types=(JSON, MSGPACK)), **_NO_CELL},
    "openapi_extra": openapi.ROUTE["openapi_extra"],
}
DONE: dict[str, Any] = {**openapi.DONE, "responses": {**openapi.DONE["responses"], **_NO_CELL}}
MODELS = openapi.MODELS


def schemas() -> dict[str, Any]:
    """The JSON schema of each type of these routes, by name."""
    return components.components(CellsScoreAnswer, CellsRouteAnswer, allows_ipc=False)

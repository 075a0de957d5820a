"""The JSON schemas of this API's requests and answers, for the OpenAPI document."""

from typing import Any

from indexer.core.block_keys import TOKEN_MAX
from indexer.http import schemas
from scorer_api.api.pick_schemas import PickError
from scorer_api.api.route_schemas import CandidatesAnswer, DoneAnswer, DoneRequest, RouteAnswer, RouteRequest
from scorer_api.api.schemas import BATCH_REQUESTS_MAX, SOURCES, BatchProblem, ExplainAnswer, HotAnswer, ModelsAnswer, ScoreAnswer, ScoreRequest

HASH = {"type": "integer", "minimum": 0, "maximum": 2**64 - 1}
_OBJECTS = {"type": "array", "items": {"type": "object"}}
CHAT: dict[str, Any] = {
    "messages": {
        "anyOf": [{**_OBJECTS, "examples": [[{"role": "user", "content": "Hello"}]]}, {"type": "null"}],
        "description": "The chat, as the engine's chat completions take it; its chat template makes a prompt of it.",
        "default": None,
    },
    "tools": {"anyOf": [_OBJECTS, {"type": "null"}], "description": "The tools of the chat.", "default": None},
    "chat_template_kwargs": {"anyOf": [{"type": "object"}, {"type": "null"}], "description": "More for the chat template.", "default": None},
    "documents": {"anyOf": [_OBJECTS, {"type": "null"}], "description": "Documents for the chat template.", "default": None},
    "mm_processor_kwargs": {"anyOf": [{"type": "object"}, {"type": "null"}], "description": "More for the engine's processor.", "default": None},
}
EXTRA_KEY = [{"type": "string"}, {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}]


TYPES: tuple[Any, ...] = (
    *(ScoreRequest, ScoreAnswer, BatchProblem, ExplainAnswer, ModelsAnswer, HotAnswer),
    *(RouteRequest, RouteAnswer, CandidatesAnswer, DoneRequest, DoneAnswer, PickError),
)


def components(*more: Any, allows_ipc: bool) -> dict[str, Any]:
    """The JSON schema of each type of this API, of the common ones and of `more`, by name. `allows_ipc`: whether a pod may be at ipc://."""
    found = schemas.components(*TYPES, *more, allows_ipc=allows_ipc)
    for name in ("ScoreRequest", "RouteRequest"):
        _describe_request(found[name])
        found[f"{name}Msgpack"] = _in_msgpack(found[name])
    found["BatchAnswer"] = _batch_answer()
    return {**found, "BatchRequest": _batch_of("ScoreRequest"), "BatchRequestMsgpack": _batch_of("ScoreRequestMsgpack")}


def _describe_request(request: dict[str, Any]) -> None:
    """Add to a request's schema what its type does not express."""
    # Not in the type: the range is checked when the tokens are packed, which is faster.
    _non_null(request, "token_ids")["items"] = {"type": "integer", "minimum": 0, "maximum": TOKEN_MAX}
    entry = _non_null(request, "block_extra_keys")["items"]["prefixItems"][1]
    request["properties"] |= CHAT
    as_tokens = next(form for form in request["properties"]["prompt"]["anyOf"] if form.get("type") == "array")
    as_tokens["items"] = {"type": "integer", "minimum": 0, "maximum": TOKEN_MAX}
    entry["items"] = {"anyOf": [*EXTRA_KEY, {"type": "array", "items": {"anyOf": EXTRA_KEY}}]}
    digits = next(item for item in _non_null(request, "block_hashes")["items"]["anyOf"] if item["type"] == "string")
    _non_null(request, "block_hashes")["items"] = {"anyOf": [HASH, digits]}
    # Those of engines' APIs are passed over. Names close to one of ours are refused, which no schema can express.
    request["additionalProperties"] = True
    request["oneOf"] = [{"required": [name], "properties": {name: {"type": ["array", "string"]}}} for name in SOURCES]


def _non_null(schema: dict[str, Any], name: str) -> dict[str, Any]:
    """The schema of a nullable field's values other than null."""
    given: dict[str, Any] = schema["properties"][name]["anyOf"][0]
    return given


def _in_msgpack(schema: dict[str, Any]) -> dict[str, Any]:
    """The request's schema in msgpack. OpenAPI describes bin as a string of format binary."""
    properties = schema["properties"]
    as_list, null = properties["token_ids"]["anyOf"]
    as_bin = {"type": "string", "format": "binary", "description": "bin: little-endian uint32, 4 bytes a token."}
    tokens = {**properties["token_ids"], "anyOf": [as_list, as_bin, null]}
    # Hashes may be bin too, as the description says. A schema for that would make validators reject the whole list.
    hashes = {**properties["block_hashes"], "anyOf": [{**_non_null(schema, "block_hashes"), "items": HASH, "examples": [[1, 2, 3]]}, null]}
    return {**schema, "properties": {**properties, "token_ids": tokens, "block_hashes": hashes}}


def _batch_of(name: str) -> dict[str, Any]:
    """The schema of a batch. An item that is not a request is accepted, and gets a problem of its own."""
    item: dict[str, Any] = {"description": f"A {name}; anything else gets a problem of its own."}
    if name == "ScoreRequest":  # not in msgpack: no validator can check bin
        item["anyOf"] = [{"$ref": schemas.COMPONENT.format(name=name)}, {}]
    requests = {"type": "array", "items": item, "maxItems": BATCH_REQUESTS_MAX, "description": "The requests, answered in this order."}
    return {"title": name.replace("Score", "Batch"), "type": "object", "properties": {"requests": requests}, "required": ["requests"]} | {
        "additionalProperties": False
    }


def _batch_answer() -> dict[str, Any]:
    item = {"anyOf": [{"$ref": schemas.COMPONENT.format(name=name)} for name in ("ScoreAnswer", "BatchProblem")]}
    answers = {"type": "array", "items": item, "maxItems": BATCH_REQUESTS_MAX, "description": "One for each request, in their order."}
    return {"title": "BatchAnswer", "type": "object", "properties": {"answers": answers}, "required": ["answers"]}

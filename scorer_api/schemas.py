"""What requests about scores and models, and their answers, look like."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType

from indexer.http import schemas
from indexer.store import Trust

TOKEN_MAX = 2**32 - 1
TEXT_LENGTH_MAX = 4_096

Text = Annotated[str, Meta(max_length=TEXT_LENGTH_MAX)]
BlockExtraKeys = Annotated[
    list[tuple[Annotated[int, Meta(ge=0, le=2**32)], list[Any]]],
    Meta(description="[block number, [extra key, …]] for multimodal content, as the engine announces it.", examples=[[[0, [["img", -1]]]]]),
]
TokenIds = Annotated[
    list[int],
    Meta(
        description=f"The prompt's tokens, each from 0 to {TOKEN_MAX}. In msgpack also bin: little-endian uint32, 4 bytes a token.",
        examples=[[1, 2, 3]],
    ),
]


class ScoreRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Which pods hold the longest prefix of this prompt?"""

    model: Annotated[str, Meta(description="The model that the pods serve.")]
    token_ids: TokenIds
    pods: Annotated[list[str] | None, Meta(description="Only these pods; unknown names are ignored and returned under unknown_pods.")] = None
    lora_name: Annotated[Text | None, Meta(description="The LoRA adapter of the request.")] = None
    cache_salt: Annotated[Text | None, Meta(description="The cache salt of the request.")] = None
    block_extra_keys: BlockExtraKeys | None = None
    limit: Annotated[int, Meta(ge=1, description="Only the first so many pods.")] | None = None


class ScoreRequestMsgpack(ScoreRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same in msgpack, where the tokens may also be packed."""

    token_ids: list[int] | bytes  # type: ignore[assignment]  # wider than in JSON, on purpose


class PodAnswer(Struct, frozen=True):
    """A pod's figures are those of its best rank; `ranks` has each rank's matched blocks."""

    pod: str
    score: Annotated[float, Meta(ge=0, le=1, description="Tier-weighted matched tokens as a part of the prompt's tokens less one.")]
    matched_tokens: int
    matched_blocks: int
    usable_blocks: Annotated[int, Meta(description="How many blocks of this prompt the engine could take from its cache.")]
    block_size: Annotated[int | None, Meta(description="Tokens per block; null before the pod has announced any.")]
    tiers: Annotated[dict[str, int], Meta(description="Matched blocks by the best tier that holds them.")]
    rank: int
    ranks: dict[str, int]
    trust: Trust


class ViewAnswer(Struct, frozen=True):
    """What the answer was made from, and the age of its newest word from the indexer."""

    source: str
    age_s: float


class ScoreAnswer(Struct, frozen=True):
    """Every known pod of the model, best first, zeros included."""

    model: str
    tokens: int
    best: Annotated[str | None, Meta(description="The first pod, null when nothing matches.")]
    pods: list[PodAnswer]
    view: ViewAnswer
    unknown_pods: list[str] | UnsetType = UNSET


class ModelAnswer(Struct, frozen=True):
    """A model is known when a pod of it is registered."""

    model: str
    pods: list[str]


class ModelsAnswer(Struct, frozen=True):
    """Every known model."""

    models: list[ModelAnswer]


EXTRA_KEY = [{"type": "string"}, {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}]


def components(*, allows_ipc: bool) -> dict[str, Any]:
    """The JSON schemas of these and of the common types, by name, for the OpenAPI document. `allows_ipc`: whether a pod may be at ipc://."""
    found = schemas.components(ScoreRequest, ScoreAnswer, ModelsAnswer, allows_ipc=allows_ipc)
    # The range is checked when the tokens are packed, not one by one while they are decoded; the document has it all the same.
    found["ScoreRequest"]["properties"]["token_ids"]["items"] = {"type": "integer", "minimum": 0, "maximum": TOKEN_MAX}
    entry = found["ScoreRequest"]["properties"]["block_extra_keys"]["anyOf"][0]["items"]["prefixItems"][1]
    entry["items"] = {"anyOf": [*EXTRA_KEY, {"type": "array", "items": {"anyOf": EXTRA_KEY}}]}
    return {**found, "ScoreRequestMsgpack": _packed(found["ScoreRequest"])}


def _packed(schema: dict[str, Any]) -> dict[str, Any]:
    """The request's schema in msgpack. JSON schema has no word for bin; OpenAPI's is a string of format binary."""
    as_list = schema["properties"]["token_ids"]
    as_bin = {"type": "string", "format": "binary", "description": "bin: little-endian uint32, 4 bytes a token."}
    return {**schema, "properties": {**schema["properties"], "token_ids": {"anyOf": [as_list, as_bin]}}}

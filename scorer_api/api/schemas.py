"""The types of requests for scores, batches, explanations and models, and of their answers."""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from indexer.core.block_keys import TOKEN_MAX
from indexer.core.names import Trust
from indexer.http.problems import ProblemDetails
from scorer_api.explain.hints import Hint
from scorer_api.explain.reasons import About, PodExplained

TEXT_LENGTH_MAX = 4_096
BATCH_REQUESTS_MAX = 256

SOURCES = ("token_ids", "prompt", "messages", "block_hashes")
"""The fields that a prompt's tokens can come from: a request has exactly one of them."""

Text = Annotated[str, Meta(max_length=TEXT_LENGTH_MAX)]
BLOCK_NUMBER_MAX = 2**32
BlockExtraKeys = Annotated[
    list[tuple[Annotated[int, Meta(ge=0, le=BLOCK_NUMBER_MAX)], list[Any]]],
    Meta(description="[block number, [extra key, …]] for multimodal content, as the engine announces it.", examples=[[[0, [["img", -1]]]]]),
]
TokenIds = Annotated[
    list[int],
    Meta(
        description=f"The prompt's tokens, each from 0 to {TOKEN_MAX}. In msgpack also bin: little-endian uint32, 4 bytes a token.",
        examples=[[1, 2, 3]],
    ),
]
PROMPT = Meta(
    description="The prompt as text, whose tokens the engine, or --tokenizer, says; or its tokens, as the completions of engines take them."
)

# At 16 tokens a block these are four million tokens.
BLOCK_HASHES_MAX = 262_144
HexDigits = Annotated[str, Meta(pattern="^([0-9a-fA-F]{2}){8,64}$")]
BLOCK_HASHES = Meta(
    description="The engine's own hashes of the prompt's blocks, from the first: unsigned 64-bit integers or hexadecimal digits; in msgpack bin.",
    max_length=BLOCK_HASHES_MAX,
    examples=[[1, 2, 3], ["9f86d081884c7d65"]],
)


class ScoreRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Which pods hold the longest prefix of this prompt?"""

    model: Annotated[str, Meta(description="The model that the pods serve.")]
    token_ids: TokenIds | None = None
    pods: Annotated[list[str] | None, Meta(description="Only these pods; unknown names are ignored and returned under unknown_pods.")] = None
    lora_name: Annotated[Text | None, Meta(description="The LoRA adapter of the request.")] = None
    cache_salt: Annotated[Text | None, Meta(description="The cache salt of the request.")] = None
    block_extra_keys: BlockExtraKeys | None = None
    limit: Annotated[int, Meta(ge=1, description="Only the first so many pods.")] | None = None
    include_speculative: Annotated[
        bool, Meta(description="Whether blocks of prompts that this scorer has just routed to a pod count as held, though not announced yet.")
    ] = False
    prompt: Annotated[str | list[int] | None, PROMPT] = None
    # In JSON, also in a request in msgpack once it is decoded: it is passed on as it is.
    messages: Raw | UnsetType = UNSET
    tools: Raw | UnsetType = UNSET
    chat_template_kwargs: Raw | UnsetType = UNSET
    add_generation_prompt: Annotated[bool, Meta(description="Whether the answer's beginning is part of the chat (default true).")] | None = None
    continue_final_message: Annotated[bool, Meta(description="Whether the chat's last message is continued by the answer.")] | None = None
    documents: Raw | UnsetType = UNSET
    reasoning_effort: Annotated[Text, Meta(description="How much to reason, for the chat template.")] | None = None
    chat_template: Annotated[str, Meta(description="Another chat template; engines refuse one unless they trust it.")] | None = None
    mm_processor_kwargs: Raw | UnsetType = UNSET
    block_hashes: Annotated[list[int | HexDigits], BLOCK_HASHES] | None = None


class ScoreRequestMsgpack(ScoreRequest, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The same in msgpack, where the tokens may also be packed."""

    token_ids: list[int] | bytes | None = None  # type: ignore[assignment]  # wider than in JSON, on purpose
    block_hashes: Annotated[list[int | bytes], BLOCK_HASHES] | None = None  # type: ignore[assignment]  # likewise


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
    speculative_blocks: Annotated[int, Meta(description="Matched blocks that are not announced yet; with include_speculative only.")] | UnsetType = (
        UNSET
    )


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


class BatchProblem(Struct, frozen=True):
    """What stands in place of an answer to a request of a batch that has none."""

    problem: ProblemDetails


class ExplainAnswer(Struct, frozen=True):
    """Why each pod holds as much of a prompt as it does; every known pod of the model, best first."""

    model: str
    tokens: int
    source: Annotated[str, Meta(description="The field that the tokens came from.")]
    pods: list[PodExplained]
    about: About
    hints: list[Hint]
    view: ViewAnswer
    unknown_pods: list[str] | UnsetType = UNSET


class ModelAnswer(Struct, frozen=True):
    """A model is known when a pod of it is registered."""

    model: str
    pods: list[str]


class ModelsAnswer(Struct, frozen=True):
    """Every known model."""

    models: list[ModelAnswer]


class HotPrefixAnswer(Struct, frozen=True):
    """A prefix that prompts begin with. Counts decay: what was asked for a half-life ago counts half."""

    model: str
    prefix: Annotated[str, Meta(description="The key of its last block, 16 hexadecimal digits; it stands for all blocks up to there.")]
    parent: Annotated[str | None, Meta(description="The hot prefix that this one continues; null where it continues none.")]
    blocks: int
    tokens: int
    requests: Annotated[float, Meta(description="How many prompts began with it, those of a half-life ago by half.")]
    share: Annotated[float, Meta(ge=0, le=1, description="Their part of all prompts of the model.")]
    asked_age_s: Annotated[float, Meta(description="Seconds since the last of them.")]
    held: Annotated[dict[str, int], Meta(description="Pod → how many of the tokens it holds now; pods that hold none are left out.")]


class HotAnswer(Struct, frozen=True):
    """The prefixes that are asked for most, those first; one is never before the one that it continues."""

    half_life_s: float
    prefixes: list[HotPrefixAnswer]

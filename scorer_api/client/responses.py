"""What the service answers, as the client reads it.

Fields that a newer service has are passed over, and words (trust, tier, reason) are text here, so that a newer service's word is no error.
"""

from msgspec import Struct


class ViewAnswer(Struct, frozen=True):
    """What an answer was made from, and the age of its newest word from the indexer, in seconds."""

    source: str
    age_s: float


class PodAnswer(Struct, frozen=True):
    """A pod's figures are those of its best rank.

    `score`: tier-weighted matched tokens as a part of the prompt's tokens less one, 0 to 1. `usable_blocks`: how many blocks of this prompt the
    engine could take from its cache. `block_size`: tokens per block, None before the pod announced any. `tiers`: matched blocks by the best tier that
    holds them. `ranks`: each rank's matched blocks. `trust`: live, partial, stale or expired. `speculative_blocks`: those of the matched ones that
    are not announced yet, with `include_speculative` only.
    """

    pod: str
    score: float
    matched_tokens: int
    matched_blocks: int
    usable_blocks: int
    block_size: int | None
    tiers: dict[str, int]
    rank: int
    ranks: dict[str, int]
    trust: str
    speculative_blocks: int = 0


class ScoreAnswer(Struct, frozen=True):
    """Every known pod of the model, best first, zeros included.

    `tokens`: of the prompt. `best`: the first pod, None when nothing matches. `unknown_pods`: requested names that the service does not know.
    """

    model: str
    tokens: int
    best: str | None
    pods: list[PodAnswer]
    view: ViewAnswer
    unknown_pods: list[str] = []


class End(Struct, frozen=True):
    """Why a match ended.

    `reason`: one of a closed list, see the service's documentation. `block`: number of the first block that does not match, None where nothing
    ended it. `detail`: a sentence. `sequence`: the batch that removed the block, where that is known.
    """

    reason: str
    block: int | None
    detail: str
    sequence: int | None = None


class ExplainedRank(Struct, frozen=True):
    """One rank's match. `runs`: the matched blocks in order, as (best tier, how many blocks)."""

    rank: int
    trust: str
    block_size: int | None
    matched_blocks: int
    usable_blocks: int
    runs: list[tuple[str, int]]
    end: End


class PodLoad(Struct, frozen=True):
    """The load of a pod. `running`, `waiting`: requests. `kv_usage`: share of its cache in use, 0 to 1, None where its engine does not report it."""

    running: int
    waiting: int
    kv_usage: float | None
    age_s: float


class ExplainedPod(Struct, frozen=True):
    """A pod's match, with the figures of its best rank. `why`: a sentence. `load`: None where it is not known, or too old. `ready`: whether it may be
    picked."""

    pod: str
    score: float
    matched_tokens: int
    matched_blocks: int
    usable_blocks: int
    block_size: int | None
    trust: str
    rank: int
    why: str
    ranks: list[ExplainedRank]
    load: PodLoad | None = None
    ready: bool = True


class ExplainedModel(Struct, frozen=True):
    """What is known of the model. `pods`: how many. `last_event_age_s`: seconds since any of them announced anything."""

    pods: int
    block_sizes: list[int]
    adapters: list[str]
    last_event_age_s: float | None


class Hint(Struct, frozen=True):
    """A classic mistake that this looks like. `detail`: what to look at and how to mend it."""

    code: str
    detail: str


class ExplainAnswer(Struct, frozen=True):
    """Every known pod of the model, best first, and why its match ends where it does.

    `source`: what the tokens came from: token_ids, prompt, messages or block_hashes.
    """

    model: str
    tokens: int | None
    source: str
    pods: list[ExplainedPod]
    about: ExplainedModel
    hints: list[Hint]
    view: ViewAnswer
    unknown_pods: list[str] = []


class RoutedPod(Struct, frozen=True):
    """What was known of a pod at a pick.

    Tokens are the prompt's, but for `queued_tokens`. `running`, `waiting` (requests) and `kv_usage` (0 to 1) are None where its load is unknown;
    `load_age_s`: age of its load in seconds, None where there is none. `why`: excluded, not_ready, expired, stale; None where it may be picked.
    """

    rank: int
    matched_tokens: int
    speculative_tokens: int
    uncached_tokens: int
    queued_tokens: int
    running: int | None
    waiting: int | None
    kv_usage: float | None
    load_age_s: float | None
    cost_s: float
    trust: str
    why: str | None = None


class RouteAnswer(Struct, frozen=True):
    """The pod to send the prompt to, and the others in the order in which to try them.

    `id`: for `route_done`, once the request is over. `picked_for`: one of a closed list, see the service's documentation. `reason`: by pod. `http`:
    the base URL of the API of the pod and of each fallback, by pod; empty where an older service does not say it.
    """

    model: str
    tokens: int
    id: str
    pod: str
    rank: int
    fallbacks: list[str]
    policy: str
    picked_for: str
    reason: dict[str, RoutedPod]
    view: ViewAnswer
    unknown_pods: list[str] = []
    http: dict[str, str] = {}


class DoneAnswer(Struct, frozen=True):
    """`known`: whether the request still counted at the scorer that was asked."""

    id: str
    known: bool


class StreamStatus(Struct, frozen=True):
    """The events of one rank of a pod.

    `sequence`: the last batch applied, None before the first and after a restart. `blocks`: held at present, by tier. `batches`, `gaps`, `replayed`
    (batches) and `restarts` are counts since the service followed it. `last_batch_age_s`: seconds. `adapters`: LoRA adapters that it announced.
    """

    rank: int
    sequence: int | None
    trust: str
    connected: bool
    block_size: int | None
    blocks: dict[str, int]
    batches: int
    gaps: int
    replayed: int
    restarts: int
    last_batch_age_s: float | None
    last_error: str | None
    owner: str | None = None
    adapters: list[str] = []


class PodStatus(Struct, frozen=True):
    """A pod, and its streams by rank.

    `ready`: whether requests may go there, as discovery says. `name`: what people call it, and `discovered_by`: the source that shows it; both empty
    where it was not discovered.
    """

    pod: str
    model: str
    streams: list[StreamStatus]
    ready: bool = True
    name: str = ""
    discovered_by: str = ""


class PodsAnswer(Struct, frozen=True):
    """Every registered pod."""

    pods: list[PodStatus]


class HotPrefix(Struct, frozen=True):
    """A prefix that prompts begin with, by the key of its last block. `parent`: the hot prefix that it continues.

    `requests`: how many prompts, those of a half-life ago by half; `share`: their part of all of the model. `held`: pod → tokens of it held now.
    """

    model: str
    prefix: str
    parent: str | None
    blocks: int
    tokens: int
    requests: float
    share: float
    asked_age_s: float
    held: dict[str, int]


class HotAnswer(Struct, frozen=True):
    """The prefixes that are asked for most, those first."""

    half_life_s: float
    prefixes: list[HotPrefix]


class Problem(Struct, frozen=True):
    """`application/problem+json`."""

    title: str
    status: int
    detail: str

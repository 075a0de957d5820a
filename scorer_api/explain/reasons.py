"""Why a prompt matches as far as it does, and no further: reasons and sentences, from what is known of streams and blocks. Pure.

What is said of a block depends on its block key alone, so a block that is held under another cache salt is to all others like one that no pod has.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

from indexer.core.groups import UNDECIDED
from indexer.core.names import Trust
from scorer_api.index.traces import PodTrace, RankTrace


class Reason(StrEnum):
    """Why a rank's match ends where it does."""

    WHOLE_PROMPT = "whole_prompt"
    PROMPT_TOO_SHORT = "prompt_too_short"
    NEVER_STORED = "never_stored"
    REMOVED = "removed"
    REMOTE_ONLY = "remote_only"
    NOTHING_ANNOUNCED = "nothing_announced"
    STREAM_STALE = "stream_stale"
    STREAM_PARTIAL = "stream_partial"
    STREAM_EXPIRED = "stream_expired"
    OTHER_BLOCK_SIZE = "other_block_size"
    LORA_UNKNOWN = "lora_unknown"


class StreamFacts(Struct, frozen=True):
    """What is known of a stream besides its blocks: the fields of its status that show mistakes."""

    pod: str
    rank: int
    sequence: int | None
    trust: Trust
    connected: bool
    batches: int
    gaps: int
    replayed: int
    blocks: dict[str, int]
    last_batch_age_s: float | None
    last_error: str | None
    highest_token: int | None = None
    other_block_size: int | None = None
    undecided: tuple[str, ...] = ()
    is_followed: bool = True
    """Whether any indexer follows it."""


class PromptFacts(Struct, frozen=True):
    """What is asked about. `adapters`: the known ones of the model; with `knows_adapters` off, some of them only.

    `asked`: how many prompts were scored for the model. `unmatched`: how many of them since the last one that matched anywhere.
    """

    source: str
    tokens: int
    highest_token: int | None = None
    lora_name: str | None = None
    adapters: frozenset[str] = frozenset()
    knows_adapters: bool = True
    asked: int = 0
    unmatched: int = 0

    @property
    def has_unknown_lora(self) -> bool:
        return self.lora_name is not None and self.knows_adapters and self.lora_name not in self.adapters


class End(Struct, frozen=True):
    """Where and why a rank's match ends."""

    reason: Reason
    block: Annotated[int | None, Meta(description="Number of the first block that does not match; null when nothing ended it.")]
    detail: str
    sequence: Annotated[int | None, Meta(description="Of the engine's batch that removed the block, where that is known.")] = None


class RankExplained(Struct, frozen=True):
    """One rank's match."""

    rank: int
    trust: Trust
    block_size: int | None
    matched_blocks: int
    usable_blocks: int
    runs: Annotated[list[tuple[str, int]], Meta(description="The matched blocks in order: [tier, blocks], by the best tier that holds them.")]
    end: End


class PodLoad(Struct, frozen=True):
    """How busy a pod is, as its engine said it."""

    running: Annotated[int, Meta(description="Running requests.")]
    waiting: Annotated[int, Meta(description="Waiting requests.")]
    kv_usage: Annotated[float | None, Meta(description="Part of its cache that requests use, 0 to 1; null where the engine does not tell.")]
    age_s: float


class PodExplained(Struct, frozen=True):
    """A pod's figures are those of its best rank, as in a score."""

    pod: str
    score: float
    matched_tokens: int
    matched_blocks: int
    usable_blocks: int
    block_size: int | None
    trust: Trust
    ready: Annotated[bool, Meta(description="Whether requests may go there, as discovery says; where none looks for it, true.")]
    rank: int
    why: str
    load: Annotated[PodLoad | None, Meta(description="Null where it is not known, or too old.")]
    ranks: list[RankExplained]


class About(Struct, frozen=True):
    """What is known of the model."""

    pods: int
    block_sizes: list[int]
    adapters: Annotated[list[str], Meta(description="Names of LoRA adapters that engines announced or that are configured.")]
    last_event_age_s: Annotated[float | None, Meta(description="Since the last batch of events of any pod; null before the first.")]


# Each rank


def explain_rank(trace: RankTrace, prompt: PromptFacts, stream: StreamFacts | None = None) -> End:
    """Why this rank's match ends. `stream`: its own, where its status is known."""
    block, subject = trace.end, _subject(trace)
    last_error = None if stream is None else stream.last_error
    if trace.trust is Trust.EXPIRED:
        return End(Reason.STREAM_EXPIRED, 0, f"the pod has been away for too long, and its blocks were dropped{_because(last_error)}")
    if trace.block_size is None:
        if trace.trust is Trust.STALE:
            return End(Reason.STREAM_STALE, 0, f"nothing is held, and the stream is not confirmed at present{_because(last_error)}")
        return End(Reason.NOTHING_ANNOUNCED, 0, "the engine has announced no block since its start")
    if not trace.usable_blocks:
        least = trace.block_size * (1 + trace.dropped_blocks) + 1
        again = f" that the engine does not compute again (drops_last_block={trace.dropped_blocks})" if trace.dropped_blocks else ""
        return End(
            Reason.PROMPT_TOO_SHORT,
            None,
            f"a prompt of {prompt.tokens} tokens has no whole block before its last token{again}; it takes {least} tokens",
        )
    if trace.matched_blocks >= trace.usable_blocks:
        return End(Reason.WHOLE_PROMPT, None, f"every block that the engine could take from its cache matches{_undecided(stream)}")
    if trace.is_remote:
        return End(Reason.REMOTE_ONLY, block, f"block {block} is held only in remote storage, which is nobody's own and does not count")
    if trace.removal is not None:
        sequence = trace.removal.sequence
        at = "" if sequence is None else f" with batch {sequence}"
        return End(Reason.REMOVED, block, f"{subject} was held and the engine removed it{at}", sequence)
    return _explain_unknown_block(trace, prompt, stream)


def _explain_unknown_block(trace: RankTrace, prompt: PromptFacts, stream: StreamFacts | None) -> End:
    """Nothing is known of the block."""
    block, subject = trace.end, _subject(trace)
    last_error = None if stream is None else stream.last_error
    if not block and prompt.has_unknown_lora:
        return End(Reason.LORA_UNKNOWN, block, f"no adapter {prompt.lora_name!r} is known of this model, and block {block} depends on it")
    if stream is not None and stream.other_block_size is not None:
        passed_over = f"announcements of blocks of {stream.other_block_size} tokens were passed over, since this pod's are of {trace.block_size}"
        return End(Reason.OTHER_BLOCK_SIZE, block, f"{subject} is not known; {passed_over}")
    if trace.trust is Trust.STALE:
        return End(Reason.STREAM_STALE, block, f"{subject} is not known, and the stream is not confirmed at present{_because(last_error)}")
    if trace.trust is Trust.PARTIAL:
        if stream is not None and stream.undecided and last_error is None:
            return End(Reason.STREAM_PARTIAL, block, f"{subject} is not known{_undecided(stream)}")
        return End(Reason.STREAM_PARTIAL, block, f"{subject} is not known; some of what the engine announced is missing{_because(last_error)}")
    what = "under this hash" if prompt.source == "block_hashes" else "with these tokens"
    return End(Reason.NEVER_STORED, block, f"{subject} was never announced {what}, as far as is remembered")


def _subject(trace: RankTrace) -> str:
    """The block at which a match ends, and whose it is where there are several KV-cache groups."""
    block = f"block {trace.end}"
    if trace.limit is None:
        return block
    group = trace.limit.group
    return f"{block} of KV-cache group {group.number} ({group.kind})"


def _undecided(stream: StreamFacts | None) -> str:
    words = () if stream is None else stream.undecided
    return f"; the engine may reuse more or less than that, since it has {', '.join(UNDECIDED[word] for word in words)}" if words else ""


def _because(error: str | None) -> str:
    return f": {error}" if error else ""


def explain_pod(
    pod: PodTrace, prompt: PromptFacts, streams: Mapping[int, StreamFacts], load: PodLoad | None, *, is_ready: bool = True
) -> PodExplained:
    """A pod, with the reasons of all its ranks. `streams`: its own, by rank. `load`: None where it is unknown. `is_ready`: see `PodExplained`."""
    ends = {trace.rank: explain_rank(trace, prompt, streams.get(trace.rank)) for trace in pod.ranks}
    best = pod.ranks[0]
    whose = "" if len(pod.ranks) == 1 else f"best is rank {best.rank}: "
    again = f" without the last {best.dropped_blocks}, which the engine computes again" if best.dropped_blocks else ""
    unready = "" if is_ready else "; it is not ready, so that no request is sent there"
    return PodExplained(
        pod=pod.pod,
        score=best.score,
        matched_tokens=best.matched_blocks * (best.block_size or 0),
        matched_blocks=best.matched_blocks,
        usable_blocks=best.usable_blocks,
        block_size=best.block_size,
        trust=best.trust,
        ready=is_ready,
        rank=best.rank,
        why=f"{whose}{best.matched_blocks} of {best.usable_blocks} blocks match{again}; {ends[best.rank].detail}{unready}",
        load=load,
        ranks=[
            RankExplained(trace.rank, trace.trust, trace.block_size, trace.matched_blocks, trace.usable_blocks, trace.runs, ends[trace.rank])
            for trace in sorted(pod.ranks, key=lambda trace: trace.rank)
        ],
    )


# The model


def describe_model(pods: Sequence[PodTrace], streams: Iterable[StreamFacts], prompt: PromptFacts) -> About:
    """`pods`: all of the model."""
    ages = [stream.last_batch_age_s for stream in streams if stream.last_batch_age_s is not None]
    sizes = {trace.block_size for pod in pods for trace in pod.ranks if trace.block_size is not None}
    return About(len(pods), sorted(sizes), sorted(prompt.adapters), min(ages, default=None))

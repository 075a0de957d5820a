"""Why a prompt matches as far as it does, and no further: from what is known of streams and blocks to reasons and sentences. Pure.

What is said of a block depends on its block key alone, so a block that is held under another cache salt is to all others like one that nobody has.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Annotated

from msgspec import Meta, Struct

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


class StreamSeen(Struct, frozen=True):
    """What is known of a stream besides its blocks: the part of its status that tells of mistakes."""

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
    is_followed: bool = True
    """Whether any indexer follows it."""


class PromptSeen(Struct, frozen=True):
    """What is asked about. `adapters`: those that are known, with `knows_adapters` off some of them only.

    `unmatched`: prompts since the last one that matched anywhere, of all that were `asked` for.
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


def end_of(seen: RankTrace, prompt: PromptSeen, stream: StreamSeen | None = None) -> End:
    """Why this rank's match ends. `stream`: its own, where its status is known."""
    block = seen.matched_blocks
    last_error = None if stream is None else stream.last_error
    if seen.trust is Trust.EXPIRED:
        return End(Reason.STREAM_EXPIRED, 0, f"the pod has been away for too long, and its blocks were dropped{_because(last_error)}")
    if seen.block_size is None:
        if seen.trust is Trust.STALE:
            return End(Reason.STREAM_STALE, 0, f"nothing is held, and the stream is not confirmed at present{_because(last_error)}")
        return End(Reason.NOTHING_ANNOUNCED, 0, "the engine has announced no block since its start")
    if not seen.usable_blocks:
        least = seen.block_size + 1
        return End(
            Reason.PROMPT_TOO_SHORT, None, f"a prompt of {prompt.tokens} tokens has no whole block before its last token; it takes {least} tokens"
        )
    if block >= seen.usable_blocks:
        return End(Reason.WHOLE_PROMPT, None, "every block that the engine could take from its cache matches")
    if seen.is_remote:
        return End(Reason.REMOTE_ONLY, block, f"block {block} is held only in remote storage, which is nobody's own and does not count")
    if seen.removal is not None:
        sequence = seen.removal.sequence
        at = "" if sequence is None else f" with batch {sequence}"
        return End(Reason.REMOVED, block, f"block {block} was held and the engine removed it{at}", sequence)
    return _unknown(seen, prompt, stream)


def _unknown(seen: RankTrace, prompt: PromptSeen, stream: StreamSeen | None) -> End:
    """Nothing is known of the block."""
    block = seen.matched_blocks
    last_error = None if stream is None else stream.last_error
    if not block and prompt.has_unknown_lora:
        return End(Reason.LORA_UNKNOWN, block, f"no adapter {prompt.lora_name!r} is known of this model, and block {block} depends on it")
    if stream is not None and stream.other_block_size is not None:
        passed_over = f"announcements of blocks of {stream.other_block_size} tokens were passed over, since this pod's are of {seen.block_size}"
        return End(Reason.OTHER_BLOCK_SIZE, block, f"block {block} is not known; {passed_over}")
    if seen.trust is Trust.STALE:
        return End(Reason.STREAM_STALE, block, f"block {block} is not known, and the stream is not confirmed at present{_because(last_error)}")
    if seen.trust is Trust.PARTIAL:
        return End(Reason.STREAM_PARTIAL, block, f"block {block} is not known; some of what the engine announced is missing{_because(last_error)}")
    what = "under this hash" if prompt.source == "block_hashes" else "with these tokens"
    return End(Reason.NEVER_STORED, block, f"block {block} was never announced {what}, as far as is remembered")


def _because(error: str | None) -> str:
    return f": {error}" if error else ""


def explained(pod: PodTrace, prompt: PromptSeen, streams: Mapping[int, StreamSeen], load: PodLoad | None) -> PodExplained:
    """A pod, with the reasons of all its ranks. `streams`: its own, by rank. `load`: None where nobody knows it now."""
    ends = {seen.rank: end_of(seen, prompt, streams.get(seen.rank)) for seen in pod.ranks}
    best = pod.ranks[0]
    whose = "" if len(pod.ranks) == 1 else f"best is rank {best.rank}: "
    return PodExplained(
        pod=pod.pod,
        score=best.score,
        matched_tokens=best.matched_blocks * (best.block_size or 0),
        matched_blocks=best.matched_blocks,
        usable_blocks=best.usable_blocks,
        block_size=best.block_size,
        trust=best.trust,
        rank=best.rank,
        why=f"{whose}{best.matched_blocks} of {best.usable_blocks} blocks match; {ends[best.rank].detail}",
        load=load,
        ranks=[
            RankExplained(seen.rank, seen.trust, seen.block_size, seen.matched_blocks, seen.usable_blocks, seen.runs, ends[seen.rank])
            for seen in sorted(pod.ranks, key=lambda seen: seen.rank)
        ],
    )


# The model


def about(pods: Sequence[PodTrace], streams: Iterable[StreamSeen], prompt: PromptSeen) -> About:
    """`pods`: all of the model."""
    ages = [stream.last_batch_age_s for stream in streams if stream.last_batch_age_s is not None]
    sizes = {seen.block_size for pod in pods for seen in pod.ranks if seen.block_size is not None}
    return About(len(pods), sorted(sizes), sorted(prompt.adapters), min(ages, default=None))

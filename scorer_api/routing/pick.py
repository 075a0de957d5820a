"""A pick: what is asked for, and the result."""

from collections.abc import Collection, Mapping
from typing import Annotated, Literal, get_args

from msgspec import Meta, Struct

from indexer.core.names import Trust
from scorer_api.routing.policies import PickReason, PolicyName

Exclusion = Literal["excluded", "not_ready", "prefill", "expired", "stale"]
"""Why a pod is not picked: the request excludes it, discovery says that it is not ready, it only computes prompts for others, or its stream is
expired; a stale one is picked if there is no other."""
EXCLUSIONS: tuple[Exclusion, ...] = get_args(Exclusion)


class PickRequest(Struct, frozen=True):
    """What to pick from, and how.

    `only`: these pods, None for all. `policy`: None for the service's own. `tokens_estimate`: about how long a prompt of unknown tokens is.
    `prefill`: pods that only compute prompts for others.
    """

    only: Collection[str] | None = None
    exclude: Collection[str] = ()
    policy: PolicyName | None = None
    session_id: str | None = None
    output_tokens: int | None = None
    include_speculative: bool = True
    tokens_estimate: int | None = None
    prefill: Collection[str] = ()


class PodReason(Struct, frozen=True, gc=False):
    """What was known of a pod at the pick. The figures are those of `rank`, the load is the whole pod's."""

    rank: int
    matched_tokens: Annotated[int, Meta(description="Of the prompt's tokens, those that it holds, and is expected to hold in a moment.")]
    speculative_tokens: Annotated[int, Meta(description="Those of them that it is only expected to hold, since a prompt with them was sent there.")]
    uncached_tokens: int
    queued_tokens: Annotated[int, Meta(description="Tokens of prompts that wait there, by its load and by what was sent there since.")]
    running: Annotated[int | None, Meta(description="Running requests; null where its load is unknown.")]
    waiting: Annotated[int | None, Meta(description="Waiting requests; null where its load is unknown.")]
    kv_usage: Annotated[float | None, Meta(description="Part of its cache that requests use; null where that is unknown.")]
    load_age_s: Annotated[float | None, Meta(description="Age of its load, null where there is none. One that is too old is unknown.")]
    cost_s: Annotated[float, Meta(description="Expected time to its first token, and that which others wait meanwhile.")]
    trust: Trust
    why: Annotated[Exclusion | None, Meta(description="Why it is not picked, or only where nothing else is left.")]


class Pick(Struct, frozen=True):
    """`id`: of the routed request. `order`: names of pods, the picked one first. `rank`, `block_size`: the picked pod's."""

    id: str
    rank: int
    block_size: int | None
    order: list[str]
    policy: PolicyName
    picked_for: PickReason | Literal["stale"]
    reasons: dict[str, PodReason]


class UnknownModelError(Exception):
    """No pod is registered for the model."""


class NoPodError(Exception):
    """No pod can be picked. `reasons`: exclusion → number of pods."""

    def __init__(self, reasons: Mapping[str, int]) -> None:
        super().__init__(
            f"no pod can be picked: {', '.join(f'{count} {why}' for why, count in reasons.items()) or 'there is none of those asked for'}"
        )
        self.reasons = reasons

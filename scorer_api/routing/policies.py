"""Routing policies. A policy is a pure function that orders candidates, best first.

Equal candidates and equal input give an equal order. Replicas differ by `Candidate.tie` only, a random number.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, get_args

from msgspec import Struct
from xxhash import xxh3_64_intdigest

PolicyName = Literal["cost", "prefix", "least-load", "round-robin", "session"]
PickReason = Literal["longest_match", "load", "no_match", "too_short", "turn", "session", "session_yields", "only_one"]
POLICY_NAMES: tuple[PolicyName, ...] = get_args(PolicyName)
PICK_REASONS: tuple[PickReason, ...] = get_args(PickReason)

# Times closer than this count as equal. The estimates are no better, and ties spread the load of replicas.
TIE_S = 0.001


class Candidate(Struct, frozen=True, gc=False):
    """A pod that may be picked, with the figures of its best rank. `tie`: a random number that orders candidates which are otherwise equal."""

    pod: str
    rank: int
    matched_blocks: int
    matched_tokens: int
    cost_s: float
    load_s: float
    tie: float


class PolicyInput(Struct, frozen=True):
    """What a policy depends on besides the candidates. `turn`: counts the model's picks, from a random number on."""

    session_id: str | None = None
    turn: int = 0
    min_match_blocks: int = 1
    overload_s: float = 2.0


Policy = Callable[[Sequence[Candidate], PolicyInput], list[Candidate]]


def by_cost(pods: Sequence[Candidate], policy_input: PolicyInput) -> list[Candidate]:
    """The lowest cost first."""
    return sorted(pods, key=lambda pod: (round(pod.cost_s / TIE_S), pod.tie, pod.pod))


def by_load(pods: Sequence[Candidate], policy_input: PolicyInput) -> list[Candidate]:
    """The lowest load first, whatever the match."""
    return sorted(pods, key=_least_load)


def by_prefix(pods: Sequence[Candidate], policy_input: PolicyInput) -> list[Candidate]:
    """The longest match first. Matches of fewer blocks than `min_match_blocks` count as none; equal ones are ordered by load."""
    return sorted(pods, key=lambda pod: (-pod.matched_tokens if pod.matched_blocks >= policy_input.min_match_blocks else 0, *_least_load(pod)))


def by_turn(pods: Sequence[Candidate], policy_input: PolicyInput) -> list[Candidate]:
    """In turn, by name."""
    named = sorted(pods, key=lambda pod: pod.pod)
    start = policy_input.turn % len(named) if named else 0
    return named[start:] + named[:start]


def by_session(pods: Sequence[Candidate], policy_input: PolicyInput) -> list[Candidate]:
    """The same pod for a session on every replica, by rendezvous hashing: a pod that appears or disappears moves its own sessions only.

    Pods whose load exceeds the lowest one by `overload_s` come after all others.
    """
    least_s = min((pod.load_s for pod in pods), default=0.0)
    seed = xxh3_64_intdigest((policy_input.session_id or "").encode())
    return sorted(pods, key=lambda pod: (pod.load_s > least_s + policy_input.overload_s, -xxh3_64_intdigest(pod.pod.encode(), seed), pod.pod))


POLICIES: dict[PolicyName, Policy] = {
    "cost": by_cost,
    "prefix": by_prefix,
    "least-load": by_load,
    "round-robin": by_turn,
    "session": by_session,
}


def policy_for(asked: PolicyName | None, default: PolicyName, session_id: str | None) -> PolicyName:
    """The policy of a request that asks for this one, or for none: without a session there is none to go by."""
    policy = asked or default
    return "cost" if policy == "session" and session_id is None else policy


def ordered(
    name: PolicyName, fresh: Sequence[Candidate], stale: Sequence[Candidate], policy_input: PolicyInput
) -> tuple[list[Candidate], PickReason | Literal["stale"]]:
    """All candidates, at least one, best first and stale ones last; and why the first one is first."""
    order = POLICIES[name](fresh, policy_input) if fresh else []
    picked_for: PickReason | Literal["stale"] = reason_of(name, order, policy_input) if order else "stale"
    if stale:
        order += POLICIES[name](stale, policy_input)
    return order, picked_for


def reason_of(name: PolicyName, order: Sequence[Candidate], policy_input: PolicyInput) -> PickReason:
    """Why this policy put the first candidate of `order` first."""
    picked = order[0]
    if len(order) == 1:
        return "only_one"
    if name == "round-robin":
        return "turn"
    if name == "session":
        preferred = by_session(order, PolicyInput(policy_input.session_id, overload_s=math.inf))[0]
        return "session" if picked.pod == preferred.pod else "session_yields"
    longest = max(pod.matched_tokens for pod in order)
    if not longest:
        return "no_match"
    if name == "prefix" and max(pod.matched_blocks for pod in order) < policy_input.min_match_blocks:
        return "too_short"
    if name != "least-load" and picked.matched_tokens == longest:
        return "longest_match"
    return "load"


def _least_load(pod: Candidate) -> tuple[int, float, str]:
    return round(pod.load_s / TIE_S), pod.tie, pod.pod

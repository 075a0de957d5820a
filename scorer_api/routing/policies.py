"""In which order pods are to be tried. A policy is a small function: pods with what is known of them in, the same pods in order out, best first.

Nothing else goes in: the same pods in the same case come in the same order. What makes replicas differ is `Candidate.tie`, a random number each.
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

# Times closer than this count as equal: the figures are not better than that, and among equals replicas spread.
TIE_S = 0.001


class Candidate(Struct, frozen=True, gc=False):
    """A pod that may be picked, and its rank that would be. `tie`: in which order equal ones come, drawn at random."""

    pod: str
    rank: int
    matched_blocks: int
    matched_tokens: int
    cost_s: float
    load_s: float
    tie: float


class Case(Struct, frozen=True):
    """What else a pick depends on. `turn`: how many picks there were before, from a random one on."""

    session_id: str | None = None
    turn: int = 0
    min_match_blocks: int = 1
    overload_s: float = 2.0


Policy = Callable[[Sequence[Candidate], Case], list[Candidate]]


def by_cost(pods: Sequence[Candidate], case: Case) -> list[Candidate]:
    """What costs least first."""
    return sorted(pods, key=lambda pod: (round(pod.cost_s / TIE_S), pod.tie, pod.pod))


def by_load(pods: Sequence[Candidate], case: Case) -> list[Candidate]:
    """The least busy first, whatever it holds."""
    return sorted(pods, key=_least_load)


def by_prefix(pods: Sequence[Candidate], case: Case) -> list[Candidate]:
    """The longest match first; equal ones, and those that hold too little to matter, by load."""
    return sorted(pods, key=lambda pod: (-pod.matched_tokens if pod.matched_blocks >= case.min_match_blocks else 0, *_least_load(pod)))


def by_turn(pods: Sequence[Candidate], case: Case) -> list[Candidate]:
    """One after the other, by name."""
    named = sorted(pods, key=lambda pod: pod.pod)
    start = case.turn % len(named) if named else 0
    return named[start:] + named[:start]


def by_session(pods: Sequence[Candidate], case: Case) -> list[Candidate]:
    """Always the same pod for a session, on every replica: the one with the highest hash of session and pod (rendezvous hashing), so that a pod that
    comes or goes moves its own sessions only. Pods that are busier by `overload_s` than the least busy come after all others.
    """
    least_s = min((pod.load_s for pod in pods), default=0.0)
    seed = xxh3_64_intdigest((case.session_id or "").encode())
    return sorted(pods, key=lambda pod: (pod.load_s > least_s + case.overload_s, -xxh3_64_intdigest(pod.pod.encode(), seed), pod.pod))


POLICIES: dict[PolicyName, Policy] = {
    "cost": by_cost,
    "prefix": by_prefix,
    "least-load": by_load,
    "round-robin": by_turn,
    "session": by_session,
}


def reason_of(name: PolicyName, order: Sequence[Candidate], case: Case) -> PickReason:
    """Why the first of this order, which the policy made, is first."""
    picked = order[0]
    if len(order) == 1:
        return "only_one"
    if name == "round-robin":
        return "turn"
    if name == "session":
        its_own = by_session(order, Case(case.session_id, overload_s=math.inf))[0]
        return "session" if picked.pod == its_own.pod else "session_yields"
    longest = max(pod.matched_tokens for pod in order)
    if not longest:
        return "no_match"
    if name == "prefix" and max(pod.matched_blocks for pod in order) < case.min_match_blocks:
        return "too_short"
    if name != "least-load" and picked.matched_tokens == longest:
        return "longest_match"
    return "load"


def _least_load(pod: Candidate) -> tuple[int, float, str]:
    return round(pod.load_s / TIE_S), pod.tie, pod.pod

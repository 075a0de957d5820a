"""One answer of those of several cells: the same as one scorer gives that knows all of their pods.

Scores are those of each pod alone, so their union is in the order that every scorer uses. What a policy orders by is known of each pod too; so the
policy itself runs once more, over the candidates of all cells.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeVar

from msgspec import UNSET, Struct, UnsetType, structs

from scorer_api.api.route_schemas import CandidatesAnswer
from scorer_api.api.schemas import PodAnswer, ScoreAnswer
from scorer_api.routing.pick import PodReason
from scorer_api.routing.policies import Candidate, PickReason, PolicyInput, PolicyName, ordered

K = TypeVar("K")


class MergedPick(Struct, frozen=True):
    """`order`: candidates of all cells, the picked one first. `cell_of`: pod → its cell, by its place."""

    order: list[Candidate]
    picked_for: PickReason | Literal["stale"]
    cell_of: dict[str, int]
    reasons: dict[str, PodReason]
    http: dict[str, str]


def merge_scores(answers: Sequence[ScoreAnswer], limit: int | None) -> ScoreAnswer:
    """Of at least one answer. A pod that several cells name is the first one's."""
    pods: dict[str, PodAnswer] = {}
    for answer in answers:
        for pod in answer.pods:
            pods.setdefault(pod.pod, pod)
    ordered = sorted(pods.values(), key=lambda pod: (-pod.score, pod.pod))[:limit]
    return structs.replace(
        answers[0],
        tokens=max(answer.tokens for answer in answers),
        best=ordered[0].pod if ordered and ordered[0].matched_blocks else None,
        pods=ordered,
        view=structs.replace(answers[0].view, source="cells", age_s=max(answer.view.age_s for answer in answers)),
        unknown_pods=unknown_pods(answers),
    )


def unknown_pods(answers: Iterable[ScoreAnswer | CandidatesAnswer]) -> list[str] | UnsetType:
    """The pods that the request names and no cell knows; UNSET if it names none."""
    left: list[str] | UnsetType = UNSET
    for answer in answers:
        unknown = answer.unknown_pods
        if not isinstance(unknown, UnsetType):
            left = unknown if isinstance(left, UnsetType) else [pod for pod in left if pod in unknown]
    return left


def pick(answers: Mapping[int, CandidatesAnswer], policy: PolicyName, policy_input: PolicyInput) -> MergedPick | None:
    """The order of a policy over the candidates of all cells; None where there is no candidate. `answers`: by the places of the cells."""
    cell_of: dict[str, int] = {}
    fresh: list[Candidate] = []
    stale: list[Candidate] = []
    reasons: dict[str, PodReason] = {}
    http: dict[str, str] = {}
    for place, answer in answers.items():
        reasons |= {pod: reason for pod, reason in answer.reason.items() if cell_of.setdefault(pod, place) == place}
        fresh += [candidate for candidate in answer.fresh if cell_of.get(candidate.pod) == place]
        stale += [candidate for candidate in answer.stale if cell_of.get(candidate.pod) == place]
        http |= {pod: base for pod, base in answer.http.items() if cell_of.get(pod) == place}
    if not fresh and not stale:
        return None
    return MergedPick(*ordered(policy, fresh, stale, policy_input), cell_of, reasons, http)

"""One answer of those of several cells: the same as one scorer gives that knows all of their pods.

Scores are those of each pod alone, so their union is in the order that every scorer uses. What a policy orders by is known of each pod too; so the
policy itself runs once more, over the candidates of all cells.
"""

from collections.abc import Iterable, Sequence
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


class Candidates:
    """Those of all cells. A pod that several cells name is the first one's. `add` takes a millisecond for some thousand pods."""

    def __init__(self) -> None:
        self._cell_of: dict[str, int] = {}
        self._fresh: list[Candidate] = []
        self._stale: list[Candidate] = []
        self._reasons: dict[str, PodReason] = {}
        self._http: dict[str, str] = {}

    def add(self, place: int, answer: CandidatesAnswer) -> None:
        """What a cell answers. `place`: the cell's."""
        fresh, stale, reasons, http = answer.fresh, answer.stale, answer.reason, answer.http
        if not self._cell_of.keys().isdisjoint(reasons):
            reasons = {pod: reason for pod, reason in reasons.items() if pod not in self._cell_of}
            fresh, stale = ([candidate for candidate in candidates if candidate.pod in reasons] for candidates in (fresh, stale))
            http = {pod: base for pod, base in http.items() if pod in reasons}
        self._cell_of |= dict.fromkeys(reasons, place)
        self._reasons |= reasons
        self._http |= http
        self._fresh += fresh
        self._stale += stale

    def drop(self, pod: str) -> None:
        """It cannot be picked any more."""
        self._fresh, self._stale = ([candidate for candidate in candidates if candidate.pod != pod] for candidates in (self._fresh, self._stale))

    def pick(self, policy: PolicyName, policy_input: PolicyInput) -> MergedPick | None:
        """The order of a policy over all of them; None where there is none."""
        if not self._fresh and not self._stale:
            return None
        return MergedPick(*ordered(policy, self._fresh, self._stale, policy_input), self._cell_of, self._reasons, self._http)

"""Answers of several cells merged into one. What is expected is worked out by hand."""

from msgspec import UNSET

from indexer.core.names import Trust
from scorer_api.api.route_schemas import CandidatesAnswer
from scorer_api.api.schemas import PodAnswer, ScoreAnswer, ViewAnswer
from scorer_api.cells.merging import Candidates, MergedPick, merge_scores, unknown_pods
from scorer_api.routing.pick import PodReason
from scorer_api.routing.policies import Candidate, PolicyInput, PolicyName


def pod(name: str, score: float, blocks: int) -> PodAnswer:
    return PodAnswer(name, score, blocks * 16, blocks, 10, 16, {"gpu": blocks}, 0, {"0": blocks}, Trust.LIVE)


def answer(*pods: PodAnswer, age_s: float = 0.1, unknown: list[str] | None = None) -> ScoreAnswer:
    return ScoreAnswer("m", 160, "a cell's", list(pods), ViewAnswer("embedded", age_s), UNSET if unknown is None else unknown)


def test_pods_are_in_the_order_of_their_scores_and_then_of_their_names() -> None:
    merged = merge_scores([answer(pod("d", 0.5, 5), pod("b", 0.0, 0)), answer(pod("c", 0.7, 7), pod("a", 0.5, 5), age_s=2.5)], None)
    assert [each.pod for each in merged.pods] == ["c", "a", "d", "b"]
    assert (merged.best, merged.tokens, merged.view) == ("c", 160, ViewAnswer("cells", 2.5))


def test_a_limit_counts_for_all_cells_together() -> None:
    merged = merge_scores([answer(pod("d", 0.5, 5), pod("b", 0.4, 4)), answer(pod("c", 0.7, 7), pod("a", 0.1, 1))], 2)
    assert [each.pod for each in merged.pods] == ["c", "d"]


def test_nothing_is_best_where_nothing_matches() -> None:
    assert merge_scores([answer(pod("b", 0.0, 0)), answer(pod("a", 0.0, 0))], None).best is None
    assert merge_scores([answer()], None).best is None


def test_a_pod_that_two_cells_name_is_the_first_ones() -> None:
    merged = merge_scores([answer(pod("a", 0.2, 2)), answer(pod("a", 0.9, 9))], None)
    assert [(each.pod, each.matched_blocks) for each in merged.pods] == [("a", 2)]


def test_a_pod_is_unknown_that_no_cell_knows() -> None:
    assert merge_scores([answer(unknown=["x", "a"]), answer(unknown=["b", "x"])], None).unknown_pods == ["x"]
    assert merge_scores([answer(), answer()], None).unknown_pods is UNSET
    assert unknown_pods([candidates(unknown=["x"]), candidates(unknown=[])]) == []


# Picks


def pick(answers: dict[int, CandidatesAnswer], policy: PolicyName, policy_input: PolicyInput) -> MergedPick | None:
    """Of the answers of cells, by their places."""
    merged = Candidates()
    for place, each in answers.items():
        merged.add(place, each)
    return merged.pick(policy, policy_input)


def reason(matched: int) -> PodReason:
    return PodReason(0, matched, 0, 160 - matched, 0, None, None, None, None, 0.0, Trust.LIVE, None)


def candidates(*fresh: Candidate, stale: list[Candidate] | None = None, unknown: list[str] | None = None) -> CandidatesAnswer:
    known = [*fresh, *(stale or [])]
    reasons, http = {each.pod: reason(each.matched_tokens) for each in known}, {each.pod: f"http://{each.pod}" for each in known}
    return CandidatesAnswer("m", 160, list(fresh), stale or [], reasons, http, ViewAnswer("redis", 0.1), UNSET if unknown is None else unknown)


def candidate(name: str, blocks: int, cost_s: float, load_s: float) -> Candidate:
    return Candidate(name, 0, blocks, blocks * 16, cost_s, load_s, 0.5)


ONE = candidates(candidate("a", 8, 0.30, 0.25), candidate("b", 0, 0.10, 0.0))
TWO = candidates(candidate("c", 9, 0.20, 0.18), candidate("d", 2, 0.15, 0.02), stale=[candidate("e", 10, 0.01, 0.0)])


def picked(policy: PolicyName, policy_input: PolicyInput = PolicyInput()) -> MergedPick:  # noqa: B008 - frozen
    found = pick({0: ONE, 1: TWO}, policy, policy_input)
    assert found is not None
    return found


def order(policy: PolicyName, policy_input: PolicyInput = PolicyInput()) -> list[str]:  # noqa: B008 - frozen
    return [each.pod for each in picked(policy, policy_input).order]


def test_each_policy_orders_the_candidates_of_all_cells() -> None:
    """Stale ones come last in each."""
    assert order("cost") == ["b", "d", "c", "a", "e"]
    assert order("least-load") == ["b", "d", "c", "a", "e"]
    # Two blocks are fewer than four: they count as none, and then the load counts.
    assert order("prefix", PolicyInput(min_match_blocks=4)) == ["c", "a", "b", "d", "e"]
    assert order("round-robin", PolicyInput(turn=6)) == ["c", "d", "a", "b", "e"]


def test_a_session_leaves_a_pod_that_is_overloaded_beside_those_of_other_cells() -> None:
    """0.25 s is more than 0.2 s above the lowest load, which is in its own cell, and 0.18 s is not: that of the other cell has no more."""
    policy_input = PolicyInput("s", overload_s=0.2)
    assert order("session", policy_input)[-2] == "a"
    with_idle = pick({0: TWO, 1: candidates(candidate("z", 0, 0.1, -0.1))}, "session", PolicyInput("s", overload_s=0.2))
    assert with_idle is not None
    assert [each.pod for each in with_idle.order][-2:] == ["c", "e"]


def test_a_pick_says_why_and_whose_the_pods_are() -> None:
    found = picked("prefix", PolicyInput(min_match_blocks=4))
    assert found.picked_for == "longest_match"
    assert found.cell_of == {"a": 0, "b": 0, "c": 1, "d": 1, "e": 1}
    assert found.reasons["c"].matched_tokens == 144
    assert found.http["d"] == "http://d"
    assert picked("cost").picked_for == "load"


def test_stale_pods_are_picked_where_nothing_else_is_left() -> None:
    found = pick({3: candidates(stale=[candidate("e", 1, 0.1, 0.0)])}, "cost", PolicyInput())
    assert found is not None
    assert (found.order[0].pod, found.picked_for, found.cell_of) == ("e", "stale", {"e": 3})
    assert pick({0: candidates(), 1: candidates()}, "cost", PolicyInput()) is None
    assert pick({}, "cost", PolicyInput()) is None


def test_a_pod_that_cannot_be_picked_any_more_is_left_out() -> None:
    merged = Candidates()
    merged.add(0, ONE)
    merged.add(1, TWO)
    first = merged.pick("cost", PolicyInput())
    assert first is not None
    merged.drop(first.order[0].pod)
    second = merged.pick("cost", PolicyInput())
    assert second is not None
    assert second.order == first.order[1:]

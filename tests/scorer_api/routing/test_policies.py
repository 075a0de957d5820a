"""The order in which each policy wants pods tried: tables worked out by hand, and what holds for any pods."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer_api.routing.policies import PICK_REASONS, POLICIES, POLICY_NAMES, Candidate, PolicyInput, PolicyName, reason_of


def pod(name: str, blocks: int = 0, cost_s: float = 0.0, load_s: float = 0.0, tie: float = 0.0) -> Candidate:
    """Blocks of 16 tokens."""
    return Candidate(name, 0, blocks, blocks * 16, cost_s, load_s, tie)


def names(policy: PolicyName, pods: list[Candidate], case: PolicyInput | None = None) -> str:
    return "".join(found.pod for found in POLICIES[policy](pods, case or PolicyInput()))


def why(policy: PolicyName, pods: list[Candidate], case: PolicyInput | None = None) -> str:
    case = case or PolicyInput()
    return reason_of(policy, POLICIES[policy](pods, case), case)


# a holds the longest match and is busy, b holds less, c is idle and holds nothing.
FLEET = [pod("a", 8, cost_s=1.5, load_s=1.4), pod("b", 6, cost_s=0.9, load_s=0.6), pod("c", 0, cost_s=1.0, load_s=0.0)]


@pytest.mark.parametrize(
    ("policy", "case", "order", "reason"),
    [
        ("cost", PolicyInput(), "bca", "load"),
        ("prefix", PolicyInput(), "abc", "longest_match"),
        ("prefix", PolicyInput(min_match_blocks=7), "acb", "longest_match"),
        ("prefix", PolicyInput(min_match_blocks=9), "cba", "too_short"),
        ("least-load", PolicyInput(), "cba", "load"),
        ("round-robin", PolicyInput(turn=0), "abc", "turn"),
        ("round-robin", PolicyInput(turn=1), "bca", "turn"),
        ("round-robin", PolicyInput(turn=5), "cab", "turn"),
    ],
)
def test_the_order_of_three_pods(policy: PolicyName, case: PolicyInput, order: str, reason: str) -> None:
    for pods in (FLEET, FLEET[::-1], FLEET[1:] + FLEET[:1]):
        assert names(policy, pods, case) == order
        assert why(policy, pods, case) == reason


def test_where_the_cheapest_pod_holds_most_that_is_the_reason() -> None:
    assert why("cost", [pod("a", 8, cost_s=0.1), pod("b", 0, cost_s=0.2)]) == "longest_match"
    assert why("cost", [pod("a", 0, cost_s=0.1), pod("b", 0, cost_s=0.2)]) == "no_match"
    assert why("cost", [pod("a", 8)]) == "only_one"


def test_the_tie_decides_among_equals_and_what_is_a_hair_apart_is_equal() -> None:
    equal = [pod("a", cost_s=1.0, load_s=1.0, tie=0.9), pod("b", cost_s=1.0001, load_s=1.0001, tie=0.1), pod("c", cost_s=1.0, load_s=1.0, tie=0.5)]
    assert [names(policy, equal) for policy in ("cost", "least-load", "prefix")] == ["bca"] * 3
    apart = [pod("a", cost_s=1.0, tie=0.9), pod("b", cost_s=1.01, tie=0.1)]
    assert names("cost", apart) == "ab"


def test_equal_matches_go_by_load_under_prefix() -> None:
    assert names("prefix", [pod("a", 4, load_s=2.0), pod("b", 4, load_s=1.0), pod("c", 3, load_s=0.0)]) == "bac"


def test_a_session_keeps_its_pod_and_moves_only_when_that_goes() -> None:
    fleet = [pod(name) for name in "abcdef"]
    first = {f"session {number}": POLICIES["session"](fleet, PolicyInput(f"session {number}"))[0].pod for number in range(300)}
    counts = Counter(first.values())
    assert set(counts) == set("abcdef")
    assert max(counts.values()) < 100, "they spread"
    without_c = [found for found in fleet if found.pod != "c"]
    for session, picked in first.items():
        now = POLICIES["session"](without_c, PolicyInput(session))[0].pod
        assert now == picked if picked != "c" else now != "c"


def test_a_session_yields_when_its_pod_is_overloaded() -> None:
    case = PolicyInput("s", overload_s=2.0)
    own = POLICIES["session"]([pod(name) for name in "abc"], case)[0].pod
    others = [pod(name, load_s=1.0) for name in "abc" if name != own]
    almost, over = [pod(own, load_s=3.0), *others], [pod(own, load_s=3.01), *others]
    assert (names("session", almost, case)[0], why("session", almost, case)) == (own, "session")
    assert (names("session", over, case)[-1], why("session", over, case)) == (own, "session_yields")


seconds = st.floats(0, 1e6)
fleets = st.lists(
    st.builds(Candidate, st.text(max_size=3), st.integers(0, 3), st.integers(0, 99), st.integers(0, 9999), seconds, seconds, st.floats(0, 1)),
    unique_by=lambda found: found.pod,
    max_size=8,
)
cases = st.builds(PolicyInput, st.none() | st.text(max_size=5), st.integers(0, 2**63), st.integers(1, 100), seconds)


@given(fleets, cases, st.sampled_from(POLICY_NAMES), st.randoms(use_true_random=False))
def test_every_pod_comes_once_in_one_order_whatever_the_order_before(
    fleet: list[Candidate], case: PolicyInput, policy: PolicyName, rng: random.Random
) -> None:
    order = POLICIES[policy](fleet, case)
    assert sorted(found.pod for found in order) == sorted(found.pod for found in fleet)
    shuffled = list(fleet)
    rng.shuffle(shuffled)
    assert POLICIES[policy](shuffled, case) == order
    if order:
        assert reason_of(policy, order, case) in PICK_REASONS


@given(fleets.filter(bool))
def test_no_pod_is_cheaper_or_matches_longer_or_is_less_busy_than_the_first(fleet: list[Candidate]) -> None:
    hair = 0.001
    assert POLICIES["cost"](fleet, PolicyInput())[0].cost_s <= min(found.cost_s for found in fleet) + hair
    assert POLICIES["least-load"](fleet, PolicyInput())[0].load_s <= min(found.load_s for found in fleet) + hair
    longest = max(found.matched_tokens for found in fleet)
    case = PolicyInput(min_match_blocks=0)
    assert POLICIES["prefix"](fleet, case)[0].matched_tokens == longest

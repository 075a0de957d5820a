"""Which prefixes are asked for: every figure here is worked out by hand. A letter is a block; keys are those of real chains."""

import random
import time
from array import array
from typing import Any

import pytest

from indexer.core.groups import CacheShape
from scorer_api.index import hot_prefixes
from scorer_api.index.hot_prefixes import DEPTH_MAX, KEYS_PER_NODE, HotPrefix, HotPrefixes
from tests.scorer_api.index.contents import A, B, asked, holds, keys, new_view

CUT = (2, 0)
HALF_LIFE_S = 100.0


def path(letters: str) -> "array[int]":
    return array("Q", keys(letters))


def hot_of(*prompts: str, nodes_max: int = 100, every_s: float = 0.0) -> HotPrefixes:
    """These were asked for, one after the other."""
    hot = HotPrefixes(nodes_max, HALF_LIFE_S)
    for number, letters in enumerate(prompts):
        hot.note("m", CUT, path(letters), number * every_s)
    return hot


def shown(found: list[HotPrefix], *prompts: str) -> dict[str, float]:
    """Prefix, in letters of these prompts → requests."""
    letters = {path(prompt[:end]).tobytes(): prompt[:end] for prompt in prompts for end in range(1, len(prompt) + 1)}
    return {letters[prefix.keys.tobytes()]: round(prefix.requests, 6) for prefix in found}


def test_a_prompt_is_one_prefix() -> None:
    (prefix,) = hot_of("ABCD").hottest(10, 0.0)
    assert prefix == HotPrefix("m", CUT, path("ABCD"), None, 1.0, 0.0)


def test_where_prompts_part_a_prefix_ends() -> None:
    hot = hot_of("SSABC", "SSADE", "SSX")
    assert shown(hot.hottest(10, 0.0), "SSABC", "SSADE", "SSX") == {"SS": 3, "SSA": 2, "SSABC": 1, "SSADE": 1, "SSX": 1}
    parents = {len(prefix.keys): prefix.parent for prefix in hot.hottest(2, 0.0)}
    assert parents == {2: None, 3: path("SS")[-1]}
    assert (hot.nodes, hot.keys) == (5, 2 + 1 + 2 + 2 + 1)


def test_a_prompt_that_ends_inside_of_another_is_a_prefix_of_it() -> None:
    assert shown(hot_of("ABCD", "AB").hottest(10, 0.0), "ABCD") == {"AB": 2, "ABCD": 1}
    assert shown(hot_of("AB", "ABCD").hottest(10, 0.0), "ABCD") == {"AB": 2, "ABCD": 1}
    assert shown(hot_of("AB", "AB", "AB").hottest(10, 0.0), "AB") == {"AB": 3}


def test_the_hottest_come_first_and_only_so_many() -> None:
    found = hot_of("AB", "CD", "CD").hottest(1, 0.0)
    assert shown(found, "AB", "CD") == {"CD": 2}


def test_what_was_asked_for_a_half_life_ago_counts_half() -> None:
    """At 0 s, 100 s and 200 s, seen at 200 s: a quarter, a half and one."""
    hot = hot_of("AB", "AB", "CD", every_s=HALF_LIFE_S)
    found = hot.hottest(10, 200.0)
    assert shown(found, "AB", "CD") == {"CD": 1.0, "AB": 0.75}
    assert [prefix.asked_s for prefix in found] == [200.0, 100.0]
    assert hot.requests("m", CUT, 200.0) == pytest.approx(1.75)
    assert hot.requests("m", CUT, 300.0) == pytest.approx(0.875)


def test_counts_stay_right_for_years() -> None:
    """Weights grow with time, and are divided before they leave what a float can hold."""
    hot = hot_of("AB")
    year_s = 365 * 86_400.0
    for number in range(3):
        hot.note("m", CUT, path("CD"), year_s + number)
    assert shown(hot.hottest(10, year_s + 2), "AB", "CD") == {"CD": pytest.approx(3.0, abs=0.03), "AB": 0.0}


def test_models_and_cuts_are_apart() -> None:
    hot = hot_of("AB")
    hot.note("n", CUT, path("AB"), 0.0)
    hot.note("m", (4, 0), path("AB"), 0.0)
    assert len(hot.hottest(10, 0.0)) == 3
    assert {(prefix.model, prefix.cut) for prefix in hot.hottest(10, 0.0, "m")} == {("m", CUT), ("m", (4, 0))}
    assert hot.requests("n", CUT, 0.0) == 1.0
    assert hot.requests("nobody", CUT, 0.0) == 0.0


def test_memory_is_bounded_and_the_hottest_stay() -> None:
    hot = HotPrefixes(100, HALF_LIFE_S)
    numbers = random.Random(1)
    for number in range(5_000):
        letters = "SYSTEM" if number % 3 == 0 else "".join(numbers.choices("ABCDEFGHIJKLMNOPQRSTUVW", k=numbers.randint(1, 30)))
        hot.note("m", CUT, path(letters), 0.0)
        assert hot.nodes <= 100
        assert hot.keys <= 100 * KEYS_PER_NODE
    counted = {prefix.keys.tobytes(): prefix.requests for prefix in hot.hottest(100, 0.0)}
    assert counted[path("SYSTEM").tobytes()] == 1_667
    found = hot.hottest(1_000, 0.0)
    assert len(found) == hot.nodes
    assert sum(len(prefix.keys) - len(_parent_keys(found, prefix)) for prefix in found) == hot.keys


def _parent_keys(found: list[HotPrefix], prefix: HotPrefix) -> "array[int]":
    return next((other.keys for other in found if prefix.parent is not None and other.keys[-1] == prefix.parent), array("Q"))


def test_long_prompts_make_room_by_their_keys() -> None:
    hot = HotPrefixes(10, HALF_LIFE_S)
    for number in range(20):
        hot.note("m", CUT, array("Q", range(number * 10_000 + 1, number * 10_000 + DEPTH_MAX + 1)), float(number))
        assert hot.keys <= 2 * DEPTH_MAX
    assert [prefix.asked_s for prefix in hot.hottest(10, 20.0)] == [19.0, 18.0]


def test_a_long_chain_of_prefixes_makes_room_in_one_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each prompt goes on where the one before it ends, so only one prefix at a time is an end."""
    walks, below = [], hot_prefixes._below

    def counted(root: Any) -> Any:
        walks.append(root)
        return below(root)

    monkeypatch.setattr(hot_prefixes, "_below", counted)
    hot = HotPrefixes(40, HALF_LIFE_S)
    chain = array("Q", range(1, 101))
    for length in range(1, 101):
        hot.note("m", CUT, chain[:length], 0.0)
    assert len(walks) == 6  # 41 become 30 each time, after 41, 52, 63, 74, 85 and 96 prompts
    assert hot.nodes == 34
    assert (hot.hottest(1, 0.0)[0].keys, hot.hottest(1, 0.0)[0].requests) == (chain[:1], 100.0)


def test_a_prefix_that_comes_back_is_never_counted_too_often() -> None:
    hot = hot_of("A", "B", "B", "C", "C", nodes_max=2)
    assert sum(prefix.requests for prefix in hot.hottest(10, 0.0)) <= 5
    hot.note("m", CUT, path("A"), 0.0)
    assert shown(hot.hottest(10, 0.0), "A", "B", "C").get("A", 0.0) <= 2


def test_the_view_counts_what_is_scored_and_says_who_holds_it() -> None:
    view = new_view(A, B, hot_prefixes=10)
    view.append(A, CacheShape(2), holds(*keys("SYX")))
    view.append(B, CacheShape(2), holds(*keys("SY")))
    for letters in ("SYXA", "SYXB", "SY"):
        view.score(asked(letters))
    view.trace(asked("SY"))  # an explanation is no request of a router
    assert view.hot is not None
    found = view.hot.hottest(10, time.monotonic())
    assert {letters: round(requests) for letters, requests in shown(found, "SYXA", "SYXB").items()} == {"SY": 3, "SYX": 2, "SYXA": 1, "SYXB": 1}
    assert [view.held_tokens("m", prefix.cut, prefix.keys) for prefix in found[:3]] == [{"a": 4, "b": 4}, {"a": 6, "b": 4}, {"a": 6, "b": 4}]
    assert view.held_tokens("m", CUT, path("Q")) == {}
    assert view.held_tokens("nobody", CUT, path("SY")) == {}


def test_of_a_long_prompt_so_many_blocks_count() -> None:
    view = new_view(A, hot_prefixes=10)
    view.append(A, CacheShape(2), holds(*keys("S")))
    view.score(asked("S" + "A" * DEPTH_MAX + "EE"))
    assert view.hot is not None
    (prefix,) = view.hot.hottest(10, time.monotonic())
    assert len(prefix.keys) == DEPTH_MAX


def test_nothing_is_counted_unless_it_is_asked_for() -> None:
    assert new_view(A).hot is None


# Several processes


def merged(*trees: HotPrefixes, now_s: float = 0.0) -> HotPrefixes:
    """What all of these count, as one that was told by them."""
    found = HotPrefixes(1_000, HALF_LIFE_S)
    for tree in trees:
        for _ in found.add(list(tree.told(now_s)), now_s):
            pass
    return found


def test_what_two_count_is_what_one_would_that_was_asked_for_all() -> None:
    """Also where prompts part that came to different ones: SS is no node of either."""
    one, two = hot_of("SSABC", "SSABC"), hot_of("SSADE", "X")
    both = merged(one, two)
    assert shown(both.hottest(10, 0.0), "SSABC", "SSADE", "X") == {"SSA": 3, "SSABC": 2, "SSADE": 1, "X": 1}
    assert both.requests("m", CUT, 0.0) == 4
    assert shown(one.hottest(10, 0.0), "SSABC") == {"SSABC": 2}, "what told it stays as it is"


def test_any_prompts_at_any_times_count_the_same_wherever_they_were_asked_for() -> None:
    rng = random.Random(5)
    for _ in range(50):
        whole, parts = HotPrefixes(1_000, HALF_LIFE_S), [HotPrefixes(1_000, HALF_LIFE_S) for _ in range(3)]
        for number in range(20):
            letters, model = "".join(rng.choice("AB") for _ in range(rng.randint(1, 6))), rng.choice("mn")
            for tree in (whole, rng.choice(parts)):
                tree.note(model, CUT, path(letters), 10.0 * number)
        both = merged(*parts, now_s=300.0)
        found, expected = ({(each.model, each.keys.tobytes()): each for each in tree.hottest(100, 300.0)} for tree in (both, whole))
        assert found.keys() == expected.keys()
        for name, prefix in expected.items():
            assert found[name].requests == pytest.approx(prefix.requests)
            assert (found[name].parent, found[name].asked_s) == (prefix.parent, prefix.asked_s)
        for model in "mn":
            assert both.requests(model, CUT, 300.0) == pytest.approx(whole.requests(model, CUT, 300.0))


def test_the_hottest_of_many_are_found_in_steps() -> None:
    hot = HotPrefixes(10_000, HALF_LIFE_S)
    for number in range(3_000):
        for _ in range(3 if number in (5, 2_500) else 1):
            hot.note("m", CUT, array("Q", [number + 1]), float(number == 2_500))
    steps = hot.hottest_in_steps(2, 1.0)
    count = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            found = end.value
            break
        count += 1
    assert count == 3
    assert [prefix.keys[0] for prefix in found] == [2_501, 6]


def test_what_no_other_one_has_told_is_refused() -> None:
    nodes = list(hot_of("AB", "AC").told(0.0))
    with pytest.raises(ValueError, match="before the one above"):
        list(HotPrefixes(10).add(nodes[1:], 0.0))

"""The compiled prefix index holds and answers what the Python one does, whatever is done to them."""

import random
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.core.change import Change
from indexer.core.events import Tier
from scorer_api.index.hits import Span
from scorer_api.index.prefix_index import OWN_TIERS, PrefixIndex, PrefixIndexInPython

core = pytest.importorskip("indexer.compiled._core")

# Few, so that they meet; and those at both ends.
KEYS = [*range(12), 2**63, 2**64 - 1]


def joined(spans: Iterable[Span]) -> list[Span]:
    """Spans that follow on one another and have the same holders are one."""
    found: list[Span] = []
    for start, end, mask in spans:
        if found and found[-1][1:] == (start, mask):
            start = found.pop()[0]
        found.append((start, end, mask))
    return found


class Both:
    """The two indexes, to which the same is done."""

    def __init__(self) -> None:
        self.indexes: list[PrefixIndex] = [PrefixIndexInPython(), core.PrefixIndex()]
        self.live: list[int] = []

    def same(self, ask: Any) -> Any:
        """The answer of both. Fails where they differ."""
        first, second = map(ask, self.indexes)
        assert first == second
        return first

    def add_holder(self) -> None:
        self.live.append(self.same(lambda index: index.add_holder()))

    def remove_holder(self, holder: int) -> None:
        self.live.remove(holder)
        self.same(lambda index: index.remove_holder(holder))

    def give_back(self, holder: int, blocks_max: int) -> None:
        """In pieces; which blocks go first is open."""
        for index in self.indexes:
            held = sum(len(index.held(holder, tier)) for tier in Tier)
            while True:
                goes_on = index.shrink(holder, blocks_max)
                left = sum(len(index.held(holder, tier)) for tier in Tier)
                assert (left, goes_on) == (max(0, held - blocks_max), left > 0)
                held = left
                if not goes_on:
                    break

    def apply(self, holder: int, change: Change) -> None:
        self.same(lambda index: index.apply(holder, change, change.touched))

    def check(self, rng: random.Random) -> None:
        """All that there is to ask."""
        self.same(lambda index: (index.blocks, index.holders, index.is_empty, index.mask, index.removed_holders))
        for holder in self.live:
            for tier in Tier:
                held = self.same(lambda index, holder=holder, tier=tier: set(index.held(holder, tier)))
                self.same(lambda index, holder=holder, tier=tier: [index.holds(holder, tier, key) for key in KEYS])
                self.same(lambda index, holder=holder, tier=tier: [key in index.held(holder, tier) for key in KEYS])
                assert len(self.indexes[1].held(holder, tier)) == len(held)
            asked = rng.choices(KEYS, k=6)
            self.same(lambda index, holder=holder, asked=asked: index.count_held(holder, asked))
        prompt = rng.choices(KEYS, k=rng.randrange(40))
        cuts = sorted(rng.choices(range(len(prompt) + 1), k=2))
        runs = [prompt[: cuts[0]], prompt[cuts[0] : cuts[1]], prompt[cuts[1] :]]
        self.same(lambda index: joined(index.spans(prompt)))
        for alive in (self.indexes[0].mask, sum(1 << holder for holder in self.live if rng.random() < 0.6), 0):

            def walked(index: PrefixIndex, alive: int = alive) -> Any:
                spans: list[Span] = []
                steps = index.walk(alive, iter(runs), spans)
                assert steps == index.walk(alive, runs)
                return steps, joined(spans)

            self.same(walked)


def change_of(touched: list[tuple[Tier, int, bool]], *, cleared: bool, reload: bool) -> Change:
    change = Change()
    change.cleared, change.reload = cleared, reload
    for tier, key, is_held in touched:
        change.touched[tier][key] = is_held
    return change


OPERATIONS = st.lists(
    st.one_of(
        st.just(("add",)),
        st.tuples(st.just("remove"), st.integers(0, 99)),
        st.tuples(st.just("give_back"), st.integers(0, 99), st.integers(1, 5)),
        st.tuples(
            st.just("apply"),
            st.integers(0, 99),
            st.lists(st.tuples(st.sampled_from(Tier), st.sampled_from(KEYS), st.booleans()), max_size=20),
            st.sampled_from([False, False, False, True]),
            st.sampled_from([False, False, False, False, False, True]),
        ),
    ),
    max_size=30,
)


@given(OPERATIONS, st.integers(0, 2**32))
def test_both_answer_alike(operations: list[tuple[Any, ...]], seed: int) -> None:
    both, rng = Both(), random.Random(seed)
    both.add_holder()
    for name, *words in operations:
        if name == "add":
            both.add_holder()
        elif both.live:
            holder = both.live[words[0] % len(both.live)]
            if name == "remove":
                both.remove_holder(holder)
            elif name == "give_back":
                both.give_back(holder, words[1])
            else:
                both.apply(holder, change_of(words[1], cleared=words[2], reload=words[3]))
        both.check(rng)


@pytest.mark.parametrize("holders", [3, 64, 65, 300])
def test_both_answer_alike_after_long_histories(holders: int) -> None:
    """Tables grow and shrink, numbers of holders and of sets are used again."""
    rng, both = random.Random(holders), Both()
    universe = [rng.getrandbits(64) for _ in range(600)]
    for _ in range(holders):
        both.add_holder()
    for number in range(900):
        if number % 90 == 89:
            both.remove_holder(rng.choice(both.live))
            both.add_holder()
        start = rng.randrange(len(universe))
        tier = rng.choices(list(Tier), [20, 3, 1, 1, 1])[0]
        touched = [(tier, key, rng.random() < 0.7) for key in universe[start : start + rng.randrange(64)]]
        both.apply(rng.choice(both.live), change_of(touched, cleared=rng.random() < 0.02, reload=rng.random() < 0.01))
        if number % 30 == 0:
            prompt = universe[start : start + 100]
            alive = both.indexes[0].mask
            both.same(lambda index, alive=alive, prompt=prompt: index.walk(alive, [prompt]))
            both.same(lambda index, prompt=prompt: joined(index.spans(prompt)))
            both.same(lambda index: (index.blocks, index.holders))
    for holder in both.live:
        for tier in Tier:
            both.same(lambda index, holder=holder, tier=tier: set(index.held(holder, tier)))
    for holder in list(both.live):
        both.remove_holder(holder)
    assert both.same(lambda index: (index.blocks, index.holders, index.is_empty)) == (0, 0, True)


def test_both_go_on_with_a_walk_while_the_index_changes() -> None:
    rng = random.Random(5)
    for _ in range(300):
        both = Both()
        for _ in range(rng.choice([2, 63, 64])):
            both.add_holder()
        alive = both.indexes[0].mask
        spans: list[list[Span]] = [[], []]
        walks = [index.begin_walk(alive, found) for index, found in zip(both.indexes, spans, strict=True)]
        for _ in range(6):
            for holder in rng.choices(both.live, k=3):
                touched = [(rng.choice([Tier.GPU, Tier.GPU, *OWN_TIERS]), key, rng.random() < 0.9) for key in rng.choices(range(5), k=6)]
                both.apply(holder, change_of(touched, cleared=False, reload=False))
            if rng.random() < 0.3:
                both.add_holder()
            keys = rng.choices(range(5), k=rng.randrange(4))
            goes_on = [walk.follow(keys) for walk in walks]
            assert goes_on[0] == goes_on[1]
            assert walks[0].steps == walks[1].steps
            assert joined(spans[0]) == joined(spans[1])
            if not goes_on[0]:
                break
        else:
            assert walks[0].end() == walks[1].end()


@pytest.mark.parametrize("key", [-1, 2**64, "1", None, 1.5])
def test_what_is_no_key_is_refused_before_anything_changes(key: Any) -> None:
    index = core.PrefixIndex()
    holder = index.add_holder()
    change = change_of([(Tier.GPU, 1, True), (Tier.GPU, key, True), (Tier.GPU, 2, True)], cleared=False, reload=False)
    with pytest.raises((TypeError, OverflowError)):
        index.apply(holder, change, change.touched)
    with pytest.raises((TypeError, OverflowError)):
        index.walk(1, [[1, key]])
    with pytest.raises((TypeError, OverflowError)):
        index.holds(holder, Tier.GPU, key)
    with pytest.raises((TypeError, OverflowError)):
        index.spans([key])
    assert (index.blocks, index.holders, list(index.held(holder, Tier.GPU))) == (0, 0, [])


def test_wrong_words_are_refused() -> None:
    index, change = core.PrefixIndex(), change_of([], cleared=True, reload=True)
    holder = index.add_holder()
    for call in (
        lambda: index.apply(7, change, change.touched),
        lambda: index.apply(None, change, change.touched),
        lambda: index.apply(holder, None, ()),
        lambda: index.apply(holder, change, 7),
        lambda: index.apply(holder, change, [[1]]),
        lambda: index.remove_holder(7),
        lambda: index.remove_holder("0"),
        lambda: index.shrink(7, 1),
        lambda: index.shrink(holder, "1"),
        lambda: index.held(holder, 5),
        lambda: index.held(7, 0),
        lambda: index.walk("1", []),
        lambda: index.walk(-1, []),
        lambda: index.walk(1, 7),
        lambda: index.walk(1, [7]),
        lambda: index.begin_walk(1, ()),
        lambda: core.Walk(None, 1, []),
    ):
        with pytest.raises((KeyError, TypeError, AttributeError, IndexError, OverflowError, ValueError)):
            call()
    index.apply(holder, change, [*change.touched, {1: True}, {2: True}])
    assert index.holders == 0

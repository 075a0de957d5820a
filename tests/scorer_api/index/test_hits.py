"""The engine's hit rule against its definition, and why a hit is not longer."""

from math import lcm
from typing import NamedTuple

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from indexer.core.groups import CacheShape, Group, Kind
from scorer_api.index.hits import HitRule, Limit, Span, limit_of, longest_hit, rule_for

KEY_TOKENS = 4


class Case(NamedTuple):
    """One stream's groups, and for each which of a prompt's parts of `KEY_TOKENS` tokens it holds."""

    shape: CacheShape
    held: tuple[tuple[bool, ...], ...]

    @property
    def blocks(self) -> int:
        return len(self.held[0])

    @property
    def rule(self) -> HitRule:
        return rule_for(self.shape, self.holders)

    @property
    def holders(self) -> list[int]:
        """Not the first ones of the index, nor in order."""
        return [2 * slot + 1 for slot in reversed(range(len(self.held)))]

    @property
    def spans(self) -> list[Span]:
        """Equal parts are joined, as an index does."""
        spans: list[Span] = []
        for block in range(self.blocks):
            mask = sum(1 << holder for holder, held in zip(self.holders, self.held, strict=True) if held[block]) | 1
            if spans and spans[-1][2] == mask:
                spans[-1] = (spans[-1][0], block + 1, mask)
            else:
                spans.append((block, block + 1, mask))
        return spans

    def hit(self, blocks_max: int | None = None) -> int:
        return longest_hit(self.rule, self.spans, self.blocks if blocks_max is None else blocks_max)

    def limit(self, hit: int, blocks_max: int | None = None) -> Limit | None:
        return limit_of(self.rule, self.shape, self.spans, hit, self.blocks if blocks_max is None else blocks_max)


def is_hit(case: Case, parts: int) -> bool:
    """The definition, token by token (docs/explanation/wire-format.md, "Groups")."""
    tokens = parts * KEY_TOKENS
    group_sizes = [group.block_size or KEY_TOKENS for group in case.shape.groups]
    if tokens % lcm(*group_sizes):
        return False
    for group, size, held in zip(case.shape.groups, group_sizes, case.held, strict=True):
        if group.kind is Kind.FULL:
            first = 0
        elif group.kind is Kind.WINDOW and group.window is not None:
            blocks = -((1 - group.window) // size)
            first = max(0, tokens - blocks * size)
        elif group.kind is Kind.STATE:
            # It is held where its block ends.
            if tokens and not held[parts - 1]:
                return False
            continue
        else:
            continue
        if not all(held[first // KEY_TOKENS : parts]):
            return False
    unknown = [held for group, held in zip(case.shape.groups, case.held, strict=True) if group.kind is Kind.UNKNOWN and not group.is_sparse]
    if unknown and not any(group.kind is Kind.FULL for group in case.shape.groups):
        return all(map(any, zip(*(held[:parts] for held in unknown), strict=True)))
    return True


def longest_by_definition(case: Case, blocks_max: int) -> int:
    return max(parts for parts in range(blocks_max + 1) if is_hit(case, parts))


@st.composite
def groups(draw: st.DrawFn, number: int) -> Group:
    kind = draw(st.sampled_from([Kind.FULL, Kind.FULL, Kind.WINDOW, Kind.WINDOW, Kind.STATE, Kind.CHUNKED, Kind.OTHER, Kind.UNKNOWN]))
    size = draw(st.sampled_from([1, 1, 1, 2, 3])) * KEY_TOKENS
    window = draw(st.integers(1, 40)) if kind is Kind.WINDOW else None
    return Group(number, kind, size, window, is_sparse=kind is not Kind.FULL and draw(st.booleans()))


@st.composite
def presences(draw: st.DrawFn, blocks: int) -> tuple[bool, ...]:
    """Mostly long runs, which is where windows and prefixes end."""
    held: list[bool] = []
    is_held = draw(st.integers(0, 3)) > 0
    while len(held) < blocks:
        held += [is_held] * draw(st.integers(1, 8))
        is_held = not is_held
    return tuple(held[:blocks])


@st.composite
def cases(draw: st.DrawFn) -> Case:
    drawn = tuple(draw(groups(number)) for number in range(draw(st.integers(1, 4))))
    blocks = draw(st.integers(0, 24))
    return Case(CacheShape(KEY_TOKENS, drawn), tuple(draw(presences(blocks)) for _ in drawn))


@settings(max_examples=1_000)
@given(cases(), st.integers(0, 24))
def test_the_longest_hit_is_that_of_the_definition(case: Case, blocks_max: int) -> None:
    blocks_max = min(blocks_max, case.blocks)
    hit = case.hit(blocks_max)
    event(f"hit: {'all' if hit == blocks_max else 'some' if hit else 'none'}")
    assert hit == longest_by_definition(case, blocks_max)


@settings(max_examples=500)
@given(cases())
def test_the_limit_is_a_block_that_the_next_longer_hit_needs_and_nobody_has(case: Case) -> None:
    hit = case.hit()
    limit = case.limit(hit)
    longer = hit + case.rule.alignment
    if longer > case.blocks:
        assert limit is None
        return
    assert limit is not None, "something keeps it from being longer"
    slot = case.shape.groups.index(limit.group)
    assert not case.held[slot][limit.block]
    assert limit.block < longer
    for group_slot, group in enumerate(case.shape.groups):
        if group.kind is Kind.FULL and group_slot <= slot:
            assert limit.group is group or all(case.held[group_slot][:longer]), "the first group that lacks a block is named"


@given(cases(), st.integers(1, 6))
def test_more_blocks_never_make_a_hit_shorter(case: Case, seed: int) -> None:
    more = tuple(tuple(held or (block + slot) % seed == 0 for block, held in enumerate(presence)) for slot, presence in enumerate(case.held))
    assert Case(case.shape, more).hit() >= case.hit()


# By hand

FULL = Group(1, Kind.FULL, KEY_TOKENS)
WINDOW = Group(0, Kind.WINDOW, KEY_TOKENS, 13)  # the last three blocks
STATE = Group(2, Kind.STATE, KEY_TOKENS)


def case(*held: tuple[Group, str]) -> Case:
    return Case(CacheShape(KEY_TOKENS, tuple(group for group, _ in held)), tuple(tuple(letter == "x" for letter in text) for _, text in held))


@pytest.mark.parametrize(
    ("full", "window", "hit"),
    [
        ("xxxxxxxx", "xxxxxxxx", 8),
        ("xxxxxxxx", "xxx..xxx", 8),
        ("xxxxxxxx", "xxx...xx", 3),
        ("xxxxxxxx", ".xxx....", 4),
        ("xxxxxxxx", "xx......", 2),
        ("xxxxxxxx", ".xx.....", 0),
        ("xxxxxx..", "xxxxxxxx", 6),
        ("xxxxx...", "...xxxxx", 0),
        ("xx.xxxxx", "xxxxxxxx", 2),
    ],
)
def test_a_window_needs_its_last_blocks_or_all_of_a_shorter_hit(full: str, window: str, hit: int) -> None:
    assert case((FULL, full), (WINDOW, window)).hit() == hit
    assert case((WINDOW, window), (FULL, full)).hit() == hit


def test_a_window_without_a_full_group_may_start_in_the_middle() -> None:
    assert case((WINDOW, "....xxx.")).hit() == 7
    assert case((WINDOW, "....xx..")).hit() == 0


@pytest.mark.parametrize(("tokens", "blocks"), [(2, 1), (5, 1), (6, 2), (9, 2), (10, 3)])
def test_a_window_of_so_many_tokens_needs_so_many_blocks(tokens: int, blocks: int) -> None:
    """The last token of the prompt is computed: the window reaches one token less back."""
    rule = rule_for(CacheShape(KEY_TOKENS, (FULL, Group(0, Kind.WINDOW, KEY_TOKENS, tokens))), [0, 1])
    assert [window.blocks for window in rule.windows] == [blocks]


def test_a_window_of_one_token_needs_no_block() -> None:
    assert case((FULL, "xxxx"), (Group(0, Kind.WINDOW, KEY_TOKENS, 1), "....")).hit() == 4


def test_a_windows_blocks_are_counted_in_its_own_size() -> None:
    wide = Group(0, Kind.WINDOW, 3 * KEY_TOKENS, 3 * KEY_TOKENS + 2)
    assert [window.blocks for window in rule_for(CacheShape(KEY_TOKENS, (FULL, wide)), [0, 1]).windows] == [6]


@pytest.mark.parametrize(("state", "hit"), [("...x....", 4), ("...x...x", 8), ("x.......", 1), ("........", 0)])
def test_a_state_is_needed_where_the_hit_ends(state: str, hit: int) -> None:
    assert case((FULL, "xxxxxxxx"), (STATE, state)).hit() == hit


def test_every_full_group_holds_all_blocks() -> None:
    assert case((FULL, "xxxxxxxx"), (FULL, "xxxx.xxx")).hit() == 4


def test_chunks_and_kinds_that_are_not_known_are_not_asked_for() -> None:
    assert case((FULL, "xxxx"), (Group(0, Kind.CHUNKED, KEY_TOKENS), "...."), (Group(2, Kind.OTHER, KEY_TOKENS), "....")).hit() == 4


def test_without_a_full_group_any_group_of_unknown_kind_is_enough() -> None:
    unknown = Group(0, Kind.UNKNOWN, KEY_TOKENS), Group(1, Kind.UNKNOWN, KEY_TOKENS)
    assert case((unknown[0], "xx...."), (unknown[1], "..xx..")).hit() == 4
    assert case((unknown[0], "xx...."), (FULL, "xxxxxx")).hit() == 6


def test_hits_are_multiples_of_the_alignment() -> None:
    wide = Group(0, Kind.WINDOW, 2 * KEY_TOKENS, 2 * KEY_TOKENS + 1)
    assert case((FULL, "xxxxxxx"), (wide, "xxxxxxx")).hit() == 6
    assert case((FULL, "xxxxxxx"), (wide, "xxxxxxx")).hit(5) == 4
    assert longest_hit(case((FULL, "xxxxxxx")).rule, case((FULL, "xxxxxxx")).spans, 7, 3) == 6


def test_a_limit_names_the_first_group_that_lacks_a_block_and_which() -> None:
    lost = case((FULL, "xxxxxxxx"), (WINDOW, "xxx.xxx."), (STATE, "xxxxxxxx"))
    assert lost.hit() == 7
    assert lost.limit(7) == Limit(WINDOW, 7)
    assert lost.limit(7, 7) is None
    assert lost.limit(4) == Limit(WINDOW, 3)
    assert case((FULL, "xxx."), (WINDOW, "....")).limit(0) == Limit(WINDOW, 0)
    assert case((FULL, "xxx."), (STATE, "..x.")).limit(3) == Limit(FULL, 3)
    assert case((FULL, "xxxx"), (STATE, "..x.")).limit(3) == Limit(STATE, 3)


def test_beyond_what_was_looked_at_a_block_is_missing() -> None:
    short = case((FULL, "xx"))
    assert limit_of(short.rule, short.shape, short.spans, 2, 4) == Limit(FULL, 2)

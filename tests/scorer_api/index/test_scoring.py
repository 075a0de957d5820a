"""From steps to matches to scores, by hand."""

import pytest

from scorer_api.index.scoring import NO_MATCH, Match, match_of, matches_of, score_of, usable_blocks

WEIGHTS = (1.0, 0.8, 0.5, 0.3)
STEPS = [(0, (0b011, 0b100, 0, 0)), (3, (0b001, 0b011, 0, 0)), (5, (0, 0, 0b001, 0b010)), (9, (0, 0, 0, 0))]


@pytest.mark.parametrize(
    ("tokens", "block_size", "expected"),
    [
        (0, 16, 0),
        (1, 16, 0),
        (16, 16, 0),
        (17, 16, 1),
        (32, 16, 1),
        (33, 16, 2),
        (2053, 16, 128),
        (2049, 16, 128),
        (2048, 16, 127),
        (2, 1, 1),
        (5, 1, 4),
    ],
)
def test_the_last_token_is_never_reused(tokens: int, block_size: int, expected: int) -> None:
    assert usable_blocks(tokens, block_size) == expected


def test_a_block_counts_in_its_best_tier() -> None:
    assert match_of(0, STEPS) == Match(9, (5, 0, 4, 0))
    assert match_of(1, STEPS) == Match(9, (3, 2, 0, 4))


def test_a_match_ends_where_no_tier_holds_the_block() -> None:
    assert match_of(2, STEPS) == Match(3, (0, 3, 0, 0))


def test_a_match_that_ended_does_not_begin_again() -> None:
    steps = [(0, (0b11, 0, 0, 0)), (1, (0b10, 0, 0, 0)), (2, (0b11, 0, 0, 0)), (5, (0, 0, 0, 0))]
    assert match_of(0, steps) == Match(1, (1, 0, 0, 0))


def test_whoever_is_not_in_the_steps_has_no_match() -> None:
    assert match_of(7, STEPS) == NO_MATCH == Match(0, (0, 0, 0, 0))
    assert match_of(0, [(0, (0, 0, 0, 0))]) == NO_MATCH


def test_all_matches_at_once_are_those_of_each_by_itself() -> None:
    assert matches_of([0, 1, 2, 7], STEPS) == {0: Match(9, (5, 0, 4, 0)), 1: Match(9, (3, 2, 0, 4)), 2: Match(3, (0, 3, 0, 0)), 7: NO_MATCH}
    on_the_gpu = [(0, (0b10111, 0, 0, 0)), (1, (0b10010, 0, 0, 0)), (4, (0b10000, 0, 0, 0)), (70, (0, 0, 0, 0))]
    one, four, seventy = Match(1, (1, 0, 0, 0)), Match(4, (4, 0, 0, 0)), Match(70, (70, 0, 0, 0))
    assert matches_of([0, 1, 2, 3, 4], on_the_gpu) == {0: one, 1: four, 2: one, 3: NO_MATCH, 4: seventy}
    assert matches_of([0], [(0, (0, 0, 0, 0))]) == {0: NO_MATCH}


def test_the_score_of_the_designs_example() -> None:
    """118 blocks of 16 tokens on the gpu and 2 in cpu memory, of a prompt of 2,053 tokens."""
    assert score_of(Match(120, (118, 2, 0, 0)), 2053, 16, WEIGHTS) == pytest.approx(1913.6 / 2052)


@pytest.mark.parametrize(
    ("tiers", "expected"),
    [
        ((4, 0, 0, 0), 1.0),
        ((0, 4, 0, 0), 0.8),
        ((0, 0, 4, 0), 0.5),
        ((0, 0, 0, 4), 0.3),
        ((1, 1, 1, 1), 0.65),
        ((0, 0, 0, 0), 0.0),
        ((2, 0, 0, 0), 0.5),
    ],
)
def test_each_tier_has_its_weight(tiers: tuple[int, ...], expected: float) -> None:
    assert score_of(Match(sum(tiers), tiers), 17, 4, WEIGHTS) == pytest.approx(expected)


def test_tokens_behind_the_last_whole_block_lower_the_score() -> None:
    assert score_of(Match(4, (4, 0, 0, 0)), 20, 4, WEIGHTS) == pytest.approx(16 / 19)


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_prompt_without_a_second_token_scores_0(tokens: int) -> None:
    assert score_of(NO_MATCH, tokens, 16, WEIGHTS) == 0.0

"""The bounds of caches, worked out by hand and against a cache that tries everything."""

import itertools
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer_api.fleet.bounds import belady, pooled_lru
from scorer_api.fleet.request import Request

SIZE = 16


def request(number: int, texts: tuple[int, ...]) -> Request:
    """A prompt of whole blocks, one of each text, and a last token of its own; no block of the answer is full."""
    return Request(number, float(number), (*((text, SIZE) for text in texts), (1_000 + number, 1)), (2_000 + number, 1))


def hit_blocks(share: float, requests: list[Request]) -> int:
    return round(share * sum(each.prompt_length for each in requests) / SIZE)


def test_a_pooled_cache_forgets_what_was_used_longest_ago() -> None:
    requests = [request(number, texts) for number, texts in enumerate([(1, 2), (3, 4), (1, 2), (5, 6), (3, 4)])]
    assert hit_blocks(pooled_lru(requests, 4, SIZE), requests) == 2
    assert hit_blocks(pooled_lru(requests, 6, SIZE), requests) == 4


def test_who_knows_the_future_keeps_what_comes_again() -> None:
    requests = [request(number, texts) for number, texts in enumerate([(1, 2), (3, 4), (5, 6), (1, 2)])]
    assert hit_blocks(pooled_lru(requests, 2, SIZE), requests) == 0
    assert hit_blocks(belady(requests, 2, SIZE), requests) == 2


def best_by_trying(wanted: list[tuple[int, ...]], blocks: int) -> int:
    """The most hits of any cache that may keep what it likes."""

    @cache
    def best(number: int, kept: frozenset[int]) -> int:
        if number == len(wanted):
            return 0
        found = next((at for at, block in enumerate(wanted[number]) if block not in kept), len(wanted[number]))
        choices = kept | set(wanted[number])
        size = min(blocks, len(choices))
        return found + max(best(number + 1, frozenset(chosen)) for chosen in itertools.combinations(sorted(choices), size))

    return best(0, frozenset())


PROMPTS = [(1, 2, 3), (1, 2, 4), (5, 6), (5, 7), (8,)]


@given(st.lists(st.sampled_from(PROMPTS), min_size=1, max_size=7), st.integers(1, 4))
def test_no_cache_gets_more_than_beladys_bound(asked: list[tuple[int, ...]], blocks: int) -> None:
    requests = [request(number, texts) for number, texts in enumerate(asked)]
    wanted = [tuple(each.hashes(SIZE)[: (each.prompt_length - 1) // SIZE]) for each in requests]
    bound = belady(requests, blocks, SIZE)
    assert hit_blocks(bound, requests) == best_by_trying(wanted, blocks)
    assert pooled_lru(requests, blocks, SIZE) <= bound


@pytest.mark.parametrize("bound", [belady, pooled_lru])
def test_a_cache_for_everything_misses_what_is_new_only(bound: object) -> None:
    requests = [request(number, texts) for number, texts in enumerate([(1, 2), (1, 2), (1, 3)])]
    assert callable(bound)
    assert hit_blocks(bound(requests, 100, SIZE), requests) == 3

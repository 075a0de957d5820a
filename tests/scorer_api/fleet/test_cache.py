"""A pod's cache, against a slow model of it, and the order in which blocks go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer_api.fleet.cache import BlockCache


def used_once(cache: BlockCache, hashes: list[int]) -> None:
    """A request that computes these blocks, and ends."""
    cache.allocate(len(hashes))
    cache.name(hashes)
    cache.release(hashes, 0)


def test_the_oldest_go_first_and_of_one_prompt_its_last_blocks() -> None:
    cache = BlockCache(6)
    used_once(cache, [1, 2, 3])
    used_once(cache, [4, 5, 6])
    cache.allocate(2)
    assert cache.evicted == [3, 2]
    assert cache.match([1, 2, 3], 3) == 1, "what is left of a prompt is a prefix"


def test_what_is_used_again_is_young_again_and_what_is_in_use_never_goes() -> None:
    cache = BlockCache(4)
    used_once(cache, [1, 2])
    used_once(cache, [3])
    cache.share([1])
    cache.allocate(3)
    assert cache.evicted == [2, 3]
    assert (cache.used, cache.free, 1 in cache) == (4, 0, True)
    with pytest.raises(ValueError, match="1 blocks are not free, 0 are"):
        cache.allocate(1)


def test_a_block_that_two_requests_compute_is_there_once() -> None:
    cache = BlockCache(4)
    cache.allocate(1)
    cache.allocate(1)
    assert cache.name([7]) == [7]
    assert cache.name([7]) == []
    assert (cache.used, len(cache)) == (1, 1)
    cache.release([7], 0)
    assert cache.used == 1, "the other one still uses it"
    cache.release([7], 0)
    assert (cache.used, 7 in cache) == (0, True)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5), st.booleans()), max_size=60))
def test_blocks_are_conserved(steps: list[tuple[int, int, bool]]) -> None:
    """Four prompts of five blocks come and go in a cache of nine: it never holds more, and what nobody uses is kept or evicted, and nothing else."""
    cache = BlockCache(9)
    running: list[tuple[list[int], int]] = []
    for prompt, length, ends in steps:
        if ends and running:
            hashes, unnamed = running.pop(0)
            cache.release(hashes, unnamed)
            continue
        hashes = [10 * prompt + number for number in range(length)]
        found = cache.match(hashes, length)
        if length - found + cache.kept(hashes[:found]) > cache.free:
            continue
        held = {block for block in range(40) if block in cache}
        cache.share(hashes[:found])
        cache.allocate(length - found)
        cache.name(hashes[found:])
        assert {block for block in range(40) if block in cache} == (held | set(hashes)) - set(cache.evicted)
        assert not set(cache.evicted) & {block for others, _ in running for block in others}, "what is in use never goes"
        cache.evicted = []
        running.append((hashes, 0))
        assert cache.used == len({block for others, _ in running for block in others})
        assert len(cache) <= cache.capacity

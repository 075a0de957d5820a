"""Block keys of the compiled core are those of the Python, bit for bit."""

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from indexer.core.block_keys import chain_keys_in_python

core = pytest.importorskip("indexer.compiled._core")

SEEDS = st.integers(0, 2**64 - 1)
BIG = 2**63 - 1


def test_hashes_of_every_length_are_the_librarys() -> None:
    """The algorithm takes another way up to 3, 8, 16, 128 and 240 bytes, and from 1,024 on."""
    rng = random.Random(1)
    for length in range(2_200):
        data, seed = rng.randbytes(length), rng.getrandbits(64)
        assert core.hash_bytes(data, seed) == xxh3_64_intdigest(data, seed), length
        assert core.hash_bytes(data) == xxh3_64_intdigest(data), length


@given(st.binary(max_size=5_000), SEEDS)
def test_hashes_are_the_librarys(data: bytes, seed: int) -> None:
    assert core.hash_bytes(data, seed) == xxh3_64_intdigest(data, seed)


@given(
    SEEDS,
    st.binary(max_size=1_600),
    st.integers(1, 40),
    st.dictionaries(st.integers(0, 60), st.binary(max_size=40), max_size=6),
    st.integers(0, 70),
    st.one_of(st.none(), st.integers(0, 70)),
    st.integers(0, 20),
)
def test_chains_are_those_of_the_python(
    parent: int, tokens: bytes, block_size: int, extra_keys: dict[int, bytes], start: int, stop: int | None, lookahead: int
) -> None:
    tokens = tokens[: len(tokens) // 4 * 4]
    if stop is not None:
        stop = min(stop, len(tokens) // (4 * block_size))
    for extra in (None, extra_keys):
        expected = chain_keys_in_python(parent, tokens, block_size, extra, start, stop, lookahead)
        assert core.chain_keys(parent, tokens, block_size, extra, start, stop, lookahead) == expected


@pytest.mark.parametrize(
    "words",
    [
        {"block_size": 0},
        {"block_size": -1},
        {"block_size": BIG},
        {"start": -1},
        {"stop": 5},
        {"stop": BIG},
        {"start": BIG - 1, "stop": BIG},
        {"lookahead": -1},
        {"lookahead": BIG},
        {"start": 0, "stop": BIG, "block_size": 2**40},
    ],
)
def test_blocks_that_are_not_there_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="block"):
        core.chain_keys(**{"parent": 1, "tokens": bytes(64), "block_size": 4, **words})


@pytest.mark.parametrize(
    "words",
    [
        {"parent": -1},
        {"parent": 2**64},
        {"tokens": None},
        {"tokens": "text"},
        {"tokens": bytearray(64)},
        {"block_size": 2**64},
        {"extra_keys": {0: "text"}},
        {"extra_keys": {0: 7}},
        {"extra_keys": 7},
        {"start": None},
        {"stop": "all"},
        {"stop": 2**64},
    ],
)
def test_values_of_other_types_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises((TypeError, OverflowError, AttributeError)):
        core.chain_keys(**{"parent": 1, "tokens": bytes(64), "block_size": 4, **words})

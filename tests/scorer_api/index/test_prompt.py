"""The block keys of a prompt: computed in runs, once."""

import struct
from array import array

from xxhash import xxh3_64_intdigest

from scorer_api.index.engine_hashes import EngineHashes
from scorer_api.index.prompt import RUN_BLOCKS, Prompt, PromptKeys, length_in_tokens

# msgpack of [1, "", "m", nil].
ROOT = xxh3_64_intdigest(b"\x94\x01\xa0\xa1m\xc0")


def prompt(tokens: int) -> Prompt:
    return Prompt("m", struct.pack(f"<{tokens}I", *range(tokens)))


def keys(tokens: int, block_size: int) -> "array[int]":
    """The keys of all whole blocks."""
    chain = [ROOT]
    for start in range(0, tokens - block_size + 1, block_size):
        chain.append(xxh3_64_intdigest(struct.pack(f"<{block_size}I", *range(start, start + block_size)), chain[-1]))
    return array("Q", chain[1:])


def test_a_run_that_is_not_taken_is_not_computed() -> None:
    found = PromptKeys(prompt(3 * RUN_BLOCKS + 1), "")
    runs = found.runs(1)
    assert not found.computed(1)
    assert next(runs) == keys(RUN_BLOCKS, 1)
    assert found.computed(1) == keys(RUN_BLOCKS, 1)
    assert [len(run) for run in runs] == [RUN_BLOCKS, RUN_BLOCKS]
    assert found.computed(1) == keys(3 * RUN_BLOCKS, 1)


def test_the_last_whole_block_is_not_usable_and_has_a_key_all_the_same() -> None:
    found = PromptKeys(prompt(8), "")
    assert list(found.runs(4)) == [keys(4, 4)]
    assert found.all(4) == keys(8, 4)


def test_keys_go_on_from_what_is_computed() -> None:
    found = PromptKeys(prompt(2 * RUN_BLOCKS + 1), "")
    next(found.runs(1))
    first = found.computed(1)
    assert found.all(1) is first
    assert first == keys(2 * RUN_BLOCKS + 1, 1)


def test_the_longest_chain_says_which_block_size_was_asked_for() -> None:
    found = PromptKeys(prompt(8), "")
    assert found.longest is None
    found.all(4)
    found.all(2)
    assert found.longest == 2


def test_engine_hashes_may_all_match() -> None:
    assert length_in_tokens(prompt(9), 4) == 9
    assert length_in_tokens(EngineHashes("m", [1, 2]), 4) == 9

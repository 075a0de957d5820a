"""Block keys name a block by all that is before it, and by nothing else."""

import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from indexer.core.block_keys import chain_keys, fold_extra_keys, read_extra_keys, root_key


def packed(*tokens: int) -> bytes:
    return struct.pack(f"<{len(tokens)}I", *tokens)


ROOT = 1
TOKENS = packed(1, 2, 3, 4, 5, 6, 7, 8)


def test_keys_chain_as_the_scheme_says() -> None:
    """The formula, spelled out again: each block's tokens and extra keys, seeded with the key before it."""
    first = xxh3_64_intdigest(b"\1\0\0\0\2\0\0\0", ROOT)
    second = xxh3_64_intdigest(b"\3\0\0\0\4\0\0\0" + b"image", first)
    third = xxh3_64_intdigest(b"\5\0\0\0\6\0\0\0", second)
    assert chain_keys(ROOT, TOKENS[:24], 2, {1: b"image"}) == [first, second, third]


@pytest.mark.parametrize("extra_keys", [None, {0: b"a", 63: b"b", 64: b"c", 149: b"d"}])
def test_long_prompts_chain_like_short_ones(extra_keys: dict[int, bytes] | None) -> None:
    tokens = packed(*range(450))
    expected, key = [], ROOT
    for number in range(150):
        key = xxh3_64_intdigest(packed(3 * number, 3 * number + 1, 3 * number + 2) + (extra_keys or {}).get(number, b""), key)
        expected.append(key)
    assert chain_keys(ROOT, tokens, 3, extra_keys) == expected
    assert chain_keys(expected[60], tokens, 3, extra_keys, 61, 140) == expected[61:140]


def test_roots_fold_in_scheme_seed_model_and_lora_name() -> None:
    """msgpack of [1, hash seed, model, LoRA name or nil]."""
    assert root_key("m", None, "") == xxh3_64_intdigest(b"\x94\x01\xa0\xa1m\xc0")
    assert root_key("m", "ad", "seed") == xxh3_64_intdigest(b"\x94\x01\xa4seed\xa1m\xa2ad")


PINNED_ROOT = 0x6D91EA551554357D
PINNED_KEYS = [0x6C76FF4350B7961E, 0x0809194E28F752A4]


def test_the_key_scheme_has_not_changed() -> None:
    """Keys are shared between replicas of different releases: another value here needs another KEY_SCHEME."""
    root = root_key("meta-llama/Llama-3.1-8B", "ad", "seed")
    assert root == PINNED_ROOT
    assert chain_keys(root, packed(*range(8)), 4, {0: fold_extra_keys([["img", 0]], "salt")}) == PINNED_KEYS


@given(st.lists(st.integers(0, 2**32 - 1), max_size=40), st.integers(1, 5), st.integers(0, 40))
def test_a_prefix_of_a_prompt_has_a_prefix_of_its_keys(tokens: list[int], block_size: int, cut: int) -> None:
    whole = chain_keys(ROOT, packed(*tokens), block_size)
    part = chain_keys(ROOT, packed(*tokens[:cut]), block_size)
    assert len(whole) == len(tokens) // block_size
    assert part == whole[: min(cut, len(tokens)) // block_size]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20), st.data())
def test_start_and_stop_take_a_slice_of_the_whole(tokens: list[int], data: st.DataObject) -> None:
    extra_keys = data.draw(st.none() | st.dictionaries(st.integers(0, 9), st.binary(max_size=3)))
    whole = chain_keys(ROOT, packed(*tokens), 2, extra_keys)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    before = whole[start - 1] if start else ROOT
    assert chain_keys(before, packed(*tokens), 2, extra_keys, start, stop) == whole[start:stop]
    assert chain_keys(before, packed(*tokens), 2, extra_keys, start) == whole[start:]


def test_a_tail_that_fills_no_block_has_no_key() -> None:
    assert chain_keys(ROOT, packed(1, 2, 3), 2) == chain_keys(ROOT, packed(1, 2), 2)
    assert chain_keys(ROOT, packed(1), 2) == []
    assert chain_keys(ROOT, b"", 2) == []


def test_the_same_tokens_at_another_place_have_another_key() -> None:
    keys = chain_keys(ROOT, packed(*[1, 2] * 5), 2)
    assert len(set(keys)) == 5


def test_a_changed_block_changes_all_keys_from_it_on() -> None:
    keys = chain_keys(ROOT, TOKENS, 2)
    changed = chain_keys(ROOT, packed(1, 2, 3, 9, 5, 6, 7, 8), 2)
    assert keys[0] == changed[0]
    assert not set(keys[1:]) & set(changed[1:])


def test_the_order_of_two_blocks_counts() -> None:
    assert not set(chain_keys(ROOT, packed(1, 2, 3, 4), 2)) & set(chain_keys(ROOT, packed(3, 4, 1, 2), 2))


def test_models_lora_names_and_seeds_have_roots_of_their_own() -> None:
    roots = [
        root_key("m", None, ""),
        root_key("n", None, ""),
        root_key("m", "ad", ""),
        root_key("m", "be", ""),
        root_key("m", None, "seed"),
        root_key("m", "seed", ""),
        root_key("ad", "m", ""),
    ]
    assert len(set(roots)) == len(roots)


def test_an_empty_lora_name_is_none() -> None:
    assert root_key("m", "", "") == root_key("m", None, "")


def test_extra_keys_part_what_has_the_same_tokens() -> None:
    folded = [
        b"",
        fold_extra_keys([], "salt"),
        fold_extra_keys([], "other"),
        fold_extra_keys(["salt"], None),
        fold_extra_keys([["img", 0]], None),
        fold_extra_keys([["img", 1]], None),
        fold_extra_keys([["img", 0]], "salt"),
        fold_extra_keys([["img", 0], ["img", 1]], None),
        fold_extra_keys([["img", 1], ["img", 0]], None),
        fold_extra_keys([b"img"], None),
        fold_extra_keys(["img"], None),
    ]
    keys = [chain_keys(ROOT, TOKENS, 2, {0: extra}) for extra in folded]
    assert len({chain[0] for chain in keys}) == len(folded)
    assert len({chain[-1] for chain in keys}) == len(folded)


def test_extra_keys_count_from_their_block_on() -> None:
    bare, image = chain_keys(ROOT, TOKENS, 2), chain_keys(ROOT, TOKENS, 2, {2: b"image"})
    assert bare[:2] == image[:2]
    assert not set(bare[2:]) & set(image[2:])


@pytest.mark.parametrize("extra_keys", [None, {}, {0: b""}, {9: b"image"}])
def test_no_extra_keys_change_no_key(extra_keys: dict[int, bytes] | None) -> None:
    assert chain_keys(ROOT, TOKENS, 2, extra_keys) == chain_keys(ROOT, TOKENS, 2)


def test_extra_keys_fold_into_msgpack_of_own_and_salt() -> None:
    assert fold_extra_keys([], None) == b""
    assert fold_extra_keys([], "") == b""
    assert fold_extra_keys([], "t") == b"\x92\x90\xa1t"
    assert fold_extra_keys([["img", -1], b"\1"], None) == b"\x92\x92\x92\xa3img\xff\xc4\x01\x01\xc0"


@pytest.mark.parametrize(
    ("entry", "lora_name", "first", "expected"),
    [
        (None, None, True, ([], None)),
        ([], "ad", True, ([], None)),
        (["ad"], "ad", True, ([], None)),
        (["ad"], None, True, ([], "ad")),
        (["ad", "salt"], "ad", True, ([], "salt")),
        (["salt", "ad"], "ad", True, ([], "salt")),
        (["ad", "ad"], "ad", True, ([], "ad")),
        (["ad", "ad"], "ad", False, (["ad"], None)),
        (["ad", "ad", "ad"], "ad", True, (["ad"], "ad")),
        (["salt", "second"], None, True, (["second"], "salt")),
        (["bare"], None, False, (["bare"], None)),
        (["ad", ["img", -1], "salt"], "ad", True, ([["img", -1]], "salt")),
        (["ad", ["img", -1], "salt"], "ad", False, ([["img", -1], "salt"], None)),
        ([["b", 2], ["a", 1], b"\1", ["c", 0]], None, True, ([["b", 2], ["a", 1], b"\1", ["c", 0]], None)),
        ([["ad"], "ad"], "ad", False, ([["ad"]], None)),
    ],
)
def test_an_entry_is_parted_into_own_keys_and_salt(entry: Any, lora_name: str | None, first: bool, expected: tuple[list[Any], str | None]) -> None:
    assert read_extra_keys(entry, lora_name, first=first) == expected

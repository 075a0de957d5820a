"""What the fields of an event mean, in whichever form they come."""

from typing import Any

import pytest

from indexer.core.events import Cleared, Removed, Stored, Tier
from tests.indexer.wire.payloads import MAX, decode_events, only, plain, stored_array, stored_map

GPU = Tier.GPU

# Hashes


@pytest.mark.parametrize(
    ("announced", "expected"),
    [
        (7, 7),
        (2**64 - 1, MAX),
        (-1, MAX),
        (-(2**63), 2**63),
        (b"\xaa" * 24 + b"\1\2\3\4\5\6\7\x08", 0x0102030405060708),
        (b"\xaa" * 8 + b"\1\2\3\4\5\6\7\x08", 0x0102030405060708),
        (b"\1\2\3\4\5\6\7\x08", 0x0102030405060708),
    ],
)
def test_a_hash_is_the_low_64_bits_of_what_is_sent(announced: int | bytes, expected: int) -> None:
    batch = decode_events(
        stored_map(block_hashes=[announced], parent_block_hash=announced),
        {"type": "BlockRemoved", "block_hashes": [3, announced]},
        stored_array([announced], announced),
        ["BlockRemoved", [announced]],
    )
    assert [event.hashes[-1] for event in batch.events if not isinstance(event, Cleared)] == [expected] * 4
    assert [event.parent for event in batch.events if isinstance(event, Stored)] == [expected] * 2


@pytest.mark.parametrize(
    "fields", [{"block_hashes": [b"1234567"]}, {"block_hashes": [1, b""], "token_ids": [1, 2, 3, 4]}, {"parent_block_hash": b"1234567"}]
)
def test_a_hash_of_fewer_than_8_bytes_is_refused(fields: dict[str, Any]) -> None:
    batch = decode_events(stored_map(**fields))
    assert (batch.events, batch.refused) == ([], {"hash_length": 1})


# Fields of a stored event


def test_parent_0_means_none_in_an_array_only() -> None:
    assert only(stored_array([1], 0)).parent is None
    assert only(stored_map(parent_block_hash=0)).parent == 0
    assert only(stored_array([1], b"\0" * 32)).parent == 0


def test_after_parent_0_in_an_array_comes_a_first_block_with_its_salt() -> None:
    event = only(stored_array([1], 0, [1, 2], 2, None, None, None, [["salt"]]))
    assert plain(event)[7] == {0: [[], "salt"]}


def test_a_lora_id_without_a_name_is_its_name() -> None:
    assert only(stored_map(lora_id=7)).lora_name == "#7"
    assert only(stored_array([1], None, [1, 2], 2, 7)).lora_name == "#7"
    assert only(stored_map(lora_id=7, lora_name="ad")).lora_name == "ad"
    assert only(stored_map(lora_id=0)).lora_name == "#0"


def test_an_empty_lora_name_is_none() -> None:
    assert only(stored_map(lora_name="")).lora_name is None


@pytest.mark.parametrize(
    ("medium", "tier"),
    [
        (None, Tier.GPU),
        ("GPU", Tier.GPU),
        ("gpu", Tier.GPU),
        ("CPU", Tier.CPU),
        ("cpu", Tier.CPU),
        ("CPU_PINNED", Tier.CPU),
        ("Cpu_Pinned", Tier.CPU),
        ("DISK", Tier.DISK),
        ("STORAGE", Tier.DISK),
        ("storage", Tier.DISK),
        ("FS", Tier.DISK),
        ("OBJ", Tier.DISK),
        ("EXTERNAL", Tier.OTHER),
        ("", Tier.OTHER),
        ("GPU2", Tier.OTHER),
    ],
)
def test_a_medium_names_a_tier(medium: str | None, tier: Tier) -> None:
    batch = decode_events(
        stored_map(medium=medium),
        stored_array([1], None, [1, 2], 2, None, medium),
        {"type": "BlockRemoved", "block_hashes": [1], "medium": medium},
        ["BlockRemoved", [1], medium],
    )
    assert [event.tier for event in batch.events if not isinstance(event, Cleared)] == [tier] * 4


@pytest.mark.parametrize(
    ("locality", "tier"), [("REMOTE", Tier.REMOTE), ("remote", Tier.REMOTE), ("LOCAL", Tier.CPU), (None, Tier.CPU), ("", Tier.CPU)]
)
def test_remote_is_a_tier_whatever_the_medium(locality: str | None, tier: Tier) -> None:
    assert only(stored_map(medium="CPU", locality=locality)).tier is tier
    (removed,) = decode_events({"type": "BlockRemoved", "block_hashes": [1], "medium": "CPU", "locality": locality}).events
    assert isinstance(removed, Removed)
    assert removed.tier is tier


def test_a_tier_update_has_no_tokens_and_no_block_size() -> None:
    event = only(stored_map(token_ids=[], block_size=0, medium="CPU"))
    assert plain(event)[1:6] == ([1], None, [], 0, Tier.CPU)


def test_tokens_are_unsigned_32_bit_numbers() -> None:
    assert only(stored_map(token_ids=[0, 2**32 - 1])).tokens == b"\0\0\0\0\xff\xff\xff\xff"


def test_extra_keys_of_a_first_block_are_parted_from_lora_name_and_salt() -> None:
    entries = [["ad", ["img", -1], "salt", b"\1"], None, ["ad"], ["bare"]]
    event = only(stored_map(block_hashes=[1, 2, 3, 4], token_ids=[1] * 8, lora_name="ad", extra_keys=entries))
    assert plain(event)[7] == {0: [[["img", -1], b"\1"], "salt"], 3: [["bare"], None]}


def test_fewer_entries_of_extra_keys_than_blocks_leave_the_rest_without() -> None:
    event = only(stored_map(block_hashes=[1, 2], token_ids=[1] * 4, extra_keys=[[["img", 0]]]))
    assert plain(event)[7] == {0: [[["img", 0]], None]}


def test_a_map_announces_extra_keys_by_them_or_by_a_group() -> None:
    assert only(stored_map(extra_keys=None)).announces_extra_keys
    assert only(stored_map(group_idx=None)).announces_extra_keys
    assert not only(stored_map(cache_salt="salt")).announces_extra_keys


def test_sglang_sends_the_salt_in_place_of_the_lora_name() -> None:
    event = only(stored_array([1, 2], None, [1, 2, 3, 4], 2, None, "GPU", {"cache_salt": "t"}))
    assert (event.lora_name, plain(event)[7]) == (None, {0: [[], "t"]})
    assert event.extra_keys == {0: b"\x92\x90\xa1t"}


def test_sglang_names_the_salt_in_a_map() -> None:
    event = only(stored_map(cache_salt="salt", lora_name="ad"))
    assert (event.lora_name, event.extra_keys) == ("ad", {0: b"\x92\x90\xa4salt"})


def test_a_salt_counts_in_the_first_block_of_a_prompt_only() -> None:
    assert only(stored_map(parent_block_hash=5, cache_salt="salt")).extra_keys is None
    assert only(stored_array([1], 5, [1, 2], 2, None, None, {"cache_salt": "salt"})).extra_keys is None


@pytest.mark.parametrize("position_7", [{}, {"cache_salt": None}, {"cache_salt": ""}, {"other": 1}])
def test_a_map_in_place_of_the_lora_name_may_hold_no_salt(position_7: dict[str, Any]) -> None:
    event = only(stored_array([1], None, [1, 2], 2, None, None, position_7))
    assert (event.lora_name, event.extra_keys) == (None, None)


# KV-cache groups


@pytest.mark.parametrize(("sent", "window"), [(None, None), (1, 1), (4096, 4096), (0, None), (-1, None), (True, None), ("64", None), (2.0, None)])
def test_a_window_is_a_positive_number_of_tokens(sent: Any, window: int | None) -> None:
    event = only(stored_map(group_idx=3, kv_cache_spec_kind="sliding_window", kv_cache_spec_sliding_window=sent))
    assert (event.group, event.kind, event.window) == (3, "sliding_window", window)
    array = stored_array([1], None, [1, 2], 2, None, None, None, None, 3, "sliding_window", sent)
    assert (only(array).group, only(array).kind, only(array).window) == (3, "sliding_window", window)


def test_a_window_is_not_known_where_none_is_sent() -> None:
    assert only(stored_map(kv_cache_spec_kind="full_attention")).window is None


@pytest.mark.parametrize("hashes", [[], [7], [7, 8]])
def test_an_event_with_fewer_hashes_than_blocks_names_its_blocks_by_hash(hashes: list[int]) -> None:
    event = only(stored_map(block_hashes=hashes, token_ids=[1, 2, 3, 4, 5, 6], extra_keys=[["salt"]], kv_cache_spec_kind="sliding_window"))
    assert (event.hashes, event.tokens, event.extra_keys, event.sparse_tokens) == (hashes, b"", None, 6)


def test_an_event_with_as_many_hashes_as_blocks_is_not_sparse() -> None:
    assert only(stored_map()).sparse_tokens == 0
    assert only(stored_map(token_ids=[], block_size=0)).sparse_tokens == 0


def test_a_sparse_event_keeps_the_tokens_that_its_last_state_ends_with() -> None:
    sparse = {"block_hashes": [7], "token_ids": [1, 2, 3, 4]}
    assert only(stored_map(**sparse, kv_cache_spec_kind="mamba")).state_tokens == b"\1\0\0\0\2\0\0\0\3\0\0\0\4\0\0\0"
    assert only(stored_map(**sparse, kv_cache_spec_kind="sliding_window")).state_tokens == b""
    assert only(stored_map(block_hashes=[], token_ids=[1, 2, 3, 4], kv_cache_spec_kind="mamba")).state_tokens == b""
    assert only(stored_map(kv_cache_spec_kind="mamba")).state_tokens == b""


def test_an_event_lists_extra_keys_or_leaves_them_out() -> None:
    """A connector that leaves them out does not say that there are none."""
    assert only(stored_map(extra_keys=[None])).lists_extra_keys
    assert only(stored_map(extra_keys=[["salt"]])).lists_extra_keys
    assert not only(stored_map(extra_keys=None)).lists_extra_keys
    assert not only(stored_map()).lists_extra_keys
    assert only(stored_array([1], None, [1, 2], 2, None, None, None, [None])).lists_extra_keys
    assert not only(stored_array()).lists_extra_keys

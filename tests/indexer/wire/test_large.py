"""Large payloads taken apart in steps; msgspec, which does it in one call, is the reference."""

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from indexer.compiled import core
from indexer.core.event_pieces import result_of
from indexer.core.events import Event
from indexer.limits import WireLimits
from indexer.wire import decoder, event_reader, extra_keys, large, normaliser
from indexer.wire.decoder import WireDecoder
from indexer.wire.large import items_of, split_array, split_fields
from tests.engine import batch, stored
from tests.hostile_payloads import PAYLOADS
from tests.indexer.wire.test_splitter import pack, scalars

pytestmark = pytest.mark.skipif(core is None, reason="the compiled core takes them apart")

few = settings(max_examples=50)
# What is nested deeper the splitter's own tests have.
anything = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text(max_size=2), scalars, max_size=2)

NAMES = frozenset([b"a", b"bc", b"x" * 40])


def bytes_of(fields: large.Fields) -> dict[str | int, bytes]:
    return {name: bytes(field) for name, field in fields.known.items()}


@few
@given(st.lists(anything, max_size=8), st.integers(1, 5))
def test_items_of_an_array_are_found_whatever_they_are(values: list[Any], items_max: int) -> None:
    encoded = pack(values)
    ends = result_of(split_array(encoded))
    assert [bytes(item) for item in items_of(encoded, ends)] == [pack(value) for value in values]
    fields = result_of(split_fields(encoded + b"more", NAMES, items_max))
    assert bytes_of(fields) == {at: pack(value) for at, value in enumerate(values[:items_max])}
    assert (fields.count, fields.end) == (len(values), len(encoded))


@few
@given(st.dictionaries(st.sampled_from(["a", "bc", "x" * 40, "ä", "other"]) | st.text(max_size=3), anything, max_size=8))
def test_fields_of_a_map_are_found_by_their_names(values: dict[str, Any]) -> None:
    encoded = pack(values)
    fields = result_of(split_fields(encoded, NAMES, 1))
    assert bytes_of(fields) == {name: pack(value) for name, value in values.items() if name.encode() in NAMES}
    assert (fields.count, fields.end) == (len(values), len(encoded))


def test_the_last_field_of_a_name_counts_and_every_form_of_a_name() -> None:
    assert bytes_of(result_of(split_fields(b"\x83\xa1a\x01\xd9\x01a\x02\xda\x00\x02bc\x03", NAMES, 1))) == {"a": b"\x02", "bc": b"\x03"}


def test_maps_with_more_fields_than_one_step_looks_at() -> None:
    values = {f"n{number}": number for number in range(large.FIELDS_MAX - 1)} | {"bc": 7}
    assert bytes_of(result_of(split_fields(pack(values), NAMES, 1))) == {"bc": b"\x07"}
    with pytest.raises(ValueError, match="too many"):
        result_of(split_fields(pack(values | {"a": 1}), NAMES, 1))


@pytest.mark.parametrize(
    "encoded", [b"", b"\xc0", b"\x91", b"\x92\x01", b"\x91\xc1", b"\x81\x01\x02", b"\x81\xa1a", b"\xde\x00", b"\x91\xdd\xff\xff\xff\xff"]
)
def test_what_is_cut_short_or_neither_is_an_error(encoded: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        result_of(split_fields(encoded, NAMES, 5))


@few
@given(anything)
def test_every_cut_of_an_item_is_an_error(value: Any) -> None:
    encoded = pack([value])
    for end in range(len(encoded)):
        with pytest.raises(ValueError, match=r"."):
            result_of(split_array(encoded[:end]))


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 3, 300, 70_000])
def test_extension_types_are_stepped_over(size: int) -> None:
    encoded = pack([msgspec.msgpack.Ext(5, b"x" * size), 7])
    assert [bytes(item) for item in items_of(encoded, result_of(split_array(encoded)))][1] == b"\x07"


def test_many_items_take_many_steps() -> None:
    encoded = b"\x91\xdd" + struct.pack(">I", 4 * large.STEP_ITEMS) + b"\xc0" * (4 * large.STEP_ITEMS)
    assert sum(1 for _ in split_array(encoded)) >= 4


# Tokens

integers = st.integers(0, 2**32 - 1) | st.integers(-(2**63), 2**64 - 1) | st.integers(0, 300)


@few
@given(st.lists(integers, max_size=60))
def test_integers_are_packed_up_to_the_first_that_is_no_token(values: list[int]) -> None:
    good = next((at for at, value in enumerate(values) if not 0 <= value < 2**32), len(values))
    expected = struct.pack(f"<{good}I", *values[:good]), len(values)
    assert core.pack_msgpack_integers(pack(values), False) == expected
    assert core.pack_msgpack_integers(pack([[value, 5] for value in values]), True) == expected
    assert not values or core.pack_msgpack_integers(pack(values), True) is None


@few
@given(
    st.lists(integers, max_size=10),
    st.none() | st.booleans() | st.floats() | st.text(max_size=9) | st.binary(max_size=9) | st.lists(integers, max_size=3),
)
def test_what_is_not_all_integers_is_no_list_of_them(values: list[int], other: Any) -> None:
    assert core.pack_msgpack_integers(pack([*values, other]), False) is None
    encoded = pack(values)
    assert not values or core.pack_msgpack_integers(encoded[:-1], False) is None
    assert core.pack_msgpack_integers(encoded + b"\x00", False) is None


# Events

TIGHT = {"UNMEASURED_BYTES_MAX": 0, "SPLIT_BYTES_MIN": 0, "STEP_EXTRA_KEYS_BYTES_MAX": 0, "STEP_HASHES_MAX": 2, "STEP_ENTRIES": 2, "STEP_LISTS": 2}


def blocks(count: int, **more: Any) -> dict[str, Any]:
    return stored(list(range(1, count + 1)), list(range(4 * count)), **more)


KEYS = [[["image", 0]], None, [], ["salt"], [["image", 1], "x"], None, [5]]
ODD: list[Any] = [
    blocks(7),
    blocks(7, extra_keys=KEYS),
    blocks(7, extra_keys=KEYS, lora_name="x", parent_block_hash=None),
    blocks(7, extra_keys=KEYS[:3], lora_id=4),
    blocks(7, extra_keys=None, cache_salt="salt"),
    blocks(7, extra_keys=KEYS, cache_salt="salt"),
    blocks(7, extra_keys=[5] * 7),
    blocks(7, extra_keys=[None] * 8),
    blocks(7, extra_keys={}),
    blocks(7, extra_keys=[["x" * 70]] * 7),
    blocks(7, lookahead_token_ids=[[number] for number in range(7)]),
    blocks(7, lookahead_token_ids=[[1, 2]] * 7, extra_keys=KEYS),
    blocks(7, lookahead_token_ids=[[1, 2]] * 6),
    blocks(7, lookahead_token_ids=[[1, 2]] * 6 + [[1]]),
    blocks(7, lookahead_token_ids=[[1, -2]] * 7),
    blocks(7, news=[1, 2]),
    blocks(7, news=[1, 2], extra_keys=KEYS),
    blocks(7, ownership={"a": 1}, session_id="s", kv_cache_spec_sliding_window=64),
    blocks(7, kv_cache_spec_sliding_window=[1] * 20),
    blocks(7, group_idx=-1),
    blocks(7, medium="x" * 5_000),
    {**blocks(7), "block_hashes": [number.to_bytes(32, "big") for number in range(1, 8)]},
    {**blocks(7), "block_hashes": [-1, 2, b"12345678", 4, 5, 6, 2**64 - 1]},
    {**blocks(7), "block_hashes": [1, 2, 3, 4, 5, 6, b"short"]},
    {**blocks(7), "block_hashes": [1, 2, 3, 4, 5, 6, None]},
    {**blocks(7), "token_ids": [*range(27), 2**32]},
    {**blocks(7, extra_keys=KEYS), "token_ids": [*range(9), -1, *range(18)]},
    {**blocks(7), "token_ids": [2**40, *range(27)]},
    {**blocks(7), "token_ids": [*range(27), "digest"]},
    {**blocks(7), "token_ids": [*range(27), None]},
    {**blocks(7), "token_ids": [[number, 1] for number in range(28)]},
    {**blocks(7), "token_ids": [*[[number, 1] for number in range(27)], [2**33, 1]]},
    {**blocks(7), "token_ids": [*[[number, 1] for number in range(27)], [1, None]]},
    {**blocks(7), "token_ids": list(range(27))},
    {**blocks(7), "token_ids": list(range(56))},
    {**blocks(7), "block_size": 0},
    {"type": "BlockRemoved", "block_hashes": [1, b"12345678", -3, 4, 5], "medium": "CPU"},
    {"type": "BlockRemoved", "block_hashes": [1, 2, 3], "token_ids": [1]},
    {"type": "AllBlocksCleared"},
    {"type": "AllBlocksCleared", "news": 1},
    {"type": "News", "block_hashes": None},
    {"block_hashes": [1]},
    {"type": 5},
    {},
    [],
    5,
    ["BlockStored", [1, 2, 3], None, list(range(12)), 4, None, "GPU", {"cache_salt": "s"}, KEYS[:3], 0, "full_attention", 64],
    ["BlockStored", [1, 2, 3], 0, list(range(12)), 4, None, None, "name", KEYS[:3], 0, "full_attention", 64, "news"],
    ["BlockStored", [1, 2, 3], None, list(range(12))],
    ["BlockRemoved", [1, 2, 3], "CPU", 1],
    ["BlockRemoved", [1, 2, 3], None, None, "news"],
    ["AllBlocksCleared"],
    ["News", 1],
]


def decoded(payload: bytes, **limits: int) -> tuple[list[Event], dict[str, int], int, int, Any, Any]:
    wire = WireDecoder(msgspec.structs.replace(WireLimits(), **limits))
    found = result_of(wire.decode_in_steps(payload))
    return list(found.events), dict(found.refused), found.unknown_events, found.unknown_fields, found.published_at_s, found.rank


def tighten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything is large."""
    for module in (decoder, event_reader, large, normaliser, extra_keys):
        for name, value in TIGHT.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(decoder, "PLAIN_BYTES_MAX", 0)
    monkeypatch.setattr(decoder, "WHOLE_BYTES_MAX", 0)


@pytest.mark.parametrize("at", range(len(ODD)))
def test_a_large_event_is_read_as_a_small_one(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    payload = batch([blocks(2), ODD[at], blocks(3)], rank=3)
    expected = decoded(payload, extra_keys_bytes_max=64)
    tighten(monkeypatch)
    assert decoded(payload, extra_keys_bytes_max=64) == expected


@pytest.mark.parametrize(
    "payload",
    [
        msgspec.msgpack.encode({"ts": 1.5, "events": [blocks(2)], "data_parallel_rank": 2}),
        msgspec.msgpack.encode({"ts": 1.5, "events": [blocks(2)], "news": 2}),
        msgspec.msgpack.encode([1.5, [blocks(2)], None, b"x" * 16, "news"]),
        msgspec.msgpack.encode([[1.5], [blocks(2)], "rank"]),
        msgspec.msgpack.encode([1.5, []]),
    ],
)
def test_a_large_batch_is_read_as_a_small_one(monkeypatch: pytest.MonkeyPatch, payload: bytes) -> None:
    expected = decoded(payload)
    tighten(monkeypatch)
    assert decoded(payload) == expected


@pytest.mark.parametrize(
    "payload", [b"\xc0", b"\x91\x01", b"\x92\x01\x02", b"\x92\x01\x90\x00", b"\x92\x01\x91", b"\x81\xa2ts\x01", b"\x82\x01\x02\x03\x04"]
)
def test_a_large_batch_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, payload: bytes) -> None:
    tighten(monkeypatch)
    with pytest.raises(decoder.Refused) as refused:
        decoded(payload)
    assert refused.value.reason == "batch_malformed"


# Steps


@pytest.mark.parametrize("name", ["items in a field of an event that nobody knows", "items for a time stamp"])
def test_no_piece_of_a_payload_is_gone_through_in_one_call(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """No decoder of msgspec sees more than the parts that are read: the rest is stepped over in pieces."""
    payload = PAYLOADS[name][0]()
    seen: list[int] = []

    def spy(decode: Any) -> Any:
        def watched(encoded: Any) -> Any:
            seen.append(len(encoded))
            return decode(encoded)

        return watched

    for module in (decoder, event_reader, extra_keys):
        for name_of in [each for each in vars(module) if each.startswith("decode_")]:
            monkeypatch.setattr(module, name_of, spy(getattr(module, name_of)))
    steps = sum(1 for _ in WireDecoder(WireLimits()).decode_in_steps(payload))
    assert steps >= len(payload) / large.STEP_ITEMS
    assert max(seen, default=0) < large.SPLIT_BYTES_MIN

"""What payloads of every release mean, and what becomes of payloads that no engine should send."""

import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest
from xxhash import xxh3_64_intdigest

from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.stream_state import StreamState
from indexer.errors import REASONS, Refused
from indexer.limits import WireLimits
from indexer.wire.decoder import Batch, WireDecoder, split_frames, split_reply

GOLDEN = [json.loads(line) for line in (Path(__file__).parents[2] / "data" / "wire-golden.jsonl").read_text().splitlines()]

MAX = 2**64 - 1
# The last 8 of the 32 bytes 00 01 .. 1f.
SHA = 0x18191A1B1C1D1E1F
GPU = Tier.GPU

pack = msgspec.msgpack.encode


def decode(payload: bytes, **limits: int) -> Batch:
    return WireDecoder(WireLimits(**limits)).decode(payload)


def decode_events(*events: Any, **limits: int) -> Batch:
    return decode(pack([1.5, list(events), 0]), **limits)


def plain(event: Event) -> tuple[Any, ...]:
    """An event with its tokens and extra keys unpacked."""
    match event:
        case Stored():
            tokens = list(struct.unpack(f"<{len(event.tokens) // 4}I", event.tokens))
            extra = {position: msgspec.msgpack.decode(folded) for position, folded in (event.extra_keys or {}).items()}
            what = event.hashes, event.parent, tokens, event.block_size, event.tier, event.lora_name, extra
            return "stored", *what, event.announces_extra_keys, event.group, event.kind
        case Removed():
            return "removed", event.hashes, event.tier, event.group
        case Cleared():
            return ("cleared",)


# What the golden payloads say, by hand from docs/explanation/wire-format.md. In order: hashes, parent, tokens, block size, tier, LoRA name, extra
# keys of each block as [own, salt], whether extra keys are announced, group, kind.

PLAIN = [
    ("stored", [MAX, 7], 5, [1, 2, 3, 4], 2, GPU, None, {}, False, None, None),
    ("stored", [MAX, 7], None, [1, 2, 3, 4], 2, GPU, None, {}, False, None, None),
    ("removed", [MAX, 7], GPU, None),
    ("cleared",),
]
WITH_BYTES = [
    ("stored", [MAX, 7], 5, [1, 2, 3, 4], 2, GPU, None, {}, False, None, None),
    ("stored", [SHA, 0], MAX, [1, 2, 3, 4], 2, GPU, None, {}, False, None, None),
    ("stored", [MAX, 7], None, [1, 2, 3, 4], 2, GPU, None, {}, False, None, None),
    ("removed", [MAX, 7], GPU, None),
    ("cleared",),
]
WITH_LORA = [
    ("stored", [MAX, 7], 5, [1, 2, 3, 4], 2, GPU, "ad", {}, False, None, None),
    ("stored", [SHA, 0], MAX, [1, 2, 3, 4], 2, GPU, "ad", {}, False, None, None),
    ("stored", [MAX, 7], None, [1, 2, 3, 4], 2, GPU, None, {}, False, None, None),
    ("removed", [MAX, 7], GPU, None),
    ("cleared",),
]
# These events continue a prompt (their parent is 5 or MAX), so a bare string is no salt but one of the block's own keys.
WITH_EXTRA_KEYS = [
    ("stored", [MAX, 7], 5, [1, 2, 3, 4], 2, GPU, "ad", {0: [[["img", -1], "salt"], None]}, True, None, None),
    ("stored", [SHA, 0], MAX, [1, 2, 3, 4], 2, GPU, "ad", {0: [[["img", -1], "salt"], None]}, True, None, None),
    ("stored", [MAX, 7], None, [1, 2, 3, 4], 2, GPU, None, {}, True, None, None),
    ("removed", [MAX, 7], GPU, None),
    ("cleared",),
]
WITH_GROUP = [
    ("stored", [MAX, 7], 5, [1, 2, 3, 4], 2, GPU, "ad", {0: [[["img", -1], "salt"], None]}, True, 0, None),
    ("stored", [SHA, 0], MAX, [1, 2, 3, 4], 2, GPU, "ad", {0: [[["img", -1], "salt"], None]}, True, 0, None),
    ("stored", [MAX, 7], None, [1, 2, 3, 4], 2, GPU, None, {}, True, 0, None),
    ("removed", [MAX, 7], GPU, 0),
    ("cleared",),
]
WITH_KIND = [
    ("stored", [MAX, 7], 5, [1, 2, 3, 4], 2, GPU, "ad", {0: [[["img", -1], "salt"], None]}, True, 0, "full_attention"),
    ("stored", [SHA, 0], MAX, [1, 2, 3, 4], 2, GPU, "ad", {0: [[["img", -1], "salt"], None]}, True, 0, "full_attention"),
    ("stored", [MAX, 7], None, [1, 2, 3, 4], 2, GPU, None, {}, True, 0, "full_attention"),
    ("removed", [MAX, 7], GPU, 0),
    ("cleared",),
]
SGLANG_SALT = [
    ("stored", [MAX, 7], 5, [1, 2, 3, 4], 2, GPU, None, {}, False, None, None),
    ("stored", [MAX, 7], 5, [1, 2, 3, 4], 2, GPU, None, {}, False, None, None),
    ("stored", [MAX, 7], None, [1, 2, 3, 4], 2, GPU, None, {}, False, None, None),
    ("removed", [MAX, 7], GPU, None),
    ("cleared",),
]
SGLANG_LORA = [
    ("stored", [MAX, 7], 5, [1, 2, 3, 4], 2, GPU, "ad", {}, False, None, None),
    ("stored", [MAX, 7], None, [1, 2, 3, 4], 2, GPU, None, {}, False, None, None),
    ("removed", [MAX, 7], GPU, None),
    ("cleared",),
]

EXPECTED = {
    "vllm 0.9.0": PLAIN,
    "vllm 0.9.2": PLAIN,
    "vllm 0.10.2": WITH_BYTES,
    "vllm 0.14.0": WITH_LORA,
    "vllm 0.17.0": WITH_EXTRA_KEYS,
    "vllm 0.20.0": WITH_GROUP,
    "vllm 0.22.0": WITH_KIND,
    "vllm 0.24.0": WITH_KIND,
    "vllm 0.26.0": WITH_KIND,
    "vllm 0.29.0": WITH_KIND,
    "vllm 0.30.0": WITH_KIND,
    "vllm 0.33.0": WITH_KIND,
    "sglang 0.5.2": PLAIN,
    "sglang 0.5.9": PLAIN,
    "sglang 0.5.17": PLAIN,
    "sglang 0.5.18": SGLANG_SALT,
    "sglang 0.5.20": PLAIN,
    "sglang 0.5.23": SGLANG_LORA,
}


def name_of(golden: dict[str, str]) -> str:
    return f"{golden['engine']} {golden['version']}"


def test_every_golden_payload_has_its_expectation() -> None:
    assert [name_of(golden) for golden in GOLDEN] == list(EXPECTED)


@pytest.mark.parametrize("golden", GOLDEN, ids=name_of)
def test_a_golden_payload_means_what_its_release_meant(golden: dict[str, str]) -> None:
    batch = decode(bytes.fromhex(golden["hex"]))
    assert [plain(event) for event in batch.events] == EXPECTED[name_of(golden)]
    assert batch.published_at_s == 1_700_000_000.5
    assert batch.rank == (None if name_of(golden) == "vllm 0.9.0" else 3)
    assert (batch.refused.total(), batch.unknown_events, batch.unknown_fields) == (0, 0, 0)


@pytest.mark.parametrize("golden", GOLDEN, ids=name_of)
def test_one_decoder_reads_each_golden_payload_after_any_other(golden: dict[str, str]) -> None:
    decoder = WireDecoder(WireLimits())
    for other in GOLDEN:
        decoder.decode(bytes.fromhex(other["hex"]))
        batch = decoder.decode(bytes.fromhex(golden["hex"]))
        assert [plain(event) for event in batch.events] == EXPECTED[name_of(golden)]


# What the golden payloads do. The keys, by hand: [1, "", "m", nil] is the root of model "m".

ROOT = xxh3_64_intdigest(b"\x94\x01\xa0\xa1m\xc0")
FIRST = xxh3_64_intdigest(struct.pack("<2I", 1, 2), ROOT)
SECOND = xxh3_64_intdigest(struct.pack("<2I", 3, 4), FIRST)
# The event with byte hashes continues the block of hash MAX, which is FIRST.
THIRD_BARE = xxh3_64_intdigest(struct.pack("<2I", 1, 2), FIRST)
FOURTH_BARE = xxh3_64_intdigest(struct.pack("<2I", 3, 4), THIRD_BARE)
THIRD_IMAGE = xxh3_64_intdigest(struct.pack("<2I", 1, 2) + b"\x92\x92\x92\xa3img\xff\xa4salt\xc0", FIRST)
FOURTH_IMAGE = xxh3_64_intdigest(struct.pack("<2I", 3, 4), THIRD_IMAGE)

# After each event: what the gpu holds, and how many blocks wait for their parent. The first event's parent was never announced; the one
# without a parent gives both of its hashes a key and a second copy, so that one removal leaves them.
AFTER_EACH: dict[int, list[tuple[set[int], int]]] = {
    id(PLAIN): [(set(), 2), ({FIRST, SECOND}, 0), ({FIRST, SECOND}, 0), (set(), 0)],
    id(SGLANG_LORA): [(set(), 2), ({FIRST, SECOND}, 0), ({FIRST, SECOND}, 0), (set(), 0)],
    id(SGLANG_SALT): [(set(), 2), (set(), 2), ({FIRST, SECOND}, 0), ({FIRST, SECOND}, 0), (set(), 0)],
    **{
        id(expected): [
            (set(), 2),
            (set(), 4),
            ({FIRST, SECOND, THIRD_BARE, FOURTH_BARE}, 0),
            ({FIRST, SECOND, THIRD_BARE, FOURTH_BARE}, 0),
            (set(), 0),
        ]
        for expected in (WITH_BYTES, WITH_LORA)
    },
    **{
        id(expected): [
            (set(), 2),
            (set(), 4),
            ({FIRST, SECOND, THIRD_IMAGE, FOURTH_IMAGE}, 0),
            ({FIRST, SECOND, THIRD_IMAGE, FOURTH_IMAGE}, 0),
            (set(), 0),
        ]
        for expected in (WITH_EXTRA_KEYS, WITH_GROUP, WITH_KIND)
    },
}


@pytest.mark.parametrize("golden", GOLDEN, ids=name_of)
def test_a_golden_payload_applied_event_by_event_holds_what_it_should(golden: dict[str, str]) -> None:
    state = StreamState("m", "")
    seen = []
    for event in decode(bytes.fromhex(golden["hex"])).events:
        state.apply([event], 0.0)
        seen.append((state.held(GPU), state.parked))
    assert seen == AFTER_EACH[id(EXPECTED[name_of(golden)])]


@pytest.mark.parametrize("golden", GOLDEN, ids=name_of)
def test_in_set_mode_one_removal_takes_a_golden_payloads_two_blocks(golden: dict[str, str]) -> None:
    state = StreamState("m", "", "set")
    *_, removal, _ = events = decode(bytes.fromhex(golden["hex"])).events
    state.apply(events[:-2], 0.0)
    change = state.apply([removal], 0.0)
    assert change.touched[GPU] == {FIRST: False, SECOND: False}
    assert not {FIRST, SECOND} & state.held(GPU)


@pytest.mark.parametrize("golden", GOLDEN, ids=name_of)
def test_a_golden_payload_as_one_batch_ends_in_nothing_but_a_clear(golden: dict[str, str]) -> None:
    state = StreamState("m", "")
    change = state.apply(decode(bytes.fromhex(golden["hex"])).events, 0.0)
    assert change.cleared
    assert not change.reload
    assert not any(change.touched)
    assert not any(state.held(tier) for tier in Tier)


# Frames


def test_a_live_message_has_topic_sequence_and_payload() -> None:
    assert split_frames([b"kv@pod@m", b"\0\0\0\0\0\0\1\2", b"payload"]) == (258, b"payload")
    assert split_frames([b"", b"\xff" * 7 + b"\xfe", b""]) == (2**64 - 2, b"")


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "frame_count"),
        ([b"\0" * 8, b"payload"], "frame_count"),
        ([b"", b"", b"\0" * 8, b"payload"], "frame_count"),
        ([b"", b"\0" * 7, b"payload"], "frame_sequence"),
        ([b"", b"\0" * 9, b"payload"], "frame_sequence"),
        ([b"", b"", b"payload"], "frame_sequence"),
        ([b"", b"\xff" * 8, b""], "frame_sequence"),
    ],
)
def test_a_live_message_of_another_shape_is_refused(frames: list[bytes], reason: str) -> None:
    with pytest.raises(Refused) as refused:
        split_frames(frames)
    assert refused.value.reason == reason


def test_a_reply_is_read_with_and_without_its_topic() -> None:
    assert split_reply([b"", b"\0\0\0\0\0\0\0\5", b"payload"]) == (5, b"payload")
    assert split_reply([b"", b"topic", b"\0\0\0\0\0\0\0\5", b"payload"]) == (5, b"payload")


def test_a_payload_like_the_end_marker_is_still_a_reply() -> None:
    assert split_reply([b"", b"\0" * 8, b"\xff" * 8]) == (0, b"\xff" * 8)


@pytest.mark.parametrize("frames", [[b"", b"\xff" * 8, b""], [b"", b"", b"\xff" * 8, b""]])
def test_the_end_of_a_replay_is_known_in_both_shapes(frames: list[bytes]) -> None:
    assert split_reply(frames) is None


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([], "frame_count"),
        ([b"\0" * 8, b"payload"], "frame_count"),
        ([b"", b"", b"", b"\0" * 8, b"payload"], "frame_count"),
        ([b"", b"\0" * 7, b"payload"], "frame_sequence"),
        ([b"", b"topic", b"", b"payload"], "frame_sequence"),
    ],
)
def test_a_reply_of_another_shape_is_refused(frames: list[bytes], reason: str) -> None:
    with pytest.raises(Refused) as refused:
        split_reply(frames)
    assert refused.value.reason == reason


# Hashes


def stored_map(**fields: Any) -> dict[str, Any]:
    return {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1, 2], "block_size": 2} | fields


def stored_array(hashes: Any = (1,), parent: Any = None, tokens: Any = (1, 2), block_size: Any = 2, *more: Any) -> list[Any]:
    return ["BlockStored", hashes, parent, tokens, block_size, *more]


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


# One bad event

BAD_EVENTS: list[tuple[str, Any, Any]] = [
    ("event_malformed", stored_map(block_size="2"), stored_array([1], None, [1, 2], "2")),
    ("event_malformed", {"type": "BlockStored", "block_hashes": [1]}, ["BlockStored", [1]]),
    ("event_malformed", {"type": "BlockRemoved"}, ["BlockRemoved"]),
    ("event_malformed", {"type": "BlockRemoved", "block_hashes": 1}, ["BlockRemoved", 1]),
    ("event_malformed", stored_map(medium=1), stored_array([1], None, [1, 2], 2, None, 1)),
    ("event_malformed", {"block_hashes": [1]}, []),
    ("event_malformed", {"type": 5}, [5]),
    ("event_malformed", 5, "BlockStored"),
    ("event_malformed", None, True),
    ("event_malformed", stored_map(cache_salt=5), stored_array([1], None, [1, 2], 2, None, None, {"cache_salt": 5})),
    ("event_malformed", stored_map(parent_block_hash=True), stored_array([1], True)),
    ("event_limit", stored_map(block_hashes=[1] * 5, token_ids=[1] * 10), stored_array([1] * 5, None, [1] * 10)),
    ("event_limit", stored_map(token_ids=[1] * 13, block_size=13), stored_array([1], None, [1] * 13, 13)),
    ("event_limit", {"type": "BlockRemoved", "block_hashes": [1] * 5}, ["BlockRemoved", [1] * 5]),
    ("event_limit", stored_map(lora_name="longer"), stored_array([1], None, [1, 2], 2, None, None, "longer")),
    ("event_limit", stored_map(cache_salt="longer"), stored_array([1], None, [1, 2], 2, None, None, {"cache_salt": "longer"})),
    ("event_limit", stored_map(extra_keys=[["s", ["x" * 20, 0]]]), stored_array([1], None, [1, 2], 2, None, None, None, [["s", ["x" * 20, 0]]])),
    ("hash_type", stored_map(block_hashes=["1"]), stored_array(["1"])),
    ("hash_type", stored_map(block_hashes=[True]), stored_array([True])),
    ("hash_type", stored_map(block_hashes=[None]), stored_array([None])),
    ("hash_type", {"type": "BlockRemoved", "block_hashes": [1.5]}, ["BlockRemoved", [1.5]]),
    ("hash_type", {"type": "BlockRemoved", "block_hashes": [1, False]}, ["BlockRemoved", [1, False]]),
    ("hash_length", stored_map(block_hashes=[b"short"]), stored_array([b"short"])),
    ("hash_length", {"type": "BlockRemoved", "block_hashes": [b"short"]}, ["BlockRemoved", [b"short"]]),
    ("token_type", stored_map(token_ids=[1, True]), stored_array([1], None, [1, True])),
    ("token_type", stored_map(token_ids=[1, 2.0]), stored_array([1], None, [1, 2.0])),
    ("token_type", stored_map(token_ids=[1, None]), stored_array([1], None, [1, None])),
    ("token_range", stored_map(token_ids=[1, -1]), stored_array([1], None, [1, -1])),
    ("token_range", stored_map(token_ids=[1, 2**32]), stored_array([1], None, [1, 2**32])),
    ("token_text", stored_map(token_ids=[1, "digest"]), stored_array([1], None, [1, "digest"])),
    ("token_pairs", stored_map(token_ids=[[1, 2], [2, 3]]), stored_array([1], None, [[1, 2], [2, 3]])),
    ("extra_keys", stored_map(extra_keys=[None, None]), stored_array([1], None, [1, 2], 2, None, None, None, [None, None])),
    ("extra_keys", stored_map(extra_keys=["salt"]), stored_array([1], None, [1, 2], 2, None, None, None, ["salt"])),
    ("unaligned", stored_map(token_ids=[1, 2, 3]), stored_array([1], None, [1, 2, 3])),
    ("unaligned", stored_map(block_hashes=[]), stored_array([])),
    ("unaligned", stored_map(block_size=0), stored_array([1], None, [1, 2], 0)),
    ("block_size", stored_map(block_size=-2), stored_array([1], None, [1, 2], -2)),
    ("block_size", stored_map(token_ids=[], block_size=17), stored_array([1], None, [], 17)),
]

TIGHT = {"hashes_per_event_max": 4, "tokens_per_event_max": 12, "text_length_max": 5, "extra_keys_bytes_max": 16, "block_size_max": 16}


@pytest.mark.parametrize(("reason", "as_map", "as_array"), BAD_EVENTS)
@pytest.mark.parametrize("form", ["map", "array"])
def test_a_bad_event_costs_itself_and_is_counted(reason: str, as_map: Any, as_array: Any, form: str) -> None:
    if form == "map":
        batch = decode_events(stored_map(block_hashes=[11]), as_map, {"type": "BlockRemoved", "block_hashes": [12]}, **TIGHT)
    else:
        batch = decode_events(stored_array([11]), as_array, ["BlockRemoved", [12]], **TIGHT)
    assert [event.hashes for event in batch.events if not isinstance(event, Cleared)] == [[11], [12]]
    assert batch.refused == {reason: 1}
    assert (batch.unknown_events, batch.unknown_fields) == (0, 0)
    assert (batch.published_at_s, batch.rank) == (1.5, 0)


BAD_BATCHES: list[tuple[str, bytes]] = [
    ("batch_malformed", b""),
    ("batch_malformed", b"\xc1"),
    ("batch_malformed", pack(5)),
    ("batch_malformed", pack([])),
    ("batch_malformed", pack([1.5])),
    ("batch_malformed", pack([1.5, None])),
    ("batch_malformed", pack([1.5, {}, 0])),
    ("batch_malformed", pack({"ts": 1.5})),
    ("batch_malformed", pack({"events": []})),
    ("batch_malformed", pack([1.5, [], 0])[:-1]),
    ("batch_malformed", pack([1.5, [stored_map()], 0]) + b"\xc0"),
    ("batch_malformed", pack([1.5, [stored_array()], 0]) + pack([1.5, [], 0])),
    # Headers that promise 2^32 - 1 items, bytes or entries and bring none.
    ("batch_malformed", b"\xdd\xff\xff\xff\xff"),
    ("batch_malformed", b"\xdf\xff\xff\xff\xff"),
    ("batch_malformed", b"\x93\xcb" + b"\0" * 8 + b"\xdd\xff\xff\xff\xff"),
    ("batch_malformed", b"\x93\xcb" + b"\0" * 8 + b"\x91\xc6\xff\xff\xff\xff"),
    ("batch_malformed", b"\x93\xcb" + b"\0" * 8 + b"\x91\x92\xacBlockRemoved\xdd\xff\xff\xff\xff"),
    ("batch_malformed", b"\x91" * 100_000),
    ("batch_nested", b"\x81\xa1k" * 100_000 + b"\xc0"),
    ("batch_nested", b"\x83\xa2ts\x01\xa6events\x91" + b"\x91" * 100_000 + b"\xc0\xa1k\x01"),
    ("batch_nested", b"\x93\x01\x91" + b"\x91" * 600_000 + b"\xc0\xc0"),
]


@pytest.mark.parametrize(("reason", "payload"), BAD_BATCHES, ids=[f"{reason}-{number}" for number, (reason, _) in enumerate(BAD_BATCHES)])
def test_a_payload_that_is_no_batch_is_refused_and_the_next_is_read(reason: str, payload: bytes) -> None:
    decoder = WireDecoder(WireLimits())
    with pytest.raises(Refused) as refused:
        decoder.decode(payload)
    assert refused.value.reason == reason
    assert len(decoder.decode(pack([1.5, [stored_map()], 0])).events) == 1


def test_a_batch_of_too_many_events_is_refused_in_every_form() -> None:
    cleared = {"type": "AllBlocksCleared"}
    assert len(decode_events(cleared, cleared, events_per_batch_max=2).events) == 2
    for events in ([cleared] * 3, [["AllBlocksCleared"]] * 3, [cleared, ["AllBlocksCleared"], None]):
        with pytest.raises(Refused) as refused:
            decode_events(*events, events_per_batch_max=2)
        assert refused.value.reason == "batch_events"


@pytest.mark.parametrize("limit", [{"hashes_per_batch_max": 4}, {"tokens_per_batch_max": 8}])
def test_events_beyond_what_a_batch_may_hold_are_refused_and_those_before_are_applied(limit: dict[str, int]) -> None:
    two_blocks = {"block_hashes": [1, 2], "token_ids": [1, 2, 3, 4]}
    for events in ([stored_map(**two_blocks)] * 3, [stored_array([1, 2], None, [1, 2, 3, 4])] * 3):
        batch = decode_events(*events, **limit)
        assert len(batch.events) == 2
        assert batch.refused == {"batch_limit": 1}
    batch = decode_events({"type": "BlockRemoved", "block_hashes": [1, 2, 3, 4, 5]}, hashes_per_batch_max=4)
    assert (batch.events, batch.refused) == ([], {"batch_limit": 1})


def test_extra_keys_beyond_what_a_batch_may_hold_are_refused() -> None:
    """128 times those of one block: 2,048 bytes here. Each event has 13, and 2,048 is 157 times 13 and 7."""
    events = [stored_map(extra_keys=[["x" * 10]], parent_block_hash=1)] * 160
    batch = decode_events(*events, extra_keys_bytes_max=16)
    assert (len(batch.events), batch.refused) == (157, {"batch_limit": 3})


def test_what_a_batch_may_hold_is_counted_anew_for_each() -> None:
    decoder = WireDecoder(WireLimits(hashes_per_batch_max=1, tokens_per_batch_max=2))
    for _ in range(3):
        assert len(decoder.decode(pack([1.5, [stored_map()], 0])).events) == 1


@pytest.mark.parametrize(
    ("large", "reason"),
    [
        (stored_map(token_ids=[1, "digest"] * 30_000), "token_text"),
        (stored_map(block_hashes=["1"] * 66_000), "event_limit"),
        (stored_map(block_hashes=["1"] * 65_000), "hash_type"),
        (stored_map(medium="x" * 1_100_000), "event_limit"),
        (stored_map(token_ids=[1, "digest"] * 150_000), "event_malformed"),
        (stored_map(token_ids=[1] * 150_000), "unaligned"),
        (["BlockRemoved", [1] * 66_000], "event_limit"),
        (["BlockRemoved"], "event_malformed"),
        ({"type": 5, "x": "x" * 70_000}, "event_malformed"),
        ({"x": "x" * 70_000}, "event_malformed"),
        ({"type": ["x"] * 70_000}, "event_malformed"),
        ("x" * 70_000, "event_malformed"),
    ],
)
def test_a_large_event_is_refused_for_the_reason_of_a_small_one(large: Any, reason: str) -> None:
    """But for one too large to be looked into."""
    batch = decode_events(stored_map(), large, stored_map())
    assert len(batch.events) == 2
    assert batch.refused == {reason: 1}


@pytest.mark.parametrize("filler", [{"x": "x" * 70_000}, {"x": "x" * 1_100_000}, {"type": "x" * 70_000}, {"type": "News", "x": [{}] * 70_000}])
def test_a_large_event_of_an_unknown_type_or_with_an_unknown_field_is_what_a_small_one_is(filler: dict[str, Any]) -> None:
    event = filler if "type" in filler else stored_map(**filler)
    batch = decode_events(stored_map(), event, stored_map())
    assert not batch.refused
    assert (len(batch.events), batch.unknown_events, batch.unknown_fields) == ((2, 1, 0) if "type" in filler else (3, 0, 1))


@pytest.mark.parametrize("count", [0, 1, 3, 15, 16, 17, 192, 300])
def test_no_extra_keys_are_nil_for_each_block(count: int) -> None:
    """Whatever the array's header looks like: 192 is 0xc0, which is nil too."""
    event = only(stored_map(block_hashes=[1] * count, token_ids=[1] * 2 * count, extra_keys=[None] * count))
    assert event.extra_keys is None


@pytest.mark.parametrize("count", [2, 17, 192, 65_536])
def test_nils_around_a_blocks_extra_keys_do_not_hide_them(count: int) -> None:
    for at in (0, count // 2, count - 1):
        for entry in ([None], [[None] * 300], [192]):
            entries: list[Any] = [None] * count
            entries[at] = entry
            (event,) = decode_events(stored_map(block_hashes=[1] * count, token_ids=[1] * 2 * count, extra_keys=entries)).events
            assert isinstance(event, Stored)
            assert event.extra_keys is not None
            assert {position: msgspec.msgpack.decode(folded) for position, folded in event.extra_keys.items()} == {at: [entry, None]}


def test_what_the_tests_of_bad_messages_expect_is_every_reason_that_the_wire_has() -> None:
    """The others are the stream's and the listener's; `event_nested` has a test of its own."""
    of_the_stream = {"other_attention", "unknown_hash", "key_conflict", "ambiguous_key", "rank_mismatch"}
    of_the_listener = {"topic", "topic_claimed"}
    expected = {reason for reason, *_ in BAD_EVENTS} | {reason for reason, _ in BAD_BATCHES} | {"frame_count", "frame_sequence"}
    expected |= {"batch_events", "batch_limit"}
    assert expected == REASONS.keys() - of_the_stream - of_the_listener - {"event_nested"}


STORED_FIELDS = b"\xa4type\xabBlockStored\xacblock_hashes\x91\x02\xa9token_ids\x92\x01\x02\xaablock_size\x02"


def nested_event(levels: int, where: str) -> bytes:
    """A batch of one good event and one that holds so many arrays in each other."""
    deep = b"\x91" * levels + b"\xc0"
    bad = {
        "event": deep,
        "extra_keys": b"\x85" + STORED_FIELDS + b"\xaaextra_keys\x91\x91" + deep,
        "unknown_field": b"\x82\xa4type\xb0AllBlocksCleared\xa3new" + deep,
        "unknown_event": b"\x82\xa4type\xa3New\xa3new" + deep,
    }[where]
    return b"\x93\xcb" + b"\0" * 8 + b"\x92" + pack(stored_map()) + bad + b"\xc0"


@pytest.mark.parametrize("where", ["event", "extra_keys", "unknown_field", "unknown_event"])
def test_an_event_that_is_nested_too_deeply_costs_itself_only(where: str) -> None:
    decoder = WireDecoder(WireLimits())
    refused: set[str] = set()
    for levels in (*range(1, 1_100), 100_000):
        batch = decoder.decode(nested_event(levels, where))
        assert next(event.hashes for event in batch.events if isinstance(event, Stored)) == [1]
        refused |= batch.refused.keys()
    assert "event_nested" in refused
    assert batch.refused == {"event_nested": 1}


def test_a_time_stamp_or_rank_that_is_nested_too_deeply_costs_itself_only() -> None:
    deep = b"\x91" * 100_000 + b"\xc0"
    for payload in (b"\x93" + deep + b"\x91" + pack(stored_map()) + b"\x00", b"\x93\x01\x91" + pack(stored_map()) + deep):
        batch = decode(payload)
        assert (len(batch.events), batch.refused.total(), batch.published_at_s, batch.rank) == (1, 0, None, None)


# What is newer than this


def test_an_unknown_event_is_passed_over_and_counted() -> None:
    for unknown in ({"type": "BlockMoved", "from": 1}, ["BlockMoved", 1]):
        good: Any = stored_map() if isinstance(unknown, dict) else stored_array()
        batch = decode_events(unknown, good, unknown)
        assert [event.hashes for event in batch.events if isinstance(event, Stored)] == [[1]]
        assert (batch.unknown_events, batch.refused.total()) == (2, 0)


@pytest.mark.parametrize(
    "event",
    [
        stored_map(colour="red"),
        stored_array([1], None, [1, 2], 2, None, None, None, None, None, None, None, "red"),
    ],
)
def test_an_unknown_field_of_a_stored_event_is_passed_over_and_counted(event: Any) -> None:
    batch = decode_events(event)
    assert [plain(event)[:5] for event in batch.events] == [("stored", [1], None, [1, 2], 2)]
    assert (batch.unknown_fields, batch.refused.total()) == (1, 0)


@pytest.mark.parametrize("event", [{"type": "BlockRemoved", "block_hashes": [1], "colour": "red"}, ["BlockRemoved", [1], None, None, "red"]])
def test_an_unknown_field_of_a_removed_event_is_passed_over_and_counted(event: Any) -> None:
    batch = decode_events(event)
    assert [plain(event) for event in batch.events] == [("removed", [1], GPU, None)]
    assert (batch.unknown_fields, batch.refused.total()) == (1, 0)


@pytest.mark.parametrize("event", [{"type": "AllBlocksCleared", "tier": "gpu"}, ["AllBlocksCleared", "gpu"]])
def test_an_unknown_field_of_a_cleared_event_is_passed_over_and_counted(event: Any) -> None:
    batch = decode_events(event)
    assert batch.events == [Cleared()]
    assert (batch.unknown_fields, batch.refused.total()) == (1, 0)


@pytest.mark.parametrize(
    "payload", [pack([1.5, [stored_map()], 0, "red"]), pack({"ts": 1.5, "events": [stored_map()], "colour": "red"})], ids=["array", "map"]
)
def test_an_unknown_field_of_a_batch_is_passed_over_and_counted(payload: bytes) -> None:
    batch = decode(payload)
    assert len(batch.events) == 1
    assert (batch.unknown_fields, batch.refused.total()) == (1, 0)


def test_fields_that_mean_nothing_to_the_index_are_known() -> None:
    event = stored_map(kv_cache_spec_sliding_window=128, ownership="own", session_id={"any": 1}, lookahead_token_ids=[[1]], locality="LOCAL")
    removed = {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU", "group_idx": 0, "locality": "LOCAL", "ownership": "own"}
    batch = decode_events(event, removed)
    assert (len(batch.events), batch.unknown_fields, batch.refused.total()) == (2, 0, 0)


# Forms of a batch


@pytest.mark.parametrize("event", [stored_map(), stored_array()])
def test_a_batch_may_be_a_map(event: Any) -> None:
    batch = decode(pack({"ts": 2.5, "events": [event], "data_parallel_rank": 4}))
    assert [plain(event)[1] for event in batch.events] == [[1]]
    assert (batch.published_at_s, batch.rank, batch.refused.total()) == (2.5, 4, 0)


def test_a_large_map_header_is_read_as_a_map() -> None:
    fields = pack({"ts": 2.5, "events": [stored_map()]})[1:]
    assert len(decode(b"\xde\0\2" + fields).events) == 1
    assert len(decode(b"\xdf\0\0\0\2" + fields).events) == 1


@pytest.mark.parametrize("event", [stored_map(), stored_array()])
def test_a_batch_may_lack_its_rank(event: Any) -> None:
    batch = decode(pack([2.5, [event]]))
    assert (len(batch.events), batch.published_at_s, batch.rank) == (1, 2.5, None)


def test_maps_and_arrays_may_be_mixed_in_one_batch() -> None:
    batch = decode_events(stored_map(), stored_array([2]), ["AllBlocksCleared"], {"type": "BlockRemoved", "block_hashes": [3]})
    assert [plain(event)[1:2] for event in batch.events] == [([1],), ([2],), (), ([3],)]


@pytest.mark.parametrize("timestamp", [float("nan"), float("inf"), -1.0, 0, "yesterday", None, True, []])
def test_a_useless_timestamp_costs_no_event(timestamp: Any) -> None:
    assert len(decode(pack([timestamp, [stored_map()], 0])).events) == 1
    assert len(decode(pack([timestamp, [stored_array()], 0])).events) == 1


@pytest.mark.parametrize("rank", [True, "0", 1.0, []])
def test_a_useless_rank_costs_no_event(rank: Any) -> None:
    batch = decode(pack([1.5, [stored_map()], rank]))
    assert (len(batch.events), batch.rank) == (1, None)


def test_a_batch_may_be_empty() -> None:
    assert decode(pack([1.5, [], 0])) == Batch([], 1.5, 0)


# Fields of a stored event


def only(*events: Any) -> Stored:
    (event,) = decode_events(*events).events
    assert isinstance(event, Stored)
    return event


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


# Limits: the largest that is allowed


def test_what_is_as_large_as_allowed_is_read() -> None:
    events = [
        stored_map(block_hashes=[1] * 4, token_ids=[1] * 12, block_size=3),
        {"type": "BlockRemoved", "block_hashes": [1] * 4},
        stored_map(lora_name="12345", cache_salt="54321"),
        # [["x" * 12], nil]: two headers, one of text, twelve letters, one nil.
        stored_map(parent_block_hash=1, extra_keys=[["x" * 12]]),
        stored_map(token_ids=[], block_size=16),
    ]
    batch = decode_events(*events, **TIGHT)
    assert (len(batch.events), batch.refused.total()) == (5, 0)
    batch = decode_events(stored_map(parent_block_hash=1, extra_keys=[["x" * 13]]), **TIGHT)
    assert batch.refused == {"event_limit": 1}

"""Payloads that no engine should send, newer payloads, and the forms of a batch."""

from typing import Any

import msgspec
import pytest

from indexer.core.events import Cleared, Stored, Tier
from indexer.errors import REASONS, Refused
from indexer.limits import WireLimits
from indexer.wire.decoder import WHOLE_BYTES_MAX, Batch, WireDecoder
from tests.indexer.wire.payloads import decode, decode_events, only, pack, plain, stored_array, stored_map

GPU = Tier.GPU

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
    ("token_type", stored_map(token_ids=[[1, 2], [2, None]]), stored_array([1], None, [[1, 2], [2, None]])),
    ("extra_keys", stored_map(extra_keys=[None, None]), stored_array([1], None, [1, 2], 2, None, None, None, [None, None])),
    ("extra_keys", stored_map(extra_keys=["salt"]), stored_array([1], None, [1, 2], 2, None, None, None, ["salt"])),
    ("event_malformed", stored_map(group_idx=-1), stored_array([1], None, [1, 2], 2, None, None, None, None, -1)),
    ("event_malformed", {"type": "BlockRemoved", "block_hashes": [1], "group_idx": 65_536}, ["BlockRemoved", [1], None, 65_536]),
    ("unaligned", stored_map(token_ids=[1, 2, 3]), stored_array([1], None, [1, 2, 3])),
    ("unaligned", stored_map(block_hashes=[1, 2]), stored_array([1, 2])),
    ("unaligned", stored_map(block_hashes=[], token_ids=[1, 2, 3]), stored_array([], None, [1, 2, 3])),
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
        (stored_map(token_ids=[1] * 150_001), "unaligned"),
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
    of_the_stream = {
        "orphan_dropped",
        "block_size_changed",
        "partial_block",
        "groups_max",
        "tier_limit",
        "cover_limit",
        "key_conflict",
        "ambiguous_key",
        "rank_mismatch",
        "snapshot_size",
    }
    of_the_listener = {"topic", "topic_claimed"}
    expected = {reason for reason, *_ in BAD_EVENTS} | {reason for reason, _ in BAD_BATCHES} | {"frame_count", "frame_sequence"}
    expected |= {"batch_events", "batch_limit", "lookahead"}
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
    "payload", [pack([1.5, [stored_map()], 0, None, "red"]), pack({"ts": 1.5, "events": [stored_map()], "colour": "red"})], ids=["array", "map"]
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


def test_a_large_event_is_measured_built_and_normalised_in_steps_of_their_own() -> None:
    event = ["BlockStored", [1], None, [1] * 4, 4, None, "GPU", None, [[0] * (WHOLE_BYTES_MAX + 1)]]
    payload = msgspec.msgpack.encode([1.0, [event], 0])
    assert sum(1 for _ in WireDecoder(WireLimits()).decode_in_steps(payload)) >= 6


@pytest.mark.parametrize("parent", [None, 7])
@pytest.mark.parametrize("blocks", [8, 20])
@pytest.mark.parametrize("isolation", [{}, {"lora_name": "a"}, {"lora_id": 3}, {"cache_salt": "s"}])
def test_many_extra_keys_are_folded_in_steps_and_mean_what_few_mean(parent: int | None, blocks: int, isolation: dict[str, Any]) -> None:
    """Blocks with 60,000 bytes each take a step each, whose extra keys are what events of a single block say. 20 of them are not decoded whole."""
    hashes, entries = [*range(blocks)], [["a", "s", [[0] * 60_000, number]] for number in range(blocks)]
    whole = stored_map(block_hashes=hashes, parent_block_hash=parent, token_ids=[1] * blocks, block_size=1, extra_keys=entries, **isolation)
    decoding = WireDecoder(WireLimits()).decode_in_steps(pack([1.5, [whole], 0]))
    steps, batch = 0, None
    while batch is None:
        try:
            next(decoding)
        except StopIteration as ended:
            batch = ended.value
        steps += 1
    (stored,) = batch.events
    assert isinstance(stored, Stored)
    alone = [
        stored_map(block_hashes=[number], parent_block_hash=number or parent, token_ids=[1], block_size=1, extra_keys=[entry], **isolation)
        for number, entry in enumerate(entries)
    ]
    assert stored.extra_keys == {number: (only(event).extra_keys or {})[0] for number, event in enumerate(alone)}
    assert steps >= blocks

"""Payloads of plain events are packed, and what a stream does with them is what it does with the same events one by one."""

import random
import struct
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from indexer.core.change import Change
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.stream_state import StreamState
from indexer.limits import WireLimits
from indexer.wire.decoder import WireDecoder
from tests.indexer.compiled.test_blocks import history, random_events, said
from tests.indexer.compiled.test_decoding import check_payload
from tests.indexer.wire.test_golden_payloads import GOLDEN

core = pytest.importorskip("indexer.compiled._core")
pack = msgspec.msgpack.encode


def is_packed(payload: bytes) -> bool:
    return isinstance(WireDecoder(WireLimits()).decode(payload).events, core.PlainEvents)


def packed(payload: bytes) -> Any:
    events = WireDecoder(WireLimits()).decode(payload).events
    assert isinstance(events, core.PlainEvents)
    return events


# What is plain

HASHES = st.one_of(st.integers(-(2**63), 2**64 - 1), st.binary(min_size=7, max_size=33), st.integers(0, 3))
KEYS = st.one_of(
    st.none(), st.sampled_from(["a", "s", "", "\u00e9", "#1"]), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.binary(max_size=2)
)
EXTRA_KEYS = st.one_of(
    st.lists(st.none(), max_size=4),
    st.lists(
        st.none() | st.lists(st.recursive(KEYS, lambda keys: st.lists(keys, max_size=2) | st.dictionaries(st.text(max_size=1), keys)), max_size=2),
        max_size=4,
    ),
    st.lists(st.sampled_from([None, [], ["a"], ["a", "s"], ["#1"], [["f" * 64, 3]]]), max_size=4),
    st.just([1, "s"]),
)
OPTIONAL: dict[str, st.SearchStrategy[Any]] = {
    "parent_block_hash": st.none() | HASHES,
    "lora_id": st.none() | st.integers(-1, 70_000) | st.just("1"),
    "medium": st.sampled_from([None, "GPU", "gpu", "CPU", "G\u00fc"]),
    "lora_name": st.sampled_from([None, "", "a", "\u00e9", {"cache_salt": "s"}, 1]),
    "extra_keys": st.none() | EXTRA_KEYS,
    "group_idx": st.none() | st.integers(-1, 65_536),
    "kv_cache_spec_kind": st.sampled_from([None, "full_attention", "sliding_window", "mamba", "\u00e9", "w" * 256]),
    "kv_cache_spec_sliding_window": st.one_of(st.none(), st.integers(-1, 70_000), st.text(max_size=2)),
    "locality": st.sampled_from([None, "LOCAL", "REMOTE"]),
    "cache_salt": st.sampled_from([None, "", "s"]),
    "ownership": st.sampled_from([None, {"a": 1}]),
    "session_id": st.sampled_from([None, "s", 1]),
    "lookahead_token_ids": st.sampled_from([None, [[1]], [[1], [2]]]),
    "unknown": st.none(),
}
ARRAY_FIELDS = ("block_hashes", "parent_block_hash", "token_ids", "block_size", *list(OPTIONAL)[1:8])


@st.composite
def any_event(draw: st.DrawFn, *, as_array: bool) -> Any:
    """Of fields that are mostly plain, in any order."""
    kind = draw(st.sampled_from(["BlockStored"] * 4 + ["BlockRemoved", "AllBlocksCleared", "Other"]))
    hashes = draw(st.lists(HASHES, max_size=3))
    if kind == "AllBlocksCleared":
        return [kind] if as_array else {"type": kind}
    if kind == "BlockRemoved" and as_array:
        return [kind, hashes, *draw(st.sampled_from([[], [None], ["GPU"], ["CPU"], ["GPU", 1], [None, None], ["GPU", 1, 2]]))]
    size = draw(st.integers(0, 2))
    tokens = draw(st.lists(st.integers(0, 2**32 - 1), min_size=size * len(hashes), max_size=size * len(hashes) + draw(st.integers(0, 1))))
    odd = draw(st.lists(st.sampled_from(list(OPTIONAL)), max_size=3))
    fields = {name: draw(value) if name in odd else None for name, value in OPTIONAL.items()}
    if as_array:
        values = fields | {"block_hashes": hashes, "token_ids": tokens, "block_size": size}
        return [kind, *(values[name] for name in ARRAY_FIELDS)][: draw(st.integers(5, len(ARRAY_FIELDS) + 2))]
    given = {name: value for name, value in fields.items() if name in odd}
    body = (
        {"type": kind, "block_hashes": hashes, "token_ids": tokens, "block_size": size}
        if kind == "BlockStored"
        else {"type": kind, "block_hashes": hashes}
    )
    return dict(draw(st.permutations(list((body | given).items()))))


@given(
    st.booleans().flatmap(lambda as_array: st.lists(any_event(as_array=as_array), max_size=4)),
    st.sampled_from([None, 0, 70_000, -1]),
    st.sampled_from([[], [], [None], [b"i" * 16], [b"i" * 15], [b"i" * 16, 1], ["red"]]),
)
def test_events_of_any_fields_become_the_same_batches(events: list[Any], rank: int | None, more: list[Any]) -> None:
    check_payload(pack([1.5, events, rank, *more]))


@pytest.mark.parametrize("golden", GOLDEN, ids=lambda golden: f"{golden['engine']} {golden['version']}")
def test_every_prefix_of_a_payload_is_refused_as_without_the_core(golden: dict[str, str]) -> None:
    payload = bytes.fromhex(golden["hex"])
    for length in range(len(payload)):
        check_payload(payload[:length])


def test_what_engines_publish_most_is_packed() -> None:
    stored = {"type": "BlockStored", "block_hashes": [1, 2**64 - 1], "parent_block_hash": None, "token_ids": [1, 2**17, 3, 4], "block_size": 2}
    newer = stored | {"medium": "GPU", "lora_id": None, "lora_name": None, "extra_keys": [None, None], "group_idx": 0}
    removed = {"type": "BlockRemoved", "block_hashes": [1], "medium": "GPU"}
    assert is_packed(pack([1.5, [stored, newer | {"kv_cache_spec_kind": "full_attention"}, removed, {"type": "AllBlocksCleared"}], 0]))
    assert is_packed(pack([1.5, [["BlockStored", [b"h" * 32], None, [1, 2], 2, None, "GPU"], ["BlockRemoved", [b"h" * 32], "GPU"]]]))
    assert is_packed(pack([1.5, [newer | {"lora_name": "a", "extra_keys": [["a"], ["a", ["f00d", 3]]]}], 0]))
    assert is_packed(pack([1.5, [["BlockStored", [1, 2], None, [1, 2], 1, 3, "GPU", None, [["salt"], None]]]]))
    assert is_packed(pack([1.5, [stored], 0, b"p" * 16]))
    check_payload(pack([1.5, [stored], 0, b"p" * 16])[:-1])
    assert not is_packed(pack([1.5, [stored | {"medium": "CPU"}], 0]))


@pytest.mark.parametrize(("count", "is_many"), [(4_096, False), (4_097, True)])
def test_very_many_different_extra_keys_are_not_folded_at_a_stretch(count: int, is_many: bool) -> None:
    stored = {"type": "BlockStored", "block_hashes": list(range(count)), "parent_block_hash": 1, "token_ids": [1] * count, "block_size": 1}
    payload = pack([1.5, [stored | {"extra_keys": [[number] for number in range(count)]}], 0])
    assert is_packed(payload) != is_many
    check_payload(payload)


@pytest.mark.parametrize(("lists", "is_large"), [(32_757, False), (32_758, True)])
def test_large_extra_keys_that_differ_are_not_folded_at_a_stretch(lists: int, is_large: bool) -> None:
    """Two that differ, of 3 bytes of a header, a byte for each empty list, and 8 bytes of a text: 65,536 bytes together."""
    stored = {"type": "BlockStored", "block_hashes": [1, 2, 3], "parent_block_hash": 1, "token_ids": [1, 2, 3], "block_size": 1}
    one, other = ([*[[]] * lists, f"image {number}"] for number in range(2))
    payload = pack([1.5, [stored | {"extra_keys": [one, one, other]}], 0])
    assert is_packed(payload) != is_large
    check_payload(payload)


@pytest.mark.parametrize("entry", [[[[]] * 3] * 3, [{"a": [1, {"b": None}]}, b"x" * 300, "y" * 70_000, 1.5, -1, 2**40, True]])
def test_extra_keys_of_any_form_are_read_to_their_end(entry: list[Any]) -> None:
    stored = {"type": "BlockStored", "block_hashes": [1, 2], "parent_block_hash": 1, "token_ids": [1, 2], "block_size": 1}
    payload = pack([1.5, [stored | {"extra_keys": [None, entry]}, stored | {"extra_keys": [entry, entry]}], 0])
    check_payload(payload)
    for length in range(0, len(payload), max(1, len(payload) // 200)):
        check_payload(payload[:length])


def deep(levels: int) -> bytes:
    return pack([1.5, [{"type": "BlockStored", "block_hashes": [1], "token_ids": [1], "block_size": 1, "extra_keys": 0}], 0]).replace(
        b"\xaaextra_keys\x00", b"\xaaextra_keys" + b"\x91" * levels + b"\xc0"
    )


def test_extra_keys_that_are_nested_deeply_are_refused_as_without_the_core() -> None:
    for levels in (1, 2, 3, 900, 60_000):
        check_payload(deep(levels))


# What a stream does with them


def wire(event: Event, *, as_array: bool) -> Any:
    """As an engine sends it."""
    match event:
        case Cleared():
            fields: dict[str, Any] = {}
        case Removed():
            fields = {"block_hashes": event.hashes, "medium": event.tier.name}
        case Stored():
            tokens = struct.unpack(f"<{len(event.tokens) // 4}I", event.tokens)
            extra_keys = [[f"x{position % 3}"] if position in (event.extra_keys or {}) else None for position in range(len(event.hashes))]
            fields = {"block_hashes": event.hashes, "parent_block_hash": event.parent, "token_ids": tokens, "block_size": event.block_size}
            fields |= {"lora_id": None, "medium": event.tier.name, "lora_name": event.lora_name}
            fields |= {"extra_keys": extra_keys} if event.announces_extra_keys else {}
    name = {Stored: "BlockStored", Removed: "BlockRemoved", Cleared: "AllBlocksCleared"}[type(event)]
    return [name, *fields.values()] if as_array else {"type": name} | fields


def batches(seed: int, *, announces: bool, as_array: bool) -> Iterator[bytes]:
    rng = random.Random(seed)
    events = (event for event in random_events(rng, announces=announces) if not (isinstance(event, Stored) and event.parent == 0))
    for _ in range(25):
        yield pack([1.5, [wire(next(events), as_array=as_array) for _ in range(rng.randint(1, 6))], 0])


@pytest.mark.parametrize("announces", [True, False])
@pytest.mark.parametrize("as_array", [True, False])
def test_a_stream_does_the_same_with_packed_events(announces: bool, as_array: bool) -> None:
    """Also where a key has several hashes, a hash another key or parent, and above the limits."""
    count = 0
    for seed in range(12):
        limits = {"removed_max": 50, "gpu_blocks_max": 300, "lower_tier_blocks_max": 40, "copies_max": 3}
        found = [WireDecoder(WireLimits()).decode(payload).events for payload in batches(seed, announces=announces, as_array=as_array)]
        count += sum(isinstance(events, core.PlainEvents) for events in found)
        one_by_one: list[list[Event]] = [list(events) for events in found]
        for with_records in (False, True):
            play: Any = history(found, "copies", are_packed=True, with_records=with_records, **limits)  # type: ignore[arg-type]
            assert play == history(one_by_one, "copies", are_packed=False, with_records=with_records, **limits)
    assert count > 100


def test_the_first_odd_event_and_what_follows_are_applied_in_order() -> None:
    """The second event has a parent that nothing is known of, and the third stores it: so the second waits, and then has its key."""
    known = Stored([1, 2], None, struct.pack("<2I", 5, 6), 1, Tier.GPU, None, None, True, 0, None, lists_extra_keys=True)
    late = Stored([4], 3, struct.pack("<I", 8), 1, Tier.GPU, None, None, True, 0, None, lists_extra_keys=True)
    before = Stored([3], 2, struct.pack("<I", 7), 1, Tier.GPU, None, None, True, 0, None, lists_extra_keys=True)
    events: list[Event] = [known, late, before, Removed([1], Tier.GPU, None)]
    payload = pack([1.5, [wire(known, as_array=False)], 0]), pack([1.5, [wire(event, as_array=False) for event in events], 0])
    found = [WireDecoder(WireLimits()).decode(each).events for each in payload]
    assert all(isinstance(each, core.PlainEvents) for each in found)
    play: Any = history(found, "copies", are_packed=True, with_records=True)  # type: ignore[arg-type]
    assert play == history([list(each) for each in found], "copies", are_packed=False, with_records=True)
    _, held, *_ = play[1]
    assert {number for number, _ in held[0]} == {1, 2, 3, 4}


MANY = 5_000


@pytest.mark.parametrize(
    "events",
    [
        [Stored(list(range(MANY)), None, bytes(4 * MANY), 1, Tier.GPU, None, None, False, None, None)],
        [Stored([number], None, bytes(4), 1, Tier.GPU, None, None, False, None, None) for number in range(MANY)],
        [Stored([7], None, bytes(4 * size), size, Tier.GPU, None, None, False, None, None) for size in [1, 2] * 500],
        [Removed([number], Tier.GPU, None) for number in range(MANY)],
        [Removed(list(range(MANY)), Tier.GPU, None)],
        [Cleared()] * MANY,
    ],
)
def test_where_much_of_a_batch_is_odd_it_is_applied_in_steps(events: list[Event]) -> None:
    """Each key has a second hash, or nothing is held."""
    known = Stored(list(range(MANY, 2 * MANY)), None, bytes(4 * MANY), 1, Tier.GPU, None, None, False, None, None)
    again = Stored(list(range(MANY)), None, bytes(4 * MANY), 1, Tier.GPU, None, None, False, None, None)
    first, second = StreamState("m", ""), StreamState("m", "")
    payload = pack([1.5, [wire(event, as_array=False) for event in events], 0])
    found, applied = [], packed(payload)
    for state in (first, second):
        state.apply([known] if isinstance(events[0], Stored) else [known, again], 0.0)
        state.tally.clear()
        if state is first:
            found.append(state.apply(events, 0.0))
        else:
            steps = state.start(applied, 0.0)
            assert not isinstance(steps, Change)
            assert sum(1 for _ in steps) >= 4
            found.append(state._blocks.keys.change)
    assert said(found[0]) == said(found[1])
    assert (first.tally, first.stored, first.removed, first.clears) == (second.tally, second.stored, second.removed, second.clears)
    assert (first.held(Tier.GPU), first.ambiguous) == (second.held(Tier.GPU), second.ambiguous)


def test_where_nothing_is_plain_a_clear_of_many_blocks_counts_once() -> None:
    """A second clear in a batch would be that of the lower tiers."""
    salted = Stored([1], None, struct.pack("<I", 1), 1, Tier.GPU, None, None, True, None, None, lists_extra_keys=True, salt="s")
    many = Stored(list(range(2, 2_002)), None, struct.pack("<2000I", *range(2_000)), 1, Tier.GPU, None, None, True, None, None, lists_extra_keys=True)
    state = StreamState("m", "")
    state.apply([salted, many, replace(many, hashes=[2, 3], tokens=many.tokens[:8], tier=Tier.CPU)], 0.0)
    plain = replace(many, hashes=[5_000], tokens=struct.pack("<I", 7))
    payload = pack([1.5, [wire(event, as_array=False) for event in (plain, Cleared(), plain)], 0])
    state.apply(packed(payload), 0.0)
    assert (state.clears, state.count(Tier.GPU), state.count(Tier.CPU)) == (1, 1, 2)


@pytest.mark.parametrize("event", [Removed([], Tier.GPU, None), Removed([1], Tier.GPU, None), Cleared()])
def test_a_stream_that_holds_nothing_takes_any_packed_event(event: Event) -> None:
    state = StreamState("m", "")
    assert not state.apply(packed(pack([1.5, [wire(event, as_array=False)], 0])), 0.0).touched[Tier.GPU]
    assert state.count(Tier.GPU) == 0


def test_beside_a_block_that_waits_the_others_stay_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tokens of the first event are more than all of which are looked at for the highest."""
    many = Stored(list(range(5_000)), None, struct.pack("<5000I", *range(5_000)), 1, Tier.GPU, None, None, True, None, None, lists_extra_keys=True)
    waits = Stored([6_001], 6_000, struct.pack("<I", 1), 1, Tier.GPU, None, None, True, None, None, lists_extra_keys=True)
    plain = Stored([7_000], None, struct.pack("<I", 7), 1, Tier.GPU, None, None, True, None, None, lists_extra_keys=True)
    awaited = Stored([6_000], None, struct.pack("<I", 6), 1, Tier.GPU, None, None, True, None, None, lists_extra_keys=True)
    state = StreamState("m", "")
    state.apply([many, waits], 0.0)
    assert state.parked == 1
    one_by_one: list[Event] = []
    store = StreamState._store
    monkeypatch.setattr(StreamState, "_store", lambda self, event, now_s: (one_by_one.append(event), store(self, event, now_s))[1])
    payload = pack([1.5, [wire(event, as_array=False) for event in (plain, awaited)], 0])
    state.apply(packed(payload), 0.0)
    assert one_by_one == [awaited]
    assert (state.parked, state.count(Tier.GPU)) == (0, 5_003)

"""What the payloads of every engine release mean."""

import json
import struct
from pathlib import Path

import pytest
from xxhash import xxh3_64_intdigest

from indexer.core.events import Tier
from indexer.core.stream_state import StreamState
from indexer.limits import WireLimits
from indexer.wire.decoder import WireDecoder
from tests.indexer.wire.payloads import MAX, SHA, decode, plain

GOLDEN = [json.loads(line) for line in (Path(__file__).parents[2] / "data" / "wire-golden.jsonl").read_text().splitlines()]

GPU = Tier.GPU

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
# The same as PLAIN, with a salt in the first event that is no part of its extra keys.
SGLANG_SALT_MAP = list(PLAIN)

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
    "sglang 0.5.20": SGLANG_SALT_MAP,
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
    # The salted blocks wait for a salted parent: the one without a salt is not theirs, though it has the same hash.
    **{id(expected): [(set(), 2), ({FIRST, SECOND}, 2), (set(), 2), (set(), 2)] for expected in (SGLANG_LORA, SGLANG_SALT_MAP)},
    id(SGLANG_SALT): [(set(), 2), (set(), 4), ({FIRST, SECOND}, 2), ({FIRST, SECOND}, 2), (set(), 2)],
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
    *_, removal, _ = events = list(decode(bytes.fromhex(golden["hex"])).events)
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

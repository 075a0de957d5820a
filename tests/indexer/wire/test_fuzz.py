"""Payloads that nobody should send, by the hundred thousand: nothing raises, each refusal is counted, and what was good is applied all the same.

Every storm has a seed of its own, so a payload that fails once fails always; the message names it.
"""

import json
import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Raw, Struct
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.block_keys import chain_keys, root_key
from indexer.core.events import Tier
from indexer.core.names import StreamKey
from indexer.errors import LOSSY_REASONS, REASONS, Refused
from indexer.limits import WireLimits
from indexer.metrics import IndexerMetrics
from indexer.streams.applier import Applier
from indexer.wire.decoder import WireDecoder
from scorer_api.index.prefix_index import OWN_TIERS
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View

GOLDEN = [bytes.fromhex(json.loads(line)["hex"]) for line in (Path(__file__).parents[2] / "data" / "wire-golden.jsonl").read_text().splitlines()]
KEY = StreamKey("m", "pod", 0)
pack = msgspec.msgpack.encode


def without_clear(payload: bytes) -> bytes:
    """The same batch, ending before the clear that each golden payload ends with, so that something stays held."""
    ts, events, *rank = msgspec.msgpack.decode(payload)
    return pack([ts, events[:-1], *rank])


BASES = [*GOLDEN, *map(without_clear, GOLDEN)]

# A stream: an applier with a real view, and what both say


class Stream:
    """One stream's applier over a real view, whose block size, group and dialect a good batch has settled."""

    def __init__(self, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        self.registry = CollectorRegistry()
        self.view = View(settings)
        self.view.open(KEY)
        self.applier = Applier(KEY, "copies", None, settings, IndexerMetrics(self.registry), with_records=True)
        self.good = 0

    def apply(self, payload: bytes) -> None:
        try:
            applied = self.applier.apply(payload, 0, is_live=True)
            self.view.append(KEY, self.applier.state.shape, applied.change)
        except BaseException as error:
            error.add_note(f"payload: {payload[:2000].hex()}")
            raise

    def forget(self) -> None:
        """The engine was restarted."""
        self.applier.state.forget()
        self.view.drop(KEY)

    def apply_good(self) -> None:
        """Apply a batch that stores two blocks that no mutation can name, and see that it does."""
        self.good += 1
        first = (1 << 62) + 2 * self.good
        tokens = [first & 0xFFFFFFFF, 1 << 31, 2, 3]
        before = self.refused()
        self.apply(pack([1.5, [good_stored([first, first + 1], tokens)], 0]))
        assert self.refused() == before
        state = self.applier.state
        assert state.shape is not None
        slot = state.slot_of(0)
        keys = chain_keys(root_key("m", None, ""), struct.pack("<4I", *tokens), state.shape.block_size)
        assert slot is not None
        assert state.held(Tier.GPU, slot).issuperset(keys), "a good batch is applied after any storm"
        if state.shape.is_plain:
            (pod,) = self.view.score(Prompt("m", struct.pack("<5I", *tokens, 9)))
            assert pod.ranks[0].match.matched_blocks == 2

    def refused(self) -> Counter[str]:
        """Refusals by reason."""
        (family,) = (f for f in self.registry.collect() if f.name == "kv_indexer_refused")
        return Counter({s.labels["reason"]: int(s.value) for s in family.samples if s.name.endswith("_total") and s.value})

    def total(self, name: str) -> int:
        """The sum of a counter's series, as at the end of a turn."""
        self.applier.count_applied()
        return int(sum(s.value for f in self.registry.collect() for s in f.samples if s.name == name))

    def held(self) -> dict[tuple[int, Tier], set[int]]:
        """What the stream holds by its own word, by slot and tier, once that is seen to be what the index holds."""
        state = self.applier.state
        slots = range(1 if state.shape is None else len(state.shape.groups))
        held = {(slot, tier): keys for slot in slots for tier in Tier if (keys := state.held(tier, slot))}
        indexed: dict[tuple[int, Tier], set[int]] = {}
        for index in self.view.indexes:
            numbers = [number for number in range(index.mask.bit_length()) if index.mask >> number & 1]
            of_tier = {tier: set().union(*(index.held(number, tier) for number in numbers)) for tier in Tier}
            assert index.blocks == sum(map(len, of_tier.values())), "the index's two sides agree"
            keys = sorted(of_tier[Tier.GPU])
            for start, end, mask in index.spans(keys):
                for number in numbers:
                    own = [index.held(number, tier) for tier in OWN_TIERS]
                    assert all(any(key in held for held in own) == bool(mask >> number & 1) for key in keys[start:end]), "the index's two sides agree"
        holders = self.view._find(KEY)[1].holders
        for slot, holder in enumerate([] if holders is None else holders.by_slot):
            indexed |= {(slot, tier): keys for tier in Tier if holders is not None and (keys := set(holders.index.held(holder, tier)))}
        assert indexed == held, "the index holds what the stream holds"
        most = {tier: max(len(held.get((slot, tier), ())) for slot in slots) for tier in Tier}
        assert {tier: count for tier, count in most.items() if count or tier is Tier.GPU or tier in state.tiers} == {
            tier: self.applier.blocks()[tier.word] for tier in Tier if tier.word in self.applier.blocks()
        }
        return held


def good_stored(hashes: list[Any], tokens: list[int], parent: Any = None, **more: Any) -> dict[str, Any]:
    event = {"type": "BlockStored", "block_hashes": hashes, "parent_block_hash": parent, "token_ids": tokens, "block_size": 2, "medium": "GPU"}
    return {**event, "extra_keys": [None] * len(hashes), "group_idx": 0, "kv_cache_spec_kind": "full_attention", **more}


# Mutations

Mutation = Callable[[random.Random, bytearray], None]
HEADERS = [
    *(bytes([kind]) + b"\xff\xff" for kind in (0xDC, 0xDE, 0xC5, 0xDA, 0xC8)),
    *(bytes([kind]) + size for kind in (0xDD, 0xDF, 0xC6, 0xDB, 0xC9) for size in (b"\xff" * 4, b"\x7f\xff\xff\xff", b"\0\x10\0\0")),
    *(bytes([kind]) for kind in (0x9F, 0x8F, 0xBF, 0xC0, 0xC1, 0xC2, 0xC3, 0xCA, 0xCB, 0xCF, 0xD3, 0xD6, 0xD7, 0xD8)),
]


def flip(rng: random.Random, payload: bytearray) -> None:
    for _ in range(rng.randint(1, 4)):
        payload[rng.randrange(len(payload))] ^= 1 << rng.randrange(8)


def overwrite(rng: random.Random, payload: bytearray) -> None:
    for _ in range(rng.randint(1, 4)):
        payload[rng.randrange(len(payload))] = rng.randrange(256)


def insert(rng: random.Random, payload: bytearray) -> None:
    at = rng.randint(0, len(payload))
    payload[at:at] = rng.randbytes(rng.randint(1, 9))


def delete(rng: random.Random, payload: bytearray) -> None:
    at = rng.randrange(len(payload))
    del payload[at : at + rng.randint(1, 9)]


def truncate(rng: random.Random, payload: bytearray) -> None:
    del payload[rng.randrange(len(payload)) :]


def splice(rng: random.Random, payload: bytearray) -> None:
    """A piece of another release's payload, in place of a piece of this one."""
    other = rng.choice(BASES)
    start, at = rng.randrange(len(other)), rng.randrange(len(payload))
    payload[at : at + rng.randint(0, 40)] = other[start : start + rng.randint(1, 40)]


def blow_up(rng: random.Random, payload: bytearray) -> None:
    """A header that promises more than there is, in place of a byte or between two."""
    at = rng.randrange(len(payload))
    payload[at : at + rng.randint(0, 1)] = rng.choice(HEADERS)


ONE: tuple[Mutation, ...] = (flip, overwrite, insert, delete, truncate, splice, blow_up)


def several(rng: random.Random, payload: bytearray) -> None:
    for _ in range(rng.randint(2, 5)):
        if payload:
            rng.choice(ONE)(rng, payload)


STORM = 12_500
# Comparing all that is held takes as long as some hundred payloads.
CHECKED_EVERY = 503
KINDS: tuple[Mutation, ...] = (*ONE, several)


def storm(kind: Mutation, count: int) -> Iterator[bytes]:
    rng = random.Random(f"storm of {kind.__name__}")
    for number in range(count):
        payload = bytearray(BASES[number % len(BASES)])
        kind(rng, payload)
        yield bytes(payload)


class Outline(Struct, array_like=True):
    ts: Raw
    events: list[Raw]


class OutlineAsMap(Struct):
    ts: Raw
    events: list[Raw]


def events_in(payload: bytes) -> int | None:
    """How many events a payload holds, None where it is no batch at all."""
    for shape in (Outline, OutlineAsMap):
        try:
            return len(msgspec.msgpack.decode(payload, type=shape).events)
        except (msgspec.DecodeError, RecursionError):
            pass
    return None


def rss_bytes() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024


def test_a_hundred_thousand_mutations_are_made() -> None:
    assert len(KINDS) * STORM == 100_000


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_storm_of_mutations_harms_nothing(kind: Mutation) -> None:
    stream = Stream()
    stream.apply_good()
    before = rss_bytes()
    most_held = 0
    for number, payload in enumerate(storm(kind, STORM)):
        stream.apply(payload)
        if number % CHECKED_EVERY == 0:
            most_held = max([most_held, *map(len, stream.held().values())])
            stream.apply_good()
    assert rss_bytes() - before < 64 * 2**20
    refused = stream.refused()
    assert refused.keys() <= REASONS.keys()
    assert refused.total() > 0
    assert stream.total("kv_indexer_batches_total") == STORM + stream.good
    assert most_held >= 4, "there was something to keep right"
    stream.forget()
    assert not any(stream.held().values())
    stream.apply_good()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_event_of_a_mutated_batch_is_applied_or_counted(kind: Mutation) -> None:
    """Each payload is refused whole, or each of its events is decoded, refused for one reason, or unknown; one with an odd token can be decoded up
    to that and refused."""
    decoder = WireDecoder(WireLimits())
    for payload in storm(kind, STORM // 5):
        count = events_in(payload)
        reason = None
        try:
            batch = decoder.decode(payload)
        except Refused as refused:
            reason = refused.reason
        if reason is None:
            both = len(batch.events) + batch.refused.total() + batch.unknown_events - (count or 0)
            assert 0 <= both <= sum(batch.refused[reason] for reason in ("token_type", "token_text", "token_range")), payload.hex()
        else:
            assert (reason, count) in (("batch_malformed", None), ("batch_nested", None), ("batch_nested", count)), payload.hex()


def test_nothing_of_a_storm_stays_once_the_stream_is_forgotten() -> None:
    stream = Stream()
    for payload in storm(several, 500):  # metrics, caches and the like come to stay
        stream.apply(payload)
    stream.forget()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for payload in storm(several, 5_000):
            stream.apply(payload)
        stream.forget()
        after, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 256 * 1024
    assert peak - before < 32 * 2**20


# Hostile events between good ones

SCALARS: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from([2**63, 2**64 - 1, -(2**63), 2**32, -1, 0]),
    st.floats(allow_nan=True, allow_infinity=True),
    st.text(max_size=8),
    st.binary(max_size=40),
)
ANYTHING = st.recursive(
    SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=3)), max_leaves=8
)
WORDS = ("BlockStored", "BlockRemoved", "AllBlocksCleared")


def is_number(value: Any) -> bool:
    """Whether msgspec takes it for an integer; a whole float is one."""
    return (isinstance(value, int) and not isinstance(value, bool)) or (isinstance(value, float) and value.is_integer())


def is_hash(value: Any) -> bool:
    return is_number(value) or (isinstance(value, bytes) and len(value) >= 8)


def listed(item: st.SearchStrategy[Any], wrong: st.SearchStrategy[Any], before_max: int = 2) -> st.SearchStrategy[Any]:
    """A list with something wrong in it, behind at most so many right ones."""
    return st.builds(lambda before, bad, after: [*before, bad, *after], st.lists(item, max_size=before_max), wrong, st.lists(item, max_size=2))


def deep(levels: int) -> Any:
    value: Any = None
    for _ in range(levels):
        value = [value]
    return value


NO_HASH = ANYTHING.filter(lambda value: not is_hash(value))
NO_NUMBER = ANYTHING.filter(lambda value: not is_number(value))
NO_TEXT = ANYTHING.filter(lambda value: value is not None and not isinstance(value, str))
NO_LIST = ANYTHING.filter(lambda value: not isinstance(value, list))
HASHES, TOKENS = st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1)
NO_TOKEN = st.one_of(NO_NUMBER, st.sampled_from([-1, 2**32, 2**64 - 1, -(2**63)]))
# Field of a stored event → position in its array form, and what it can never be.
WRONG: dict[str, tuple[int, st.SearchStrategy[Any]]] = {
    "block_hashes": (1, st.one_of(NO_LIST, listed(HASHES, NO_HASH))),
    "parent_block_hash": (2, NO_HASH.filter(lambda value: value is not None)),
    # In the first block of two tokens: blocks before a wrong token are used.
    "token_ids": (3, st.one_of(NO_LIST, listed(TOKENS, NO_TOKEN, before_max=1))),
    "block_size": (4, st.one_of(NO_NUMBER, st.sampled_from([0, -1, 3, 65_537, 2**63]))),
    "lora_id": (5, NO_NUMBER.filter(lambda value: value is not None)),
    "medium": (6, NO_TEXT),
    "lora_name": (7, NO_TEXT.filter(lambda value: not isinstance(value, dict))),
    "extra_keys": (8, st.one_of(NO_LIST.filter(lambda value: value is not None), st.just([None] * 3), st.just([deep(100)] * 3))),
    "group_idx": (9, NO_NUMBER.filter(lambda value: value is not None)),
    "kv_cache_spec_kind": (10, NO_TEXT),
}
FIELDS = ["BlockStored", [7, 8], None, [1, 2, 3, 4], 2, None, "GPU", None, [None, None], 0, "full_attention"]
NAMES = ["type", *WRONG]


@st.composite
def broken_stored(draw: st.DrawFn) -> Any:
    """A stored event, as a map or an array, in which one field at least can be of no use."""
    values = list(FIELDS)
    for name in draw(st.lists(st.sampled_from(list(WRONG)), min_size=1, max_size=3, unique=True)):
        position, wrong = WRONG[name]
        values[position] = draw(wrong)
    return values if draw(st.booleans()) else dict(zip(NAMES, values, strict=True))


@st.composite
def broken_removed(draw: st.DrawFn) -> Any:
    values = ["BlockRemoved", draw(WRONG["block_hashes"][1]), "GPU", 0]
    return values if draw(st.booleans()) else dict(zip(["type", "block_hashes", "medium", "group_idx"], values, strict=True))


def is_of_known_kind(value: Any) -> bool:
    kind = value[0] if isinstance(value, list) and value else value.get("type") if isinstance(value, dict) else None
    return kind in WORDS


HOSTILE = st.one_of(
    broken_stored(),
    broken_removed(),
    ANYTHING.filter(lambda value: not is_of_known_kind(value)),
    st.builds(lambda kind, rest: [kind, *rest], st.text(max_size=12).filter(lambda kind: kind not in WORDS), st.lists(ANYTHING, max_size=3)),
    st.builds(lambda word, value: {"type": [word], "x": value}, st.sampled_from(WORDS), ANYTHING),
    st.integers(1, 200).map(deep),
    st.just({"type": "BlockStored"}),
    st.just(["BlockStored"]),
    st.just(["BlockRemoved"]),
)


@st.composite
def good_events(draw: st.DrawFn) -> list[Any]:
    """Prompts of a few blocks, some of them removed again, in any dialect; every hash and token is another one."""
    events: list[Any] = []
    for number in range(draw(st.integers(1, 5))):
        first = 1_000 + 10 * number
        count = draw(st.integers(1, 4))
        as_bytes = draw(st.booleans())
        hashes: list[Any] = [(h.to_bytes(32, "big") if as_bytes else h) for h in range(first, first + count)]
        tokens = [10_000 * number + i for i in range(2 * count)]
        if draw(st.booleans()):
            events.append(good_stored(hashes, tokens))
        else:
            events.append(["BlockStored", hashes, None, tokens, 2, None, "GPU", None, [None] * count, 0, "full_attention"])
        gone = hashes[draw(st.integers(0, count)) :]
        if gone:
            as_map = {"type": "BlockRemoved", "block_hashes": gone, "medium": "GPU"}
            events.append(as_map if draw(st.booleans()) else ["BlockRemoved", gone, "GPU", 0])
    return events


@st.composite
def mixed(draw: st.DrawFn) -> tuple[list[Any], list[Any], int]:
    """Good events, the same in the same order with hostile ones between them, and how many of these there are."""
    good = draw(good_events())
    hostile = draw(st.lists(HOSTILE, max_size=6))
    events: list[Any] = list(good)
    for event in hostile:
        events.insert(draw(st.integers(0, len(events))), event)
    return good, events, len(hostile)


@given(mixed(), st.one_of(st.just(1.5), ANYTHING), st.one_of(st.just(0), st.none(), ANYTHING))
def test_good_events_are_applied_as_if_the_hostile_ones_between_them_were_not(batch: tuple[list[Any], list[Any], int], ts: Any, rank: Any) -> None:
    good, events, hostile = batch
    plain, stormy = Stream(), Stream()
    plain.apply(pack([1.5, good, 0]))
    stormy.apply(pack([ts, events, rank]))
    assert not plain.refused()
    assert stormy.held() == plain.held()
    refused = stormy.refused()
    assert refused.keys() <= REASONS.keys()
    assert refused.total() - refused["rank_mismatch"] + stormy.total("kv_indexer_unknown_total") >= hostile
    assert stormy.total("kv_indexer_events_total") == len(good)
    stormy.apply_good()


@given(mixed())
def test_a_refusal_that_may_have_lost_something_says_so(batch: tuple[list[Any], list[Any], int]) -> None:
    _, events, _ = batch
    stream = Stream()
    applied = stream.applier.apply(pack([1.5, events, 0]), 0, is_live=True)
    assert (applied.lossy is not None) == bool(stream.refused().keys() & LOSSY_REASONS)
    assert applied.lossy is None or applied.lossy in stream.refused()


@given(st.binary(max_size=200))
def test_no_bytes_at_all_raise(payload: bytes) -> None:
    stream = Stream()
    stream.apply(payload)
    assert stream.refused().keys() <= REASONS.keys()
    stream.apply_good()


@given(st.lists(ANYTHING, max_size=4) | ANYTHING)
def test_no_value_at_all_raises(value: Any) -> None:
    stream = Stream()
    stream.apply(pack(value))
    assert stream.refused().keys() <= REASONS.keys()
    stream.apply_good()

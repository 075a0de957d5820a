"""Engines with blocks of two and of four tokens, of which often only the larger ones are announced.

A block's content is a letter, its tokens are that letter four times; keys are two tokens apart: `key("A" * 2)` is that of the whole block A.
"""

from functools import partial

import pytest
from msgspec import structs
from xxhash import xxh3_64_intdigest

from indexer.core.block_keys import fold_extra_keys
from indexer.core.block_table import SPAN_MAX, BlockTable
from indexer.core.blocks import Block
from indexer.core.events import Event, Stored, Tier
from indexer.core.larger_blocks import split_told
from indexer.core.places import place_of
from indexer.core.stream_state import StreamState
from indexer.store.records import decode_block, encode_record
from tests.events import offloaded, removed, stored, tokens_of

# msgpack of [1, "", "m", nil].
ROOT = xxh3_64_intdigest(b"\x94\x01\xa0\xa1m\xc0")
SALT = fold_extra_keys([], "tenant")
IMAGE = fold_extra_keys([["image", 1]], None)

small = partial(stored, block_size=2, group=0, kind="sliding_window", window=3)
large = partial(stored, block_size=4, group=1)


def key(halves: str, first: bytes = b"") -> int:
    """The key of these halves of blocks, one behind the other. `first`: extra keys of the first half."""
    found, extra = ROOT, first
    for half in halves:
        found, extra = xxh3_64_intdigest(tokens_of(half, 2) + extra, found), b""
    return found


def keys(*paths: str) -> set[int]:
    return {key(path) for path in paths}


def after(*events: Event, state: StreamState | None = None) -> StreamState:
    """The state after these events, each a batch of its own, of an engine whose groups are known."""
    if state is None:
        state = StreamState("m", "")
        events = (small([98, 99], "YZ"), removed([98, 99], group=0), large([97], "X"), removed([97], group=1), *events)
    for event in events:
        state.apply([event], 0.0)
    return state


def held(state: StreamState, tier: Tier = Tier.GPU, group: int = 1) -> set[int]:
    slot = state.slot_of(group)
    assert slot is not None
    return state.held(tier, slot)


def taken_over(state: StreamState) -> StreamState:
    """What a new owner knows, by the records in Redis."""
    new, table = StreamState("m", ""), state.table

    def through_redis(place: int) -> list[tuple[int, bytes]]:
        records = [(engine_hash, table.record(place, engine_hash)) for engine_hash in table.hashes(place)]
        return [(engine_hash, encode_record(record)) for engine_hash, record in records if record is not None]

    gone = [(engine_hash, table.removed_record(engine_hash)) for engine_hash in table.removed]
    new.restore(
        state.traits(),
        [(place, [(engine_hash, decode_block(value)) for engine_hash, value in through_redis(place)]) for place in table.places()],
        [(engine_hash, decode_block(encode_record(record))) for engine_hash, record in gone if record is not None],
    )
    return new


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_a_placeholder_covers_parts_that_were_never_announced(is_taken_over: bool) -> None:
    """The block is gone from the gpu already: links to parents lead from one larger block to the other."""
    state = after(large([2, 4, 6], "ABC"), removed([2, 4, 6], group=1))
    if is_taken_over:
        state = taken_over(state)
    after(offloaded([2, 6], group=1), state=state)
    assert held(state, Tier.CPU) == keys("A", "AA", "AABBC", "AABBCC")


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_a_chunk_of_several_larger_blocks_covers_all_their_parts(is_taken_over: bool) -> None:
    state = after(large([2, 4, 6], "ABC"))
    if is_taken_over:
        state = taken_over(state)
    after(offloaded([6], group=1, block_size=8), state=state)
    assert held(state, Tier.CPU) == keys("AAB", "AABB", "AABBC", "AABBCC")


def test_a_block_whose_parts_are_announced_later_is_linked_through_them() -> None:
    state = after(large([2, 4], "AB"), small([1, 2, 3, 4], "AABB"), removed([2, 4], group=1))
    assert state.table.large.keys() == {97}
    after(offloaded([4], group=1, block_size=8), state=state)
    assert held(state, Tier.CPU) == keys("A", "AA", "AAB", "AABB")


def test_a_larger_block_that_waited_for_its_parent_covers_its_parts() -> None:
    state = after(large([4], "B", 2), large([2], "A"), removed([4], group=1), offloaded([4], group=1))
    assert held(state, Tier.CPU) == keys("AAB", "AABB")


def test_parts_are_forgotten_with_their_block() -> None:
    table = BlockTable(removed_max=1)
    for number in (1, 2, 3):
        block = Block(number, None, 0)
        table.link(number, block, None, (number, 10 + number))
        table.remember(number, block)
    assert table.large.keys() == set(table.removed)


@pytest.mark.parametrize("span", [2, SPAN_MAX, SPAN_MAX + 1])
def test_a_block_of_very_many_keys_has_no_link(span: int) -> None:
    table, parts = BlockTable(8), tuple(range(100, 100 + span))
    parent, block = Block(7, None), Block(100, None)
    table.held[1], table.held[2] = parent, block
    table.link(2, block, 1, parts)
    assert table.covered(2, block, span + 1) == ((*parts, 7) if span <= SPAN_MAX else (100,))


def test_a_large_block_is_recorded_with_the_distance_of_its_parent() -> None:
    state = after(large([2, 4], "AB"))
    slot = state.slot_of(1)
    assert slot is not None
    record = state.table.record(place_of(slot, Tier.GPU), 4)
    assert record is not None
    assert (record.parent, record.keys, record.span) == (2, (key("AABB"), key("AAB")), 2)
    assert encode_record(record)[:10] == b"\x01\x09\x02\0\0\0\0\0\0\0", "one copy, a parent that is two keys back, the parent"
    assert decode_block(encode_record(record)) == record


# Extra keys


def test_the_salt_of_a_larger_block_is_its_first_parts() -> None:
    state = after(large([2, 4], "AB", extra_keys={0: SALT}))
    assert held(state) == {key(path, SALT) for path in ("A", "AA", "AAB", "AABB")}
    assert state.parked == 0


def test_the_salt_of_a_larger_block_below_the_gpu_is_its_first_parts() -> None:
    state = after(large([2], "A", tier=Tier.CPU, extra_keys={0: SALT}))
    assert held(state, Tier.CPU) == {key("A", SALT), key("AA", SALT)}


def test_blocks_before_an_image_are_told_and_those_from_it_on_wait_for_their_hashes() -> None:
    state = after(large([2, 4, 6], "ABC", extra_keys={1: IMAGE}))
    assert (held(state), state.parked) == (keys("A", "AA"), 2)
    after(small([1, 2, 3, 4], "AABB", extra_keys={3: IMAGE}), small([5, 6], "CC", 4), state=state)
    image = xxh3_64_intdigest(tokens_of("B", 2) + IMAGE, key("AAB"))
    first = xxh3_64_intdigest(tokens_of("C", 2), image)
    assert held(state) == {*keys("A", "AA", "AAB"), image, first, xxh3_64_intdigest(tokens_of("C", 2), first)}


def test_a_salt_beside_an_image_waits_for_its_hash() -> None:
    state = after(large([2], "A", extra_keys={0: fold_extra_keys([["image", 1]], "tenant")}))
    assert (held(state), state.parked) == (set(), 1)


def test_the_tokens_behind_a_part_are_those_that_follow_it() -> None:
    """Lookahead of one: A ends with the first token of B, which the event names."""
    ahead = {0: tokens_of("B", 1), 1: tokens_of("C", 1)}
    told, others = split_told(_with_lookahead(large([2, 4], "AB", extra_keys=ahead)), 2, 1, has_parent_key=True)
    assert others is None
    assert told is not None
    assert told.extra_keys == {0: tokens_of("A", 1), 1: tokens_of("B", 1), 2: tokens_of("B", 1), 3: tokens_of("C", 1)}


def test_a_salt_follows_the_tokens_behind_its_part() -> None:
    told, _ = split_told(_with_lookahead(large([2], "A", extra_keys={0: tokens_of("B", 1) + SALT})), 2, 1, has_parent_key=True)
    assert told is not None
    assert told.extra_keys == {0: tokens_of("A", 1) + SALT, 1: tokens_of("B", 1)}


def test_blocks_of_another_lookahead_than_the_streams_go_by_their_hashes() -> None:
    event = large([2], "A")
    assert split_told(event, 2, 1, has_parent_key=True) == (None, event)


def _with_lookahead(event: Stored) -> Stored:
    return structs.replace(event, lookahead=1)

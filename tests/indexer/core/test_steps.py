"""A large batch is applied in steps: it does what it does at once, and no step takes long."""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from indexer.core import change_records, foreign_copies, stream_state, waiting_blocks
from indexer.core.block_keys import fold_extra_keys
from indexer.core.change import Change
from indexer.core.event_pieces import Steps, pieces_of, result_of
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.foreign_copy import ForeignCopy
from indexer.core.orphans import Parked
from indexer.core.snapshot import Snapshot
from indexer.core.stream_state import Counting, StreamState
from tests.events import BLOCK_SIZE, sparse, stored, tokens_of
from tests.indexer.core.test_isolation import some_events
from tests.indexer.core.test_stream_state import any_batches

KEY_SIZE = BLOCK_SIZE


def count_of(steps: Steps[Any]) -> int:
    """How many steps there are; all are carried out."""
    return sum(1 for _ in steps)


# Pieces


def test_blocks_are_cut_into_pieces_that_follow_each_other() -> None:
    event = stored([1, 2, 3, 4, 5], "abcde", parent=9, lora_name="ad", extra_keys={0: b"x", 3: b"y"})
    first, second, third = pieces_of(event, 2, KEY_SIZE)
    assert first == stored([1, 2], "ab", parent=9, lora_name="ad", extra_keys={0: b"x"})
    assert second == stored([3, 4], "cd", parent=2, lora_name="ad", extra_keys={1: b"y"})
    assert third == stored([5], "e", parent=4, lora_name="ad")


def test_removals_are_cut() -> None:
    assert list(pieces_of(Removed([1, 2, 3], Tier.CPU, 1), 2, KEY_SIZE)) == [Removed([1, 2], Tier.CPU, 1), Removed([3], Tier.CPU, 1)]


@pytest.mark.parametrize(
    "event",
    [
        Cleared(),
        stored([1, 2], "ab"),
        stored([1, 2, 3], "abc", tier=Tier.CPU, announces_extra_keys=False),
        stored([1, 2, 3], "abc", block_size=2 * KEY_SIZE, extra_keys={2: b"x"}),
        Stored([1, 2, 3], None, b"", 4, Tier.GPU, None, None, True, 0, None, sparse_tokens=40),
        Stored([1, 2, 3], None, tokens_of("abc"), 2 * KEY_SIZE, Tier.GPU, None, None, True, 0, None, lookahead=1),
    ],
)
def test_what_is_judged_as_a_whole_is_not_cut(event: Event) -> None:
    assert list(pieces_of(event, 2, KEY_SIZE)) == [event]


# States


def value_of(record: Any) -> Any:
    """A record as it is now: some are the stream's own."""
    if isinstance(record, Parked):
        return [getattr(record, name) for name in Parked.__slots__]
    if isinstance(record, ForeignCopy):
        return [getattr(record, name) for name in ForeignCopy.__slots__]
    return str(record)


def values(places: dict[int, dict[int, Any]]) -> dict[int, dict[int, Any]]:
    return {place: {engine_hash: value_of(record) for engine_hash, record in records.items()} for place, records in places.items()}


def records_said(change: Change) -> dict[tuple[int, int], Any]:
    """Place and engine hash → the record."""
    return {(place, number): value_of(record) for place, records in (change.records or {}).items() for number, record in records.items()}


def said_and_held(state: StreamState, change: Change) -> Any:
    """All that a change says but for records, and what the stream holds after it."""
    snapshot = Snapshot(state)
    held = {place: snapshot.records(place, snapshot.hashes(place)) for place in snapshot.places()}
    mapping = change.hash_mapping and (change.hash_mapping.keys, set(change.hash_mapping.removed_hashes))
    said = change.reload, change.cleared, change.touched, change.touched_in, mapping
    shown = {tier: state.held(tier) for tier in Tier}
    return said, values(held), shown, snapshot.traits(), dict(+state.tally), state.clears, dict(state.stored), dict(state.removed)


def at_once(state: StreamState, batch: Sequence[Event]) -> Change:
    return state.apply(batch, 0.0)


def in_steps(state: StreamState, batch: Sequence[Event]) -> Change:
    return result_of(state.apply_in_steps(iter(batch), batch, 0.0))


def names_two_parents(batch: Iterable[Event], parents: dict[int, int | None]) -> bool:
    """Whether a block that was stored behind one is stored behind another one. `parents`: of all blocks so far."""
    stored_in_batch = [event for event in batch if isinstance(event, Stored)]
    return any(
        parents.setdefault(engine_hash, parent) != parent
        for event in stored_in_batch
        for engine_hash, parent in zip(event.hashes, (event.parent, *event.hashes), strict=False)
    )


def check_equal(batches: Iterable[list[Event]], counting: Counting) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stream_state, "STEP_BLOCKS_MAX", 2)
        patch.setattr(change_records, "STEP_HASHES", 2)
        patch.setattr(foreign_copies, "STEP_HASHES", 2)
        patch.setattr(waiting_blocks, "STEP_HASHES", 2)
        for with_records in (False, True):
            # Not at a limit: which blocks go there depends on how far an event is applied.
            first, second = (StreamState("m", "", counting, with_records=with_records, with_hash_mapping=with_records) for _ in range(2))
            parents: dict[int, int | None] = {}
            for batch in batches:
                with pytest.MonkeyPatch.context() as whole:
                    whole.setattr(stream_state, "STEP_BLOCKS_MAX", 10**9)
                    expected = at_once(first, batch)
                found = in_steps(second, batch)
                has_two_parents = names_two_parents(batch, parents)
                if (
                    first.tally["key_conflict"]
                    or (first.tally["orphan"] and has_two_parents)
                    or not all(isinstance(event, Cleared) or len(set(event.hashes)) == len(event.hashes) for event in batch)
                ):
                    return  # an engine that contradicts itself: what counts depends on how far an event is applied
                assert said_and_held(second, found) == said_and_held(first, expected)
                assert not second.is_amid_batch
                records, more = records_said(expected), records_said(found)
                # That nothing is held is said of some hashes more: a piece of an event may name what another one settles.
                assert more == more | records
                assert {str(more[of]) for of in more.keys() - records.keys()} <= {"None"}


@given(any_batches(), st.sampled_from(["copies", "set"]))
def test_batches_of_any_events_do_in_steps_what_they_do_at_once(batches: list[list[Event]], counting: Counting) -> None:
    check_equal(batches, counting)


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_batches_of_several_tenants_do_in_steps_what_they_do_at_once(dialect: str) -> None:
    @given(st.lists(st.lists(some_events(dialect), min_size=1, max_size=6), max_size=6))
    def check(batches: list[list[Event]]) -> None:
        check_equal(batches, "copies")

    check()


def long_chain(count: int, **more: Any) -> Stored:
    return stored(range(1, count + 1), [0] * count, **more)


@pytest.mark.parametrize(
    ("before", "event", "steps"),
    [
        ([long_chain(10_000)], Cleared(), 10),
        ([], long_chain(10_000), 10),
        ([long_chain(10_000)], Removed(list(range(1, 10_001)), Tier.GPU, 0), 10),
        ([long_chain(10_000), long_chain(10_000, tier=Tier.CPU), Cleared()], Cleared(), 0),
        ([stored([number], [0], parent=number - 1) for number in range(5_000, 1, -1)], stored([1], [0]), 4_999),
    ],
)
def test_one_event_that_touches_many_blocks_takes_several_steps(before: list[Event], event: Event, steps: int) -> None:
    state = StreamState("m", "")
    state.apply(before, 0.0)
    found = state.start([event], 0.0) if not isinstance(event, Stored | Removed) else state.apply_in_steps([event], [event], 0.0)
    assert not isinstance(found, Change)
    assert state.is_amid_batch
    assert count_of(found) >= steps
    assert not state.is_amid_batch


KEYS = dict.fromkeys(range(9000), b"image")


@pytest.mark.parametrize(
    ("before", "event"),
    [
        ([], long_chain(10_000, extra_keys=KEYS)),
        ([], structs.replace(long_chain(10_000, extra_keys={number: bytes(4) for number in range(10_000)}), lookahead=1)),
        ([stored([20_001], [0])], long_chain(10_000, block_size=2 * BLOCK_SIZE, group=1, extra_keys={9_000: b"image"})),
        ([stored([20_001], [0])], long_chain(10_000, block_size=2 * BLOCK_SIZE, group=1, extra_keys={0: fold_extra_keys(["image"], None)})),
        ([stored([20_001], [0])], long_chain(10_000, tier=Tier.CPU, group=None, lists_extra_keys=False)),
        ([long_chain(10_000)], long_chain(10_000, tier=Tier.CPU, group=None, lists_extra_keys=False)),
        ([long_chain(10_000)], long_chain(10_000, tier=Tier.CPU, lists_extra_keys=False)),
        ([stored([20_001], [0])], sparse(range(1, 10_001), 20_000)),
    ],
    ids=["extra keys", "lookahead", "larger, told", "larger, by hash", "foreign", "known below", "offloaded by hash", "sparse"],
)
def test_an_event_that_is_judged_as_a_whole_takes_several_steps_too(before: list[Event], event: Stored) -> None:
    """In none of them more blocks come to be known than a step has."""
    state = StreamState("m", "")
    for each in before:
        state.apply([each], 0.0)
    steps = state.apply_in_steps([event], [event], 0.0)
    looked_at = [len(state.table.held) + state.parked + state.count(Tier.CPU) for _ in steps]
    grown = [after - former for former, after in pairwise([looked_at[0], *looked_at])]
    assert len(looked_at) >= 10
    assert max(grown) <= 2 * stream_state.STEP_BLOCKS_MAX


def test_a_batch_after_which_much_may_get_its_key_takes_steps() -> None:
    state = StreamState("m", "")
    state.apply([stored([number], [0], parent=number - 1) for number in range(2_000, 1, -1)], 0.0)
    steps = state.start([stored([1], [0])], 0.0)
    assert not isinstance(steps, Change)
    assert len(result_of(steps)) == 2_000


def test_forgetting_amid_a_batch_leaves_nothing_of_it() -> None:
    state = StreamState("m", "")
    state.apply([long_chain(5_000)], 0.0)
    steps = state.start([Cleared(), stored([7], [7])], 0.0)
    assert not isinstance(steps, Change)
    next(steps)
    state.forget()
    assert not state.is_amid_batch
    fresh = StreamState("m", "")
    held, expected = (said_and_held(each, each.apply([stored([1], [1])], 0.0))[:-2] for each in (state, fresh))
    assert held == expected

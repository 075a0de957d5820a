"""What an engine can make a stream do with few bytes: the work of a batch follows from what is in it, and not from all that the stream holds.

Work is counted in calls, of Python and of C: each step of the loops in question makes at least one.
"""

import random
import sys
from collections.abc import Callable, Sequence

import pytest

from indexer.core.events import Cleared, Event, Tier
from indexer.core.held_blocks import COVERED_MAX
from indexer.core.stream_state import StreamState
from indexer.limits import StateLimits
from tests.events import offloaded, removed, stored

HELD = 3_000


def calls_of(work: Callable[[], object]) -> int:
    calls = 0

    def count(frame: object, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return calls


def state_with(*batches: Sequence[Event], **limits: int) -> StreamState:
    state = StreamState("m", "", limits=StateLimits(**limits))
    for batch in batches:
        state.apply(batch, 0.0)
    return state


def test_the_calls_of_some_work_are_counted() -> None:
    numbers: list[int] = []
    assert 1_000 <= calls_of(lambda: [numbers.append(1) for _ in range(1_000)]) < 1_010


ALTERNATIONS: dict[str, list[Event]] = {
    "nothing": [],
    "a block": [stored([HELD])],
    "a block below the gpu": [stored([HELD]), offloaded([HELD])],
    "a block that waits": [stored([HELD], parent=10 * HELD)],
    "a block below the gpu that waits": [offloaded([20 * HELD], Tier.DISK)],
}


@pytest.mark.parametrize("between", list(ALTERNATIONS))
def test_many_clears_in_a_batch_walk_what_is_held_and_waits_once(between: str) -> None:
    orphans = stored(range(30 * HELD, 31 * HELD), parent=29 * HELD)
    state = state_with([stored(range(1, HELD))], [offloaded(range(1, HELD)), orphans])
    batch = [Cleared(), *[*ALTERNATIONS[between], Cleared()] * 200]
    assert calls_of(lambda: state.apply(batch, 0.0)) < 40 * HELD + 200 * 120
    assert (len(state.held(Tier.GPU)) <= 1, state.held(Tier.CPU)) == (True, set())


def test_offloaded_blocks_that_overlap_cover_no_more_than_so_many_keys_together() -> None:
    """Each of them says that it is as large as all blocks before it: all keys together would be half the square of the blocks."""
    chain = stored(range(1, HELD), block_size=1)
    state = state_with([chain])
    batch = [offloaded(range(1, HELD), block_size=65_536)]
    assert calls_of(lambda: state.apply(batch, 0.0)) < 6 * COVERED_MAX
    covered = sum(len(copies.keys) for in_place in state.table.more.values() for copies in in_place.values())
    assert covered < COVERED_MAX + HELD
    assert state.tally["cover_limit"] > 0
    assert state.held(Tier.CPU) == state.held(Tier.GPU), "each covers its own key at least"


def test_runs_side_by_side_cover_all_their_blocks() -> None:
    state = state_with([stored(range(1, HELD), block_size=1)], [offloaded(range(16, HELD, 16), block_size=16)])
    assert state.tally["cover_limit"] == 0
    assert len(state.held(Tier.CPU)) == (HELD - 1) // 16 * 16


def test_copies_under_foreign_hashes_are_looked_at_in_turns_and_found_in_the_end() -> None:
    """A batch finds the keys of so many copies that wait for their parents', whichever they are."""
    chunks = [offloaded_chunk(engine_hash, parent=engine_hash + 5 * HELD) for engine_hash in range(10 * HELD, 11 * HELD)]
    state = state_with([stored([1])], chunks)
    assert state.parked == HELD
    assert calls_of(lambda: state.apply([stored([2])], 0.0)) < 10_000

    parents = range(15 * HELD, 16 * HELD)
    for parent in parents:
        state.apply([stored([parent], [7])], 0.0)
        state.apply([stored([parent + 5 * HELD], [10 * HELD + parent - 15 * HELD], parent)], 0.0)
    assert state.parked == 0
    assert len(state.held(Tier.CPU)) == HELD


def offloaded_chunk(engine_hash: int, parent: int) -> Event:
    return stored([engine_hash], [engine_hash], parent, Tier.CPU, announces_extra_keys=False, group=None, kind=None)


def test_an_engine_that_evicts_all_the_time_keeps_what_it_removed_last() -> None:
    """More at a time go than have to, so that finding the oldest costs little; never more than a sixteenth of the limit."""
    state = StreamState("m", "", limits=StateLimits(removed_max=160))
    rng = random.Random(1)
    gone: list[int] = []
    for engine_hash in range(1, 2_000):
        state.apply([stored([engine_hash], [rng.randrange(2**32)])], 0.0)
        state.apply([removed([engine_hash])], 0.0)
        gone.append(engine_hash)
        remembered = list(state.table.removed)
        assert remembered == gone[-len(remembered) :]
        assert min(len(gone), 150) <= len(remembered) <= 160

"""What a stream holds after what its engine says.

A block's content is a letter, its tokens are that letter twice; `key("AB")` is the key of a block B behind a block A.
"""

from collections.abc import Mapping
from functools import partial
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from indexer.core.adapters import ADAPTER_LENGTH_MAX, ADAPTERS_MAX
from indexer.core.block_table import BlockRecord, HashRecord
from indexer.core.blocks import Block
from indexer.core.change import Change
from indexer.core.event_pieces import result_of
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.places import LEAD_GPU, PARKED, REMOVED, is_gpu
from indexer.core.snapshot import Snapshot
from indexer.core.stream_state import Counting, StreamState
from indexer.core.traits import Traits
from indexer.limits import StateLimits
from tests import events

GPU, CPU, DISK, OTHER, REMOTE = Tier
# msgpack of [1, "", "m", nil] and of [1, "", "m", "ad"].
ROOT = xxh3_64_intdigest(b"\x94\x01\xa0\xa1m\xc0")
LORA_ROOT = xxh3_64_intdigest(b"\x94\x01\xa0\xa1m\xa2ad")


# Of an engine with blocks of two tokens, which says nothing of groups.
BLOCK_SIZE = 2
tokens_of = partial(events.tokens_of, block_size=BLOCK_SIZE)
stored = partial(events.stored, block_size=BLOCK_SIZE, group=None, kind=None)
offloaded = partial(events.offloaded, group=None)
removed = partial(events.removed, group=None)
sparse = partial(events.sparse, block_size=BLOCK_SIZE)


def key(letters: str, root: int = ROOT, block_size: int = BLOCK_SIZE) -> int:
    for letter in letters:
        root = xxh3_64_intdigest(tokens_of(letter, block_size=block_size), root)
    return root


def keys(*paths: str) -> set[int]:
    return {key(path) for path in paths}


def new_state(counting: Counting = "copies", offload_block_size: int | None = None, **limits: float) -> StreamState:
    return StreamState("m", "", counting, StateLimits(**limits), offload_block_size)  # type: ignore[arg-type]


def after(*events: Event, state: StreamState | None = None) -> StreamState:
    """The state after these events, each a batch of its own."""
    state = state or new_state()
    for event in events:
        state.apply([event], 0.0)
    return state


def block_size_of(state: StreamState) -> int | None:
    return None if state.shape is None else state.shape.block_size


def tally(state: StreamState) -> dict[str, int]:
    return {reason: count for reason, count in state.tally.items() if count}


# Storing and removing


def test_a_stored_chain_is_held_under_its_keys() -> None:
    state = new_state()
    change = state.apply([stored([1, 2, 3], "ABC")], 0.0)
    assert state.held(GPU) == keys("A", "AB", "ABC")
    assert change.touched[GPU] == {key("A"): True, key("AB"): True, key("ABC"): True}
    assert not any(change.touched[1:])
    assert (change.cleared, change.reload, block_size_of(state), state.count(GPU)) == (False, False, 2, 3)


def test_a_chain_goes_on_from_its_parent() -> None:
    assert after(stored([1], "A"), stored([2, 3], "BC", parent=1)).held(GPU) == keys("A", "AB", "ABC")


def test_a_lora_name_has_a_root_of_its_own() -> None:
    state = after(stored([1], "A", lora_name="ad"), stored([2], "B", parent=1, lora_name="ad"))
    assert state.held(GPU) == {key("A", LORA_ROOT), key("AB", LORA_ROOT)}


def test_extra_keys_go_behind_their_blocks_tokens() -> None:
    state = after(stored([1, 2], "AB", extra_keys={1: b"image"}))
    assert state.held(GPU) == {key("A"), xxh3_64_intdigest(tokens_of("B") + b"image", key("A"))}


def test_a_removed_block_is_held_no_longer() -> None:
    state = after(stored([1, 2, 3], "ABC"))
    change = state.apply([removed([2])], 0.0)
    assert change.touched[GPU] == {key("AB"): False}
    assert state.held(GPU) == keys("A", "ABC")


def test_a_removed_parent_can_still_be_chained_from() -> None:
    assert after(stored([1], "A"), removed([1]), stored([2], "B", parent=1)).held(GPU) == keys("AB")


def test_a_chain_with_a_forgotten_parent_goes_on_from_its_known_first_block() -> None:
    state = after(stored([1, 2], "AB"), removed([1]), stored([9], "X"), removed([9]), state=new_state(removed_max=1))
    after(stored([2, 3], "BC", parent=1), state=state)
    assert state.held(GPU) == keys("AB", "ABC")
    assert state.parked == 0


def test_removals_of_unknown_hashes_change_nothing() -> None:
    state = after(stored([1], "A"))
    for tier in Tier:
        assert not state.apply([removed([7], tier=tier)], 0.0)
    assert not state.apply([removed([1], tier=CPU)], 0.0)
    assert state.held(GPU) == keys("A")


def test_blocks_stored_and_removed_are_counted_per_tier() -> None:
    state = after(stored([1, 2], "AB"), offloaded([1]), removed([1]), removed([7, 8], tier=DISK))
    assert state.stored == {GPU: 2, CPU: 1}
    assert state.removed == {GPU: 1, DISK: 2}


def test_an_event_without_hashes_changes_nothing() -> None:
    state = new_state()
    assert not state.apply([stored([], ""), removed([])], 0.0)
    assert block_size_of(state) is None


# Copies


def test_a_block_stored_twice_has_to_be_removed_twice() -> None:
    state = after(stored([1], "A"), stored([1], "A"))
    assert not state.apply([removed([1])], 0.0)
    assert state.held(GPU) == keys("A")
    assert state.apply([removed([1])], 0.0).touched[GPU] == {key("A"): False}
    assert state.held(GPU) == set()


def test_in_set_mode_one_removal_is_enough() -> None:
    state = after(stored([1], "A"), stored([1], "A"), offloaded([1]), offloaded([1]), state=new_state("set"))
    assert state.apply([removed([1])], 0.0).touched[GPU] == {key("A"): False}
    assert state.apply([removed([1], tier=CPU)], 0.0).touched[CPU] == {key("A"): False}


def test_a_lower_tier_keeps_one_copy_of_a_block() -> None:
    """One that is announced again was lost without a word, as after a reset of that tier alone."""
    state = after(stored([1], "A"), offloaded([1]), offloaded([1]), stored([1], "A", tier=DISK), stored([1], "A", tier=DISK))
    assert (state.held(CPU), state.held(DISK)) == (keys("A"), keys("A"))
    after(removed([1], tier=CPU), removed([1], tier=DISK), state=state)
    assert (state.held(CPU), state.held(DISK)) == (set(), set())


def test_copies_are_counted_up_to_a_cap() -> None:
    state = after(*[stored([1], "A")] * 5, state=new_state(copies_max=2))
    assert after(removed([1]), state=state).held(GPU) == keys("A")
    assert after(removed([1]), state=state).held(GPU) == set()


def test_a_lower_tier_holds_so_many_blocks_of_a_group_and_drops_the_oldest() -> None:
    state = after(stored([1, 2, 3], "ABC"), offloaded([1]), offloaded([2]), offloaded([1]), state=new_state(lower_tier_blocks_max=2))
    change = state.apply([offloaded([3])], 0.0)
    assert (state.held(CPU), tally(state)) == (keys("A", "ABC"), {"tier_limit": 1})
    assert change.touched[CPU] == {key("AB"): False, key("ABC"): True}
    assert (state.held(GPU), state.held(DISK)) == (keys("A", "AB", "ABC"), set())
    assert after(offloaded([1, 2], DISK), state=state).held(DISK) == keys("A", "AB")


@pytest.mark.parametrize("run", [1, 2, 4, 6])
def test_the_gpu_holds_so_many_blocks_and_drops_the_oldest(run: int) -> None:
    """An engine that never says that a block is gone, in runs that are added one by one and at once."""
    state, names = new_state(gpu_blocks_max=6), "ABCDEFGHIJKL"
    touched: dict[int, bool] = {}
    for start in range(0, len(names), run):
        parent = start or None
        touched |= state.apply([stored(list(range(start + 1, start + run + 1)), names[start : start + run], parent)], 0.0).touched[GPU]
    expected = [key(names[: end + 1]) for end in range(6, 12)]
    assert state.held(GPU) == set(expected)
    assert {held for held, is_held in touched.items() if is_held} == set(expected)
    assert tally(state) == {"tier_limit": 6}
    assert state.apply([removed([7])], 0.0).touched[GPU] == {key("ABCDEFG"): False}


def test_what_the_gpu_drops_stays_below_it() -> None:
    state = after(stored([1, 2], "AB"), stored([1], "A"), offloaded([1]), state=new_state(gpu_blocks_max=2))
    after(stored([3], "C"), state=state)
    assert (state.held(GPU), tally(state)) == (keys("A", "AB", "C"), {}), "one of three is below the gpu too"
    after(stored([4], "D"), state=state)
    assert (state.held(GPU), state.held(CPU), tally(state)) == (keys("AB", "C", "D"), keys("A"), {"tier_limit": 1})


def test_more_removals_than_copies_take_nothing_from_the_next_life() -> None:
    state = after(stored([1], "A"), removed([1]), removed([1]), removed([1]), stored([1], "A"))
    assert state.held(GPU) == keys("A")
    assert after(removed([1]), state=state).held(GPU) == set()


def test_a_change_names_final_values_only() -> None:
    state = new_state()
    change = state.apply([stored([1, 2], "AB"), removed([2]), stored([1], "A"), removed([1]), stored([3], "C"), removed([3]), stored([3], "C")], 0.0)
    assert change.touched[GPU] == {key("A"): True, key("AB"): False, key("C"): True}


# Clearing


def test_a_clear_empties_the_gpu_alone() -> None:
    state = after(
        stored([1, 2, 3], "ABC"), stored([1], "A"), offloaded([1]), offloaded([2], DISK), stored([4], "D", tier=OTHER), stored([5], "E", tier=REMOTE)
    )
    change = state.apply([Cleared()], 0.0)
    assert change.cleared
    assert not any(change.touched)
    assert [state.held(tier) for tier in Tier] == [set(), keys("A"), keys("AB"), keys("D"), keys("E")]


def test_what_follows_a_clear_in_its_batch_counts() -> None:
    state = after(stored([1, 2], "AB"))
    change = state.apply([Cleared(), stored([1], "A")], 0.0)
    assert (change.cleared, change.touched[GPU]) == (True, {key("A"): True})
    assert state.held(GPU) == keys("A")


def test_what_came_before_a_clear_in_its_batch_does_not_count() -> None:
    state = new_state()
    change = state.apply([stored([1, 2], "AB"), offloaded([1]), removed([2]), Cleared()], 0.0)
    assert (change.cleared, change.touched[GPU], change.touched[CPU]) == (True, {}, {key("A"): True})
    assert state.held(GPU) == set()


def test_copies_do_not_survive_a_clear() -> None:
    state = after(stored([1], "A"), stored([1], "A"), Cleared(), stored([1], "A"), removed([1]))
    assert state.held(GPU) == set()


def test_a_second_clear_in_a_batch_empties_the_lower_tiers() -> None:
    """So the simple connector resets its cpu tier: one clear before the stores of the batch, one after them."""
    state = after(stored([1, 2, 9], "ABX"), offloaded([9]), offloaded([1], DISK))
    change = state.apply([Cleared(), stored([1, 2], "AB"), offloaded([1]), Cleared()], 0.0)
    assert [state.held(tier) for tier in Tier] == [keys("A", "AB"), set(), set(), set(), set()]
    assert (change.cleared, change.touched[GPU]) == (True, {key("A"): True, key("AB"): True})
    assert (change.touched[CPU], change.touched[DISK]) == ({key("A"): False, key("ABX"): False}, {key("A"): False})


def test_the_next_batch_starts_with_the_gpu_again() -> None:
    state = after(stored([1], "A"), offloaded([1]), Cleared(), stored([1], "A"), Cleared())
    assert (state.held(GPU), state.held(CPU)) == (set(), keys("A"))


def test_a_second_clear_takes_the_lower_copies_of_blocks_that_wait() -> None:
    state = new_state()
    state.apply([stored([2], "B", parent=1), offloaded([2]), Cleared(), Cleared()], 0.0)
    after(stored([1], "A"), state=state)
    assert (state.held(GPU), state.held(CPU)) == (keys("A"), set())


def test_a_cleared_block_can_still_be_chained_from() -> None:
    assert after(stored([1], "A"), Cleared(), stored([2], "B", parent=1)).held(GPU) == keys("AB")


# Lower tiers


def test_an_offloaded_block_outlives_its_removal_from_the_gpu() -> None:
    state = after(stored([1, 2], "AB"), offloaded([2]), removed([2]))
    assert (state.held(GPU), state.held(CPU)) == (keys("A"), keys("AB"))
    change = state.apply([removed([2], tier=CPU)], 0.0)
    assert (change.touched[GPU], change.touched[CPU]) == ({}, {key("AB"): False})


def test_an_offload_may_be_announced_after_the_removal() -> None:
    state = after(stored([1, 2], "AB"), removed([2]))
    assert state.apply([offloaded([2])], 0.0).touched[CPU] == {key("AB"): True}


def test_an_offload_of_a_hash_never_announced_waits_for_its_announcement() -> None:
    state = after(stored([1], "A"), offloaded([1, 7]))
    assert (state.held(CPU), state.parked, tally(state)) == (keys("A"), 1, {"orphan": 1})
    change = state.apply([stored([7], "G", parent=1)], 0.0)
    assert (change.touched[GPU], change.touched[CPU]) == ({key("AG"): True}, {key("AG"): True})
    assert (state.held(CPU), state.parked, tally(state)) == (keys("A", "AG"), 0, {"orphan": 1, "orphan_adopted": 1})


def test_an_offload_that_was_removed_before_its_announcement_does_not_count() -> None:
    state = after(offloaded([7]), offloaded([7], DISK), removed([7], tier=CPU), stored([7], "G"))
    assert (state.held(GPU), state.held(CPU), state.held(DISK)) == (keys("G"), set(), keys("G"))


def test_so_many_removed_blocks_are_remembered() -> None:
    state = after(stored([1, 2, 3], "ABC"), removed([1, 2, 3]), state=new_state(removed_max=2))
    after(offloaded([1, 2, 3]), state=state)
    assert (state.held(CPU), tally(state)) == (keys("AB", "ABC"), {"orphan": 1})


def test_a_block_comes_back_from_a_lower_tier_by_a_tier_update() -> None:
    state = after(stored([1], "A"), offloaded([1]), removed([1]))
    assert state.apply([offloaded([1], GPU)], 0.0).touched[GPU] == {key("A"): True}
    assert after(removed([1]), state=state).held(GPU) == set()


def test_a_lower_tier_may_announce_tokens_itself() -> None:
    """Its event lists the extra keys, so that its blocks are nobody else's."""
    state = after(stored([1, 2], "AB"), removed([1, 2]), stored([1, 2], "AB", tier=DISK), stored([3], "C", parent=2))
    assert (state.held(DISK), state.held(GPU)) == (keys("A", "AB"), keys("ABC"))


def test_one_block_may_lie_in_every_tier() -> None:
    state = after(stored([1], "A"), *(offloaded([1], tier) for tier in (CPU, DISK, OTHER, REMOTE)))
    assert [state.held(tier) for tier in Tier] == [keys("A")] * 5
    after(*(removed([1], tier=tier) for tier in (GPU, CPU, DISK, OTHER)), state=state)
    assert [state.held(tier) for tier in Tier] == [set()] * 4 + [keys("A")]


@pytest.mark.parametrize(("announced", "configured"), [(6, None), (0, 6), (6, 100)])
def test_an_offloaded_hash_covers_the_blocks_before_it(announced: int, configured: int | None) -> None:
    state = after(stored([1, 2, 3, 4, 5, 6], "ABCDEF"), state=new_state(offload_block_size=configured))
    change = state.apply([offloaded([3, 6], block_size=announced)], 0.0)
    assert state.held(CPU) == keys("A", "AB", "ABC", "ABCD", "ABCDE", "ABCDEF")
    assert change.touched[CPU] == dict.fromkeys(keys("A", "AB", "ABC", "ABCD", "ABCDE", "ABCDEF"), True)
    change = state.apply([removed([6], tier=CPU)], 0.0)
    assert change.touched[CPU] == dict.fromkeys(keys("ABCD", "ABCDE", "ABCDEF"), False)
    assert state.held(CPU) == keys("A", "AB", "ABC")


def test_an_offloaded_hash_covers_blocks_that_the_gpu_has_removed() -> None:
    state = after(stored([1, 2, 3], "ABC"), removed([1, 2, 3]), offloaded([3], block_size=4))
    assert state.held(CPU) == keys("AB", "ABC")


def test_an_offloaded_hash_near_the_root_covers_what_there_is() -> None:
    assert after(stored([1, 2], "AB"), offloaded([2], block_size=6)).held(CPU) == keys("A", "AB")


def test_an_offload_with_tokens_in_larger_blocks_covers_the_same() -> None:
    event = Stored([2, 4], None, tokens_of("ABCD"), 4, CPU, None, None, True, None, None)
    assert after(stored([1, 2, 3, 4], "ABCD"), event).held(CPU) == keys("A", "AB", "ABC", "ABCD")


def test_a_block_covered_twice_is_held_until_both_are_gone() -> None:
    state = after(stored([1, 2], "AB"), stored([3], "C", parent=1), offloaded([2, 3], block_size=4), removed([2], tier=CPU))
    assert state.held(CPU) == keys("A", "AC")
    assert after(removed([3], tier=CPU), state=state).held(CPU) == set()


def test_an_offload_that_is_no_multiple_covers_itself_only() -> None:
    assert after(stored([1, 2], "AB"), offloaded([2], block_size=3)).held(CPU) == keys("AB")


# Block size


def test_a_part_of_a_block_is_not_indexed() -> None:
    state = after(stored([1, 2], "AB", block_size=4), stored([3], "C", parent=2, block_size=2))
    assert (state.held(GPU), block_size_of(state)) == ({key("A", block_size=4), key("AB", block_size=4)}, 4)
    assert (tally(state), state.other_block_size) == ({"partial_block": 1}, 2)


def test_a_larger_single_block_than_those_that_are_known_is_refused() -> None:
    state = after(stored([1, 2], "AB"), stored([3], "C", block_size=3))
    assert (state.held(GPU), block_size_of(state), tally(state), state.other_block_size) == (keys("A", "AB"), 2, {"block_size": 1}, 3)


def test_the_block_size_of_a_lower_tier_is_not_the_engines() -> None:
    state = after(stored([1], "A", tier=CPU, block_size=4, lists_extra_keys=False))
    assert block_size_of(state) is None
    change = state.apply([stored([2], "A")], 0.0)
    assert (change.reload, change.touched[GPU], block_size_of(state)) == (False, {key("A"): True}, 2)


def test_a_partial_block_that_came_first_gives_way_to_a_whole_one() -> None:
    state = after(stored([1], "A"))
    assert (state.held(GPU), block_size_of(state)) == (keys("A"), 2)
    change = state.apply([stored([2], "B", block_size=8)], 0.0)
    assert (change.reload, change.touched[GPU]) == (True, {key("B", block_size=8): True})
    assert (state.held(GPU), block_size_of(state), tally(state)) == ({key("B", block_size=8)}, 8, {"partial_block": 1})
    assert not state.apply([stored([3], "C", parent=2, block_size=8)], 0.0).reload


def test_what_came_before_another_block_size_in_its_batch_does_not_count() -> None:
    change = new_state().apply([stored([1], "A"), offloaded([1]), stored([2], "B", block_size=8)], 0.0)
    assert (change.touched[GPU], change.touched[CPU]) == ({key("B", block_size=8): True}, {})


def test_blocks_in_a_row_prove_their_size_against_what_came_before() -> None:
    state = after(stored([1, 2], "AB"), offloaded([1]))
    change = state.apply([stored([3, 4], "CD", block_size=4)], 0.0)
    assert (change.reload, state.held(GPU), state.held(CPU)) == (True, {key("C", block_size=4), key("CD", block_size=4)}, set())


# Groups

full = partial(stored, group=1, kind="full_attention")
windowed = partial(stored, group=0, kind="sliding_window", window=4)


def held_by_group(state: StreamState, tier: Tier = GPU) -> dict[int, set[int]]:
    return {group.number: state.held(tier, slot) for group in state.groups if (slot := state.slot_of(group.number)) is not None}


def test_each_group_holds_blocks_of_its_own() -> None:
    state = after(windowed([1, 2], "AB"), full([1, 2, 3], "ABC"))
    assert held_by_group(state) == {0: keys("A", "AB"), 1: keys("A", "AB", "ABC")}
    assert [state.count(GPU, slot) for slot in range(2)] == [2, 3]
    assert state.count(GPU) == 3
    change = state.apply([removed([1], group=0)], 0.0)
    assert held_by_group(state) == {0: keys("AB"), 1: keys("A", "AB", "ABC")}
    assert (change.touched[GPU], change.touched_in) == ({key("A"): False}, {})
    change = state.apply([removed([3], group=1)], 0.0)
    assert (change.touched[GPU], change.touched_in[1][GPU]) == ({}, {key("ABC"): False})


def test_the_order_of_groups_does_not_matter() -> None:
    events = [windowed([1, 2], "AB"), full([1, 2], "AB"), stored([1, 2], "AB", group=2, kind="mamba"), removed([1], group=0), removed([2], group=2)]
    expected = {0: keys("AB"), 1: keys("A", "AB"), 2: keys("A")}
    assert held_by_group(after(*events)) == expected
    assert held_by_group(after(*(events[place] for place in (2, 1, 0, 4, 3)))) == expected


def test_copies_are_counted_by_group() -> None:
    state = after(full([1], "A"), windowed([1], "A"), windowed([1], "A"), removed([1], group=0), removed([1], group=1))
    assert held_by_group(state) == {0: keys("A"), 1: set()}
    assert held_by_group(after(removed([1], group=0), state=state)) == {0: set(), 1: set()}


def test_a_group_is_held_in_each_tier() -> None:
    state = after(full([1, 2], "AB"), windowed([1, 2], "AB"), offloaded([2], group=0), offloaded([1], DISK, group=1))
    assert (held_by_group(state, CPU), held_by_group(state, DISK)) == ({0: keys("AB"), 1: set()}, {0: set(), 1: keys("A")})
    after(removed([2], group=0), removed([2], group=1), state=state)
    assert (held_by_group(state), held_by_group(state, CPU)[0]) == ({0: keys("A"), 1: keys("A")}, keys("AB"))
    after(removed([2], tier=CPU, group=0), state=state)
    assert held_by_group(state, CPU) == {0: set(), 1: set()}


def test_a_clear_empties_every_group_on_the_gpu() -> None:
    state = after(full([1], "A"), windowed([1], "A"), offloaded([1], group=0))
    change = state.apply([Cleared(), windowed([1], "A")], 0.0)
    assert (held_by_group(state), held_by_group(state, CPU)) == ({0: keys("A"), 1: set()}, {0: keys("A"), 1: set()})
    assert (change.cleared, change.touched[GPU], change.touched_in[1][GPU]) == (True, {}, {key("A"): True})


def test_a_second_clear_empties_the_lower_tiers_of_every_group() -> None:
    state = after(full([1], "A"), windowed([1], "A"), offloaded([1], group=0), offloaded([1], group=1))
    state.apply([Cleared(), windowed([1], "A"), Cleared()], 0.0)
    assert (held_by_group(state), held_by_group(state, CPU)) == ({0: keys("A"), 1: set()}, {0: set(), 1: set()})


def test_a_sparse_event_names_blocks_that_a_full_group_announced() -> None:
    state = after(full([1, 2, 3], "ABC"))
    change = state.apply([sparse([2, 3], 3, group=0)], 0.0)
    assert (held_by_group(state), change.touched_in[1][GPU]) == (
        {0: keys("AB", "ABC"), 1: keys("A", "AB", "ABC")},
        {key("AB"): True, key("ABC"): True},
    )
    assert tally(state) == {}


def test_blocks_that_a_sparse_event_names_wait_for_the_full_group() -> None:
    state = after(sparse([2, 3], 3, group=0))
    assert (held_by_group(state), state.parked) == ({0: set()}, 2)
    after(full([1, 2], "AB"), state=state)
    assert (held_by_group(state), state.parked) == ({0: keys("AB"), 1: keys("A", "AB")}, 1)
    after(removed([3], group=0), full([3], "C", parent=2), state=state)
    assert (held_by_group(state), state.parked) == ({0: keys("AB"), 1: keys("A", "AB", "ABC")}, 0)


def test_a_sparse_event_without_hashes_teaches_the_group_alone() -> None:
    state = after(full([1], "A"))
    assert not state.apply([sparse([], 4, group=0, window=64)], 0.0)
    assert [(group.number, group.is_sparse, group.window) for group in state.groups] == [(1, False, None), (0, True, 64)]


def test_a_recurrent_state_that_no_other_group_names_ends_with_its_events_tokens() -> None:
    state = after(full([1], "A"))
    state.apply([sparse([9], 2, parent=1, group=2, kind="mamba", state_tokens=tokens_of("BC"))], 0.0)
    assert held_by_group(state) == {1: keys("A"), 2: set()}, "whose it is nobody told"
    state.apply([full([2, 3], "BC", 1)], 0.0)
    assert held_by_group(state) == {1: keys("A", "AB", "ABC"), 2: keys("ABC")}


def test_groups_of_several_block_sizes_share_the_keys_of_the_smallest() -> None:
    wide = partial(stored, block_size=4, group=1, kind="full_attention")
    state = new_state()
    state.apply([stored([1, 2, 3, 4], "AABB", group=0, kind="full_attention"), wide([2, 4], "AB")], 0.0)
    assert (block_size_of(state), None if state.shape is None else state.shape.alignment) == (2, 4)
    assert held_by_group(state) == {0: keys("A", "AA", "AAB", "AABB"), 1: keys("A", "AA", "AAB", "AABB")}
    after(removed([2], group=1), state=state)
    assert held_by_group(state) == {0: keys("A", "AA", "AAB", "AABB"), 1: keys("AAB", "AABB")}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_placeholder_covers_all_keys_of_a_larger_block_whichever_group_came_first(order: tuple[int, int]) -> None:
    wide = partial(stored, block_size=4, group=1, kind="sliding_window", window=9)
    events = stored([1, 2, 3, 4], "AABB", group=0, kind="full_attention"), wide([2, 4], "AB")
    state = after(stored([8, 9], "XY", group=0, kind="full_attention"), wide([9], "Z"), *(events[place] for place in order))
    after(offloaded([2, 4], group=1), state=state)
    assert held_by_group(state, CPU)[1] == keys("A", "AA", "AAB", "AABB")


def test_a_copy_of_a_larger_block_covers_what_its_tokens_say_though_no_parent_link_leads_through_its_parts() -> None:
    wide = partial(stored, block_size=4, group=1, kind="sliding_window", window=9)
    state = after(stored([8, 9], "XY", group=0, kind="full_attention"), wide([2], "A"))
    after(stored([1, 2], "AA", group=0, kind="full_attention", tier=CPU), wide([2], "A", tier=CPU), state=state)
    assert held_by_group(state, CPU) == {0: keys("A", "AA"), 1: keys("A", "AA")}


def test_a_copy_that_waited_for_a_larger_block_covers_all_of_it() -> None:
    """The link to its parent leads past its first half: the parent is a larger block too."""
    wide = partial(stored, block_size=4, group=1, kind="sliding_window", window=9)
    state = after(stored([8, 9], "XY", group=0, kind="full_attention"), wide([9], "Z"), wide([4], "B", 2, tier=CPU))
    after(stored([1, 2, 3], "AAB", group=0, kind="full_attention"), wide([2, 4], "AB"), state=state)
    assert held_by_group(state, CPU)[1] == keys("AAB", "AABB")


def test_a_copy_of_a_larger_block_covers_nothing_of_another_content() -> None:
    wide = partial(stored, block_size=4, group=1, kind="sliding_window", window=9)
    state = after(stored([8, 9], "XY", group=0, kind="full_attention"), wide([2], "A"), wide([2], "B", tier=CPU))
    assert held_by_group(state, CPU)[1] == keys("A", "AA")


def test_a_state_of_a_larger_block_size_ends_with_its_block() -> None:
    state = new_state()
    state.apply([full([1, 2, 3, 4], "AABB"), stored([2, 4], "AB", block_size=4, group=0, kind="mamba")], 0.0)
    assert held_by_group(state) == {0: keys("AA", "AABB"), 1: keys("A", "AA", "AAB", "AABB")}


def test_an_event_without_a_group_is_of_the_full_one() -> None:
    state = after(windowed([1], "A"), full([1], "A"), removed([1]))
    assert held_by_group(state) == {0: keys("A"), 1: set()}
    assert held_by_group(after(offloaded([1]), state=state), CPU) == {0: set(), 1: keys("A")}


def test_a_removal_of_a_group_that_was_never_announced_changes_nothing() -> None:
    state = after(full([1], "A"))
    assert not state.apply([removed([1], group=7)], 0.0)
    assert held_by_group(state) == {1: keys("A")}


def test_groups_survive_the_replacement_of_a_block_size() -> None:
    state = after(full([1], "A"), windowed([1], "A"))
    state.apply([full([2, 3], "BC", block_size=4), windowed([2, 3], "BC", block_size=4)], 0.0)
    expected = {key("B", block_size=4), key("BC", block_size=4)}
    assert held_by_group(state) == {0: expected, 1: expected}
    assert {group.number: group.kind.value for group in state.groups} == {0: "window", 1: "full"}


def test_blocks_of_one_group_that_are_lost_to_another_ones_block_size_are_tallied() -> None:
    state = after(full([1, 2], "AB", block_size=4), windowed([1], "A"))
    assert tally(state) == {"block_size_changed": 1}
    assert (block_size_of(state), held_by_group(state)) == (2, {0: keys("A"), 1: set()})


def test_groups_survive_a_loss_and_go_with_a_restart() -> None:
    state = after(full([1], "A"), windowed([1], "A"))
    shape = state.shape
    result_of(state.drop_held())
    assert (state.shape, held_by_group(state)) == (shape, {0: set(), 1: set()})
    after(sparse([1], 1, group=0), state=state)
    assert held_by_group(state) == {0: keys("A"), 1: set()}
    state.forget()
    assert (state.shape, state.groups) == (None, [])


def test_many_blocks_are_dropped_in_steps_and_the_newest_are_remembered() -> None:
    state = new_state(removed_max=2_000)
    after(*(stored(range(first, first + 10)) for first in range(0, 3_000, 10)), Removed([0, 1, 2], Tier.GPU, None), state=state)
    steps = sum(1 for _ in state.drop_held())
    assert steps >= 3_000 // 1_024
    assert (state.count(Tier.GPU), len(state.table.held), state.is_amid_batch) == (0, 0, False)
    assert list(state.table.removed) == list(range(1_000, 3_000))
    after(stored([5_000], parent=2_999), stored([5_001], parent=999), state=state)
    assert (state.count(Tier.GPU), state.parked) == (1, 1)


def test_a_state_is_forgotten_though_its_blocks_are_dropped_in_part() -> None:
    state = after(*(stored([number]) for number in range(3_000)))
    steps = state.drop_held()
    next(steps)
    state.forget()
    assert (len(state.table.removed), len(state.table.held), state.is_amid_batch) == (0, 0, False)
    assert after(stored([1], "A"), state=state).held(GPU) == keys("A")


# Two hashes, one key


def test_where_extra_keys_are_announced_a_key_is_held_until_both_hashes_are_gone() -> None:
    state = after(stored([1], "A"), stored([2], "A"))
    assert not state.apply([removed([1])], 0.0)
    assert state.apply([removed([2])], 0.0).touched[GPU] == {key("A"): False}
    assert tally(state) == {}


def test_where_no_extra_keys_are_announced_a_key_with_two_hashes_is_not_indexed() -> None:
    state = after(stored([1], "A", announces_extra_keys=False))
    assert state.held(GPU) == keys("A")
    change = state.apply([stored([2], "A", announces_extra_keys=False)], 0.0)
    assert change.touched[GPU] == {key("A"): False}
    assert (state.held(GPU), state.count(GPU), state.ambiguous, tally(state)) == (set(), 0, 1, {"ambiguous_key": 1})


def test_a_key_is_indexed_again_once_one_hash_alone_has_it() -> None:
    """So it is for who learns only now what is held."""
    state = after(stored([1], "A", announces_extra_keys=False), stored([2], "A", announces_extra_keys=False))
    assert (state.held(GPU), state.ambiguous) == (set(), 1)
    change = state.apply([removed([1])], 0.0)
    assert (change.touched[GPU], state.held(GPU), state.ambiguous) == ({key("A"): True}, keys("A"), 0)
    assert state.apply([stored([3], "A", announces_extra_keys=False)], 0.0).touched[GPU] == {key("A"): False}
    assert state.apply([removed([2, 3])], 0.0).touched[GPU] == {key("A"): False}


def test_a_clear_ends_the_claims_of_what_it_emptied() -> None:
    state = after(
        stored([1], "A", announces_extra_keys=False),
        stored([2], "A", announces_extra_keys=False),
        Cleared(),
        stored([2], "A", announces_extra_keys=False),
    )
    assert (state.held(GPU), state.ambiguous) == (keys("A"), 0)


def test_a_key_with_two_hashes_is_indexed_in_no_tier() -> None:
    state = after(stored([1], "A", announces_extra_keys=False), offloaded([1], announces_extra_keys=False))
    assert (state.held(GPU), state.held(CPU)) == (keys("A"), keys("A"))
    change = state.apply([stored([2], "A", announces_extra_keys=False)], 0.0)
    assert (change.touched[GPU], change.touched[CPU]) == ({key("A"): False}, {key("A"): False})
    assert (state.held(CPU), state.held(GPU)) == (set(), set())


def test_a_key_with_two_hashes_is_indexed_in_no_group() -> None:
    state = after(
        full([1], "A", announces_extra_keys=False),
        windowed([1], "A", announces_extra_keys=False),
        full([2], "A", announces_extra_keys=False),
    )
    assert (held_by_group(state), state.ambiguous) == ({0: set(), 1: set()}, 1)


def test_a_key_that_a_lower_tier_still_covers_is_told_again_when_its_claimants_are_gone() -> None:
    """Whatever is then said of it, the change and the state have to say the same."""
    replica, state = Replica(), new_state()
    update = offloaded([2], block_size=4, announces_extra_keys=False)
    events = [stored([1, 2], "AB", announces_extra_keys=False), update, stored([3], "A", announces_extra_keys=False), removed([1]), removed([3])]
    for event in events:
        replica.apply(state.apply([event], 0.0))
    assert replica.held[0, CPU] == state.held(CPU)


def test_the_children_of_a_key_with_two_hashes_are_indexed() -> None:
    state = after(
        stored([1], "A", announces_extra_keys=False),
        stored([2], "A", announces_extra_keys=False),
        stored([3], "B", parent=2, announces_extra_keys=False),
    )
    assert state.held(GPU) == keys("AB")


def test_a_held_hash_with_other_content_is_refused() -> None:
    state = after(stored([1], "A"), stored([1, 2], "BC"))
    assert (state.held(GPU), tally(state)) == (keys("A", "BC"), {"key_conflict": 1})
    assert after(removed([1]), state=state).held(GPU) == keys("BC")


def test_a_removed_hash_may_come_again_with_other_content() -> None:
    state = after(stored([1], "A"), removed([1]), stored([1], "B"), stored([2], "C", parent=1))
    assert (state.held(GPU), tally(state)) == (keys("B", "BC"), {})


# Orphans


def test_a_block_with_an_unknown_parent_waits_for_it() -> None:
    state = after(stored([2, 3], "BC", parent=1))
    assert (state.held(GPU), state.parked, tally(state)) == (set(), 2, {"orphan": 2})
    change = state.apply([stored([1], "A")], 0.0)
    assert change.touched[GPU] == {key("A"): True, key("AB"): True, key("ABC"): True}
    assert (state.held(GPU), state.parked, tally(state)) == (keys("A", "AB", "ABC"), 0, {"orphan": 2, "orphan_adopted": 2})


def test_chains_of_orphans_are_adopted_in_whatever_order_they_came() -> None:
    state = after(stored([4], "D", parent=3), stored([3], "C", parent=2), stored([9], "X", parent=2), stored([2], "B", parent=1))
    assert state.parked == 4
    assert after(stored([1], "A"), state=state).held(GPU) == keys("A", "AB", "ABC", "ABCD", "ABX")


def test_an_orphan_keeps_its_extra_keys() -> None:
    state = after(stored([2, 3], "BC", parent=1, extra_keys={1: b"image"}), stored([1], "A"))
    assert state.held(GPU) == {key("A"), key("AB"), xxh3_64_intdigest(tokens_of("C") + b"image", key("AB"))}


def test_an_orphan_that_was_removed_meanwhile_is_not_held() -> None:
    state = after(stored([2, 3], "BC", parent=1), removed([2]), stored([1], "A"))
    assert state.held(GPU) == keys("A", "ABC")
    assert after(offloaded([2]), state=state).held(CPU) == keys("AB")


def test_copies_of_an_orphan_are_counted() -> None:
    state = after(stored([2], "B", parent=1), stored([2], "B", parent=1), stored([1], "A"), removed([2]))
    assert state.held(GPU) == keys("A", "AB")
    assert after(removed([2]), state=state).held(GPU) == keys("A")


def test_a_clear_takes_the_gpu_copies_of_orphans() -> None:
    state = after(stored([2], "B", parent=1), offloaded([2]), Cleared(), stored([1], "A"))
    assert (state.held(GPU), state.held(CPU)) == (keys("A"), keys("AB"))


def test_an_orphan_may_be_offloaded() -> None:
    state = after(stored([2], "B", parent=1), offloaded([2], DISK), removed([2]), stored([1], "A"))
    assert (state.held(GPU), state.held(DISK), tally(state)) == (keys("A"), keys("AB"), {"orphan": 1, "orphan_adopted": 1})


def test_an_orphan_that_gets_its_own_parentless_announcement_is_held_with_all_copies() -> None:
    state = after(stored([2, 3], "BC", parent=1), stored([2], "B"), removed([2]))
    assert (state.held(GPU), state.parked) == (keys("B", "BC"), 0)


def test_an_orphan_may_be_its_own_parent() -> None:
    state = after(stored([1], "A", parent=1), stored([2], "B", parent=3), stored([3], "C", parent=2))
    assert state.parked == 3
    after(stored([1], "A"), stored([2], "B"), state=state)
    assert (state.held(GPU), state.parked) == (keys("A", "B", "BC"), 0)


def test_the_oldest_orphans_go_beyond_so_many() -> None:
    state = after(stored([2, 3, 4], "BCD", parent=1), state=new_state(parked_max=2))
    assert (state.parked, tally(state)) == (2, {"orphan": 3, "orphan_dropped": 1})
    assert after(stored([1], "A"), state=state).held(GPU) == keys("A")


def test_orphans_go_after_so_long() -> None:
    state = new_state(parked_max_s=10.0)
    state.apply([stored([2], "B", parent=1)], 0.0)
    state.apply([stored([3], "C", parent=1)], 5.0)
    state.apply([], 10.0)
    assert state.parked == 2
    state.apply([], 10.5)
    assert (state.parked, tally(state)) == (1, {"orphan": 2, "orphan_dropped": 1})
    state.apply([stored([1], "A")], 11.0)
    assert state.held(GPU) == keys("A", "AC")


def test_two_hashes_for_one_orphaned_key_are_not_indexed_without_extra_keys() -> None:
    state = after(
        stored([2], "B", parent=1, announces_extra_keys=False),
        stored([3], "B", parent=1, announces_extra_keys=False),
        stored([1], "A", announces_extra_keys=False),
    )
    assert (state.held(GPU), state.ambiguous) == (keys("A"), 1)


# Losing and forgetting


def test_a_restarted_engine_starts_from_nothing() -> None:
    state = after(stored([1, 2], "AB"), offloaded([1]), stored([9], "X", parent=8), removed([2]))
    state.forget()
    assert [state.held(tier) for tier in Tier] == [set()] * 5
    assert (block_size_of(state), state.parked) == (None, 0)
    after(offloaded([1]), stored([3], "C", parent=2), state=state)
    assert (state.held(CPU), state.parked) == (set(), 2)


def test_a_stream_that_lost_its_content_remembers_its_hashes() -> None:
    state = after(stored([1, 2], "AB"), offloaded([1]), stored([9], "X", parent=8))
    result_of(state.drop_held())
    assert [state.held(tier) for tier in Tier] == [set()] * 5
    assert (block_size_of(state), state.parked) == (2, 0)
    change = state.apply([offloaded([1]), stored([3], "C", parent=2)], 0.0)
    assert (change.touched[CPU], change.touched[GPU]) == ({key("A"): True}, {key("ABC"): True})


def test_copies_do_not_survive_a_loss() -> None:
    state = after(stored([1], "A"), stored([1], "A"), offloaded([1]), offloaded([1]))
    result_of(state.drop_held())
    after(stored([1], "A"), offloaded([1]), removed([1]), removed([1], tier=CPU), state=state)
    assert (state.held(GPU), state.held(CPU)) == (set(), set())


def test_a_stream_that_lost_its_content_still_knows_that_extra_keys_are_announced() -> None:
    state = after(stored([1], "A"), removed([1]))
    result_of(state.drop_held())
    after(stored([1], "A", announces_extra_keys=False), stored([2], "A", announces_extra_keys=False), state=state)
    assert (state.held(GPU), state.ambiguous) == (keys("A"), 0)


# Whatever comes, in whatever order


class Replica:
    """Applies changes by the words of `Change` alone."""

    def __init__(self) -> None:
        self.held: dict[tuple[int, Tier], set[int]] = {}

    def apply(self, change: Change) -> None:
        if change.reload:
            self.held.clear()
        if change.cleared:
            self.held = {(slot, tier): held for (slot, tier), held in self.held.items() if tier is not GPU}
        for slot, tiers in ((0, change.touched), *change.touched_in.items()):
            for tier, touched in zip(Tier, tiers, strict=True):
                held = self.held.setdefault((slot, tier), set())
                for block_key, is_held in touched.items():
                    (held.add if is_held else held.discard)(block_key)

    def of(self, state: StreamState) -> dict[tuple[int, Tier], set[int]]:
        """What it has in the places of a state, which has no others."""
        slots = range(1 if state.shape is None else len(state.shape.groups))
        assert all(slot in slots for (slot, _), held in self.held.items() if held)
        return {(slot, tier): self.held.get((slot, tier), set()) for slot in slots for tier in Tier}


def held_in(state: StreamState) -> dict[tuple[int, Tier], set[int]]:
    slots = range(1 if state.shape is None else len(state.shape.groups))
    return {(slot, tier): state.held(tier, slot) for slot in slots for tier in Tier}


ALL_HASHES = range(1, 7)
HASHES = st.sampled_from(ALL_HASHES)
TIERS = st.sampled_from(list(Tier))
GROUPS = st.sampled_from([None, None, None, 0, 1, 2])
KINDS = st.sampled_from([None, None, None, "full_attention", "mamba", "sliding_window", "chunked_local_attention"])


@st.composite
def any_stored(draw: st.DrawFn, announces: bool) -> Stored:
    letters = draw(st.text("AB", min_size=1, max_size=3))
    hashes = draw(st.lists(HASHES, min_size=len(letters), max_size=len(letters)))
    return stored(
        hashes,
        letters,
        draw(st.none() | HASHES),
        draw(TIERS),
        block_size=draw(st.sampled_from([2, 2, 2, 2, 4])),
        announces_extra_keys=announces,
        group=draw(GROUPS),
        kind=draw(KINDS),
        window=draw(st.sampled_from([None, 4])),
        lists_extra_keys=draw(st.booleans()),
    )


@st.composite
def any_batches(draw: st.DrawFn) -> list[list[Event]]:
    """Batches of an engine that announces extra keys, or does not."""
    announces = draw(st.booleans())
    some_hashes = st.lists(HASHES, min_size=1, max_size=2)
    event = st.one_of(
        any_stored(announces),
        st.builds(offloaded, some_hashes, TIERS, st.sampled_from([0, 2, 4]), announces_extra_keys=st.just(announces), group=GROUPS),
        st.builds(
            sparse,
            some_hashes,
            st.just(3),
            st.none() | HASHES,
            group=st.integers(0, 2),
            kind=KINDS,
            state_tokens=st.sampled_from([b"", tokens_of("ABA")]),
        ),
        st.builds(Removed, some_hashes, TIERS, GROUPS),
        st.just(Cleared()),
    )
    return draw(st.lists(st.lists(event, max_size=4), max_size=8))


@given(any_batches(), st.sampled_from(["copies", "set"]))
def test_changes_alone_tell_what_is_held(batches: list[list[Event]], counting: Counting) -> None:
    state = StreamState("m", "", counting, StateLimits(removed_max=3, parked_max=3, lower_tier_blocks_max=3))
    replica, again = Replica(), Replica()
    for batch in batches:
        change = state.apply(batch, 0.0)
        replica.apply(change)
        again.apply(change)
        again.apply(change)
        held = held_in(state)
        assert replica.of(state) == held
        assert again.of(state) == held
        assert {place: state.count(place[1], place[0]) for place in held} == {place: len(found) for place, found in held.items()}
        assert all(state.count(tier) == max(len(found) for (_, of), found in held.items() if of is tier) for tier in Tier)


class RecordCopy:
    """Records and hash mapping of one stream, kept up to date by its changes. What a change invalidates as a whole is read anew."""

    def __init__(self, state: StreamState) -> None:
        self._state = state
        self.places: dict[int, dict[int, HashRecord | None]] = {}
        self.mapping: dict[int, int | None] = {}

    def apply(self, change: Change) -> None:
        if change.reload or change.cleared:
            self.mapping = {engine_hash: self._state.table.mapped_key(engine_hash) for engine_hash in ALL_HASHES}
        if change.reload:
            self.places = {place: dict(records) for place, records in self.read().items()}
            return
        if change.cleared:
            self.places = {place: records for place, records in self.places.items() if place in (PARKED, REMOVED) or not is_gpu(place)}
        for place, records in (change.records or {}).items():
            self.places.setdefault(place, {}).update(records)
        if change.hash_mapping is not None:
            self.mapping |= change.hash_mapping.keys | dict.fromkeys(change.hash_mapping.removed_hashes)
        elif change.records is not None:
            blocks = cast(dict[int, Block | None], change.records[LEAD_GPU])
            self.mapping |= {engine_hash: block.key if block is not None else None for engine_hash, block in blocks.items()}

    def read(self) -> dict[int, dict[int, HashRecord]]:
        """All that the stream holds, by place."""
        snapshot = Snapshot(self._state)
        assert all(snapshot.count(place) == len(snapshot.hashes(place)) for place in snapshot.places())
        assert snapshot.count(LEAD_GPU) == sum(block.copies > 0 for _, block in self._state.table.held.items())
        return _without_none({place: snapshot.records(place, snapshot.hashes(place)) for place in snapshot.places()})

    @property
    def held(self) -> dict[int, dict[int, HashRecord]]:
        """The records by place without those that say that nothing is held."""
        return _without_none(self.places)


def _as_record(record: HashRecord) -> HashRecord:
    """A block is the record that says no more; a stream that comes to hold salted or large blocks reads it as that."""
    return BlockRecord(record.copies, record.parent, (record.key,)) if isinstance(record, Block) else record


def _without_none(places: Mapping[int, Mapping[int, HashRecord | None]]) -> dict[int, dict[int, HashRecord]]:
    held = {
        place: {engine_hash: _as_record(record) for engine_hash, record in records.items() if record is not None} for place, records in places.items()
    }
    return {place: records for place, records in held.items() if records}


@given(any_batches(), st.sampled_from(["copies", "set"]))
def test_records_alone_tell_what_each_part_holds(batches: list[list[Event]], counting: Counting) -> None:
    state = StreamState("m", "", counting, StateLimits(removed_max=3, parked_max=3), with_records=True, with_hash_mapping=True)
    copy = RecordCopy(state)
    for batch in batches:
        copy.apply(state.apply(batch, 0.0))
        assert copy.held == copy.read()
        assert [copy.mapping.get(engine_hash) for engine_hash in ALL_HASHES] == [state.table.mapped_key(engine_hash) for engine_hash in ALL_HASHES]


# LoRA adapters


def test_the_adapters_that_were_announced_are_remembered_until_the_engine_restarts() -> None:
    state = after(stored([1], "a"), stored([2], "a", lora_name="ad"), stored([3], "c", lora_name="other"), stored([4], "e", lora_name="ad"))
    assert list(state.adapters) == ["other", "ad"]
    after(Cleared(), state=state)
    result_of(state.drop_held())
    assert list(state.adapters) == ["other", "ad"]
    state.forget()
    assert list(state.adapters) == []


def test_so_many_adapters_are_remembered_and_no_longer_names() -> None:
    events = [stored([number], "a", lora_name=f"ad{number}") for number in range(ADAPTERS_MAX + 2)]
    state = after(*events, stored([10_000], "a", lora_name="x" * (ADAPTER_LENGTH_MAX + 1)))
    assert list(state.adapters) == [f"ad{number}" for number in range(2, ADAPTERS_MAX + 2)]


def test_an_adapter_that_is_announced_again_is_remembered_longer() -> None:
    names = [f"ad{number}" for number in range(ADAPTERS_MAX)]
    state = after(*(stored([number], "a", lora_name=name) for number, name in enumerate([*names, "ad0", "new"])))
    assert list(state.adapters) == [*names[2:], "ad0", "new"]


def test_a_new_owner_takes_over_the_adapters_and_an_older_ones_word_has_none() -> None:
    state = after(stored([1], "a", lora_name="ad"))
    other = new_state()
    other.restore(state.traits(), [])
    assert list(other.adapters) == ["ad"]
    written = msgspec.msgpack.encode(after(stored([1], "a")).traits())
    assert b"adapters" not in written
    other.restore(msgspec.msgpack.decode(written, type=Traits), [])
    assert list(other.adapters) == []

"""What a stream holds after what its engine says.

A block's content is a letter, its tokens are that letter twice; `key("AB")` is the key of a block B behind a block A.
"""

from functools import partial
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from indexer.core.block_table import Block, HashRecord
from indexer.core.change import Change
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.parts import REMOVED
from indexer.core.snapshot import Snapshot
from indexer.core.stream_state import ADAPTER_LENGTH_MAX, ADAPTERS_MAX, Counting, StreamState
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


def tally(state: StreamState) -> dict[str, int]:
    return {reason: count for reason, count in state.tally.items() if count}


# Storing and removing


def test_a_stored_chain_is_held_under_its_keys() -> None:
    state = new_state()
    change = state.apply([stored([1, 2, 3], "ABC")], 0.0)
    assert state.held(GPU) == keys("A", "AB", "ABC")
    assert change.touched[GPU] == {key("A"): True, key("AB"): True, key("ABC"): True}
    assert not any(change.touched[1:])
    assert (change.cleared, change.reload, state.block_size, state.count(GPU)) == (False, False, 2, 3)


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
    assert state.block_size is None


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


def test_copies_in_lower_tiers_are_counted_too() -> None:
    state = after(stored([1], "A", tier=CPU), stored([1], "A", tier=CPU), removed([1], tier=CPU))
    assert state.held(CPU) == keys("A")
    assert after(removed([1], tier=CPU), state=state).held(CPU) == set()


def test_copies_are_counted_up_to_a_cap() -> None:
    state = after(*[stored([1], "A")] * 5, *[offloaded([1])] * 5, state=new_state(copies_max=2))
    after(removed([1]), removed([1], tier=CPU), state=state)
    assert (state.held(GPU), state.held(CPU)) == (keys("A"), keys("A"))
    after(removed([1]), removed([1], tier=CPU), state=state)
    assert (state.held(GPU), state.held(CPU)) == (set(), set())


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


def test_an_offload_of_a_hash_never_announced_is_counted() -> None:
    state = after(stored([1], "A"), offloaded([1, 7]))
    assert (state.held(CPU), tally(state)) == (keys("A"), {"unknown_hash": 1})


def test_so_many_removed_blocks_are_remembered() -> None:
    state = after(stored([1, 2, 3], "ABC"), removed([1, 2, 3]), state=new_state(removed_max=2))
    after(offloaded([1, 2, 3]), state=state)
    assert (state.held(CPU), tally(state)) == (keys("AB", "ABC"), {"unknown_hash": 1})


def test_a_block_comes_back_from_a_lower_tier_by_a_tier_update() -> None:
    state = after(stored([1], "A"), offloaded([1]), removed([1]))
    assert state.apply([offloaded([1], GPU)], 0.0).touched[GPU] == {key("A"): True}
    assert after(removed([1]), state=state).held(GPU) == set()


def test_a_lower_tier_may_announce_tokens_itself() -> None:
    state = after(stored([1, 2], "AB", tier=DISK), stored([3], "C", parent=2))
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


def test_another_block_size_is_refused() -> None:
    state = after(
        stored([1], "A"), stored([2], "B", block_size=3), stored([3], "C", tier=CPU, block_size=3), stored([4], "D", tier=CPU, block_size=1)
    )
    assert (state.held(GPU), state.held(CPU), state.block_size) == (keys("A"), set(), 2)
    assert tally(state) == {"block_size": 3}


def test_the_gpus_block_size_replaces_one_that_a_lower_tier_began_with() -> None:
    state = after(stored([1], "A", tier=CPU, block_size=4))
    assert state.held(CPU) == {key("A", block_size=4)}
    change = state.apply([stored([2], "A")], 0.0)
    assert (change.reload, change.touched[GPU], change.touched[CPU]) == (True, {key("A"): True}, {})
    assert (state.held(GPU), state.held(CPU), state.block_size) == (keys("A"), set(), 2)
    assert not state.apply([stored([3], "B")], 0.0).reload


def test_what_came_before_the_gpus_block_size_in_its_batch_does_not_count() -> None:
    change = new_state().apply([stored([1], "A", tier=CPU, block_size=4), Cleared(), stored([2], "A")], 0.0)
    assert (change.reload, change.cleared, change.touched[CPU]) == (True, False, {})


def test_a_block_size_that_the_gpu_has_confirmed_stays() -> None:
    state = after(stored([1], "A", tier=CPU), stored([2], "B"), stored([3], "C", block_size=4))
    assert (state.held(GPU), tally(state)) == (keys("B"), {"block_size": 1})


# Groups


def test_the_main_attention_alone_is_indexed() -> None:
    state = after(
        stored([1], "A", group=0, kind="mamba"),
        stored([2], "B", group=1, kind="sliding_window"),
        stored([3], "C", group=2, kind="full_attention"),
    )
    assert (state.held(GPU), tally(state)) == (keys("C"), {"other_attention": 2})


@pytest.mark.parametrize("kind", ["full_attention", "mla_attention", "sink_full_attention"])
def test_each_kind_of_main_attention_is_indexed(kind: str) -> None:
    assert after(stored([1], "A", group=3, kind=kind)).held(GPU) == keys("A")
    assert after(stored([1], "A", kind=kind)).held(GPU) == keys("A")


def test_of_two_groups_of_main_attention_the_first_is_indexed() -> None:
    state = after(stored([1], "A", group=2, kind="full_attention"), stored([2], "B", group=1, kind="full_attention"))
    assert (state.held(GPU), tally(state)) == (keys("A"), {"other_attention": 1})


def test_without_a_kind_group_0_is_the_main_attention() -> None:
    state = after(stored([2], "B", group=1), stored([1], "A", group=0))
    assert (state.held(GPU), tally(state)) == (keys("A"), {"other_attention": 1})


def test_a_groups_kind_is_remembered() -> None:
    state = after(stored([1], "A", group=1, kind="full_attention"), stored([2], "B", parent=1, group=1))
    assert state.held(GPU) == keys("A", "AB")
    state = after(stored([1], "A", group=0, kind="mamba"), stored([2], "B", group=0))
    assert (state.held(GPU), tally(state)) == (set(), {"other_attention": 2})


def test_the_same_hash_in_another_group_is_not_a_copy() -> None:
    state = after(stored([1], "A", group=0, kind="full_attention"), stored([1], "A", group=1, kind="sliding_window"), removed([1], group=0))
    assert state.held(GPU) == set()


def test_a_removal_from_another_group_is_ignored() -> None:
    state = after(stored([1], "A", group=1, kind="full_attention"), removed([1], group=0))
    assert (state.held(GPU), tally(state)) == (keys("A"), {"other_attention": 1})
    assert after(removed([1], group=1), state=state).held(GPU) == set()


def test_a_removal_without_a_group_is_of_the_indexed_one() -> None:
    assert after(stored([1], "A", group=1, kind="full_attention"), removed([1])).held(GPU) == set()


def test_the_indexed_group_survives_the_replacement_of_a_block_size() -> None:
    state = after(
        stored([1], "A", tier=CPU, block_size=4, group=1, kind="full_attention"),
        stored([2], "A", group=1, kind="full_attention"),
        removed([2], group=0),
    )
    assert (state.held(GPU), tally(state)) == (keys("A"), {"other_attention": 1})


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


def test_a_key_stays_out_of_the_index_until_all_its_claimants_are_gone() -> None:
    state = after(stored([1], "A", announces_extra_keys=False), stored([2], "A", announces_extra_keys=False), removed([1]))
    assert (state.held(GPU), state.ambiguous) == (set(), 1)
    assert not any(state.apply([stored([2], "A", announces_extra_keys=False)], 0.0).touched[GPU].values())
    after(removed([2]), removed([2]), state=state)
    assert state.ambiguous == 0
    assert state.apply([stored([3], "A", announces_extra_keys=False)], 0.0).touched[GPU] == {key("A"): True}


def test_a_clear_ends_the_claims_of_what_it_emptied() -> None:
    state = after(
        stored([1], "A", announces_extra_keys=False),
        stored([2], "A", announces_extra_keys=False),
        Cleared(),
        stored([2], "A", announces_extra_keys=False),
    )
    assert (state.held(GPU), state.ambiguous) == (keys("A"), 0)


def test_a_key_with_two_hashes_is_indexed_in_no_tier() -> None:
    state = after(stored([1], "A", tier=CPU, announces_extra_keys=False))
    change = state.apply([stored([2], "A", announces_extra_keys=False)], 0.0)
    assert change.touched[CPU] == {key("A"): False}
    assert (change.touched[GPU].get(key("A"), False), state.held(CPU), state.held(GPU)) == (False, set(), set())


def test_a_key_that_a_lower_tier_still_covers_is_told_again_when_its_claimants_are_gone() -> None:
    """Whatever is then said of it, the change and the state have to say the same."""
    replica, state = Replica(), new_state()
    update = offloaded([2], block_size=4, announces_extra_keys=False)
    events = [stored([1, 2], "AB", announces_extra_keys=False), update, stored([3], "A", announces_extra_keys=False), removed([1]), removed([3])]
    for event in events:
        replica.apply(state.apply([event], 0.0))
    assert replica.tiers[CPU] == state.held(CPU)


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
    assert (state.block_size, state.parked) == (None, 0)
    after(offloaded([1]), stored([3], "C", parent=2), state=state)
    assert (state.held(CPU), state.parked) == (set(), 1)


def test_a_stream_that_lost_its_content_remembers_its_hashes() -> None:
    state = after(stored([1, 2], "AB"), offloaded([1]), stored([9], "X", parent=8))
    state.drop_held()
    assert [state.held(tier) for tier in Tier] == [set()] * 5
    assert (state.block_size, state.parked) == (2, 0)
    change = state.apply([offloaded([1]), stored([3], "C", parent=2)], 0.0)
    assert (change.touched[CPU], change.touched[GPU]) == ({key("A"): True}, {key("ABC"): True})


def test_copies_do_not_survive_a_loss() -> None:
    state = after(stored([1], "A"), stored([1], "A"), offloaded([1]), offloaded([1]))
    state.drop_held()
    after(stored([1], "A"), offloaded([1]), removed([1]), removed([1], tier=CPU), state=state)
    assert (state.held(GPU), state.held(CPU)) == (set(), set())


def test_a_stream_that_lost_its_content_still_knows_that_extra_keys_are_announced() -> None:
    state = after(stored([1], "A"), removed([1]))
    state.drop_held()
    after(stored([1], "A", announces_extra_keys=False), stored([2], "A", announces_extra_keys=False), state=state)
    assert (state.held(GPU), state.ambiguous) == (keys("A"), 0)


# Whatever comes, in whatever order


class Replica:
    """Applies changes by the words of `Change` alone."""

    def __init__(self) -> None:
        self.tiers: list[set[int]] = [set() for _ in Tier]

    def apply(self, change: Change) -> None:
        if change.reload:
            self.tiers = [set() for _ in Tier]
        if change.cleared:
            self.tiers[GPU] = set()
        for held, touched in zip(self.tiers, change.touched, strict=True):
            for block_key, is_held in touched.items():
                (held.add if is_held else held.discard)(block_key)


ALL_HASHES = range(1, 7)
HASHES = st.sampled_from(ALL_HASHES)
TIERS = st.sampled_from(list(Tier))


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
        group=draw(st.sampled_from([None, None, None, 0, 1])),
        kind=draw(st.sampled_from([None, None, None, "full_attention", "mamba"])),
    )


@st.composite
def any_batches(draw: st.DrawFn) -> list[list[Event]]:
    """Batches of an engine that announces extra keys, or does not."""
    announces = draw(st.booleans())
    event = st.one_of(
        any_stored(announces),
        st.builds(offloaded, st.lists(HASHES, min_size=1, max_size=2), TIERS, st.sampled_from([0, 2, 4]), announces_extra_keys=st.just(announces)),
        st.builds(Removed, st.lists(HASHES, min_size=1, max_size=2), TIERS, st.sampled_from([None, None, 0, 1])),
        st.just(Cleared()),
    )
    return draw(st.lists(st.lists(event, max_size=4), max_size=8))


@given(any_batches(), st.sampled_from(["copies", "set"]))
def test_changes_alone_tell_what_is_held(batches: list[list[Event]], counting: Counting) -> None:
    state = StreamState("m", "", counting, StateLimits(removed_max=3, parked_max=3))
    replica, again = Replica(), Replica()
    for batch in batches:
        change = state.apply(batch, 0.0)
        replica.apply(change)
        again.apply(change)
        again.apply(change)
        assert replica.tiers == [state.held(tier) for tier in Tier]
        assert again.tiers == replica.tiers
        assert [state.count(tier) for tier in Tier] == [len(state.held(tier)) for tier in Tier]


class RecordCopy:
    """Records and hash mapping of one stream, kept up to date by its changes. What a change invalidates as a whole is read anew."""

    def __init__(self, state: StreamState) -> None:
        self._state = state
        self.parts: list[dict[int, HashRecord | None]] = [{} for _ in range(REMOVED + 1)]
        self.mapping: dict[int, int | None] = {}

    def apply(self, change: Change) -> None:
        if change.reload:
            self.parts = self.read()
        if change.reload or change.cleared:
            self.mapping = {engine_hash: self._state.table.mapped_key(engine_hash) for engine_hash in ALL_HASHES}
        if change.cleared:
            self.parts[GPU].clear()
        for part, records in (change.records or {}).items():
            self.parts[part].update(records)
        if change.hash_mapping is not None:
            self.mapping |= change.hash_mapping.keys | dict.fromkeys(change.hash_mapping.removed_hashes)
        elif change.records is not None:
            blocks = cast(dict[int, Block | None], change.records[GPU])
            self.mapping |= {engine_hash: block.key if block is not None else None for engine_hash, block in blocks.items()}

    def read(self) -> list[dict[int, HashRecord | None]]:
        """All that the stream holds, by part."""
        snapshot = Snapshot(self._state)
        return [snapshot.records(part, snapshot.hashes(part)) for part in range(REMOVED + 1)]

    @property
    def held(self) -> list[dict[int, HashRecord]]:
        """The records by part without those that say that nothing is held."""
        return [{engine_hash: record for engine_hash, record in records.items() if record is not None} for records in self.parts]


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
    state.drop_held()
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

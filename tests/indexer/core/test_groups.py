"""What is learned of an engine's KV-cache groups from its events, whichever comes first."""

from itertools import permutations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.core.events import Event, Stored, Tier
from indexer.core.groups import HEARD_MAX, LEAD, NO_GROUP, CacheShape, Group, Groups, Kind
from indexer.errors import Refused
from tests.events import offloaded, removed, sparse, stored


def learned(*batches: list[Event], groups_max: int = 8, offload_block_size: int | None = None) -> Groups:
    groups = Groups(groups_max, offload_block_size)
    for batch in batches:
        groups.learn(batch)
    return groups


def full(group: int = 1, block_size: int = 4, blocks: int = 2) -> Stored:
    return stored(range(1, blocks + 1), block_size=block_size, group=group)


def window(group: int = 0, block_size: int = 4, blocks: int = 2, tokens: int | None = 8) -> Stored:
    return stored(range(1, blocks + 1), block_size=block_size, group=group, kind="sliding_window", window=tokens)


def state(group: int = 2, block_size: int = 4, blocks: int = 2) -> Stored:
    return stored(range(1, blocks + 1), block_size=block_size, group=group, kind="mamba")


def kinds(groups: Groups) -> dict[int, Kind]:
    return {group.number: group.kind for group in groups.known}


def sizes(groups: Groups) -> dict[int, int | None]:
    return {group.number: group.block_size for group in groups.known}


def slots(groups: Groups) -> list[int]:
    """The numbers of the groups, by slot."""
    assert groups.shape is not None
    return [group.number for group in groups.shape.groups]


# Kinds


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("full_attention", Kind.FULL),
        ("mla_attention", Kind.FULL),
        ("sink_full_attention", Kind.FULL),
        ("sliding_window", Kind.WINDOW),
        ("sliding_window_mla", Kind.WINDOW),
        ("chunked_local_attention", Kind.CHUNKED),
        ("mamba", Kind.STATE),
        ("of_next_year", Kind.OTHER),
        ("", Kind.OTHER),
        (None, Kind.UNKNOWN),
    ],
)
def test_a_word_names_a_kind(word: str | None, kind: Kind) -> None:
    assert kinds(learned([stored([1], group=3, kind=word, window=8)])) == {3: kind}


def test_a_window_without_a_length_is_no_window() -> None:
    assert kinds(learned([window(tokens=None)])) == {0: Kind.OTHER}


def test_a_kind_comes_later() -> None:
    groups = learned([stored([1, 2], group=0, kind=None)], [stored([3], group=0, kind=None), full(0)])
    assert kinds(groups) == {0: Kind.FULL}
    assert groups.shape == CacheShape(4, (Group(0, Kind.FULL, 4, None, is_proven=True),))


def test_an_event_without_a_kind_takes_none_back() -> None:
    groups = learned([window()], [stored([9, 10], group=0, kind=None)], [offloaded([9], group=0)])
    assert [(group.kind, group.window) for group in groups.known] == [(Kind.WINDOW, 8)]


def test_a_window_that_is_left_out_later_is_still_known() -> None:
    groups = learned([window()], [offloaded([9], group=0, kind="sliding_window")], [window(tokens=None)])
    assert [(group.kind, group.window) for group in groups.known] == [(Kind.WINDOW, 8)]


def test_a_later_kind_revises_an_earlier_one() -> None:
    assert kinds(learned([full(0)], [window(0)])) == {0: Kind.WINDOW}


def test_a_placeholder_first_knows_of_a_group_without_a_size() -> None:
    groups = learned([offloaded([1], group=2)])
    assert (groups.shape, [group.number for group in groups.unsized], groups.slot_of(2)) == (None, [2], None)
    assert groups.learn([full(2)]) is None
    assert (slots(groups), groups.unsized, groups.slot_of(2)) == ([2], (), LEAD)


def test_a_tier_below_the_gpu_tells_no_block_size() -> None:
    assert sizes(learned([stored([1, 2], group=0, tier=Tier.CPU, block_size=64)])) == {0: None}


# Sizes


def test_a_connector_that_names_groups_and_no_extra_keys_reads_whole_prompts() -> None:
    """So does vLLM's OffloadingConnector, by placeholders or with tokens; others list extra keys, or know of no groups."""
    own = (offloaded([1]), stored([1, 2], tier=Tier.CPU, lists_extra_keys=False))
    others = (offloaded([1], group=None), offloaded([1], block_size=4), stored([1, 2], tier=Tier.CPU), stored([1, 2], tier=Tier.CPU, group=None))
    for first in (True, False):
        for event in (*own, *others):
            groups = Groups(8)
            for each in (event, full()) if first else (full(), event):
                groups.note_offloading(each) if each.tier is Tier.CPU else groups.learn([each])
            assert groups.shape is not None
            assert groups.shape.reads_whole_prompts == (event in own)
            restored = Groups(8)
            restored.restore(groups.shape, ())
            restored.learn([window()])
            assert restored.shape is not None
            assert restored.shape.reads_whole_prompts == (event in own)


def test_several_blocks_prove_a_size_and_one_does_not() -> None:
    (one,) = learned([full(blocks=1)]).known
    (several,) = learned([full(blocks=2)]).known
    assert (one.block_size, one.is_proven, several.block_size, several.is_proven) == (4, False, 4, True)
    (named,) = learned([sparse([9], 3, group=0)]).known
    assert (named.block_size, named.is_proven, named.is_sparse) == (4, True, True)


def test_a_partial_tail_first_gives_way_to_a_larger_block() -> None:
    groups = learned([full(block_size=2, blocks=1)])
    former = groups.learn([full(block_size=4, blocks=1)])
    assert former == CacheShape(2, (Group(1, Kind.FULL, 2),))
    assert sizes(groups) == {1: 4}
    groups.learn([full(block_size=2, blocks=1)])
    assert sizes(groups) == {1: 4}, "a part of a block says nothing of whole ones"


def test_a_proven_size_is_revised_by_proof_alone() -> None:
    groups = learned([full(block_size=4)])
    assert groups.learn([full(block_size=8, blocks=1)]) is None
    assert sizes(groups) == {1: 4}
    assert groups.learn([full(block_size=2)]) is not None
    assert sizes(groups) == {1: 2}


def test_blocks_of_another_size_than_their_groups_are_refused_by_a_word() -> None:
    groups = learned([full(block_size=4)])
    assert groups.settle(full(block_size=4, blocks=1)) == LEAD
    with pytest.raises(Refused) as part:
        groups.settle(full(block_size=2, blocks=1))
    assert (part.value.reason, groups.other_block_size) == ("partial_block", 2)
    with pytest.raises(Refused) as more:
        groups.settle(full(block_size=8, blocks=1))
    assert (more.value.reason, groups.other_block_size) == ("block_size", 8)


def test_an_event_that_teaches_nothing_is_known_by_what_it_says() -> None:
    groups = learned([full(), window()])
    assert groups.seen(full()) is None
    assert groups.settle(full()) == groups.seen(full(blocks=1)) == groups.slot_of(1)
    assert groups.seen(full(block_size=2, blocks=1)) is None
    assert groups.seen(window()) is None
    groups.learn([state()])
    assert groups.seen(full()) is None, "what is learned may change everybody's slot"


def test_of_events_that_name_blocks_by_hash_so_much_is_remembered() -> None:
    groups = learned([full()])
    assert [groups.has_heard(sparse([9], 3, group=0)) for _ in range(2)] == [False, True]
    assert not groups.has_heard(sparse([9], 3, group=2))
    for number in range(HEARD_MAX):
        groups.has_heard(sparse([9], 3, group=number + 3))
    assert not groups.has_heard(sparse([9], 3, group=0))


# Slots


def test_the_full_group_leads_and_an_event_without_a_group_is_its() -> None:
    groups = learned([window(0), full(1), state(2)])
    assert slots(groups) == [1, 0, 2]
    assert (groups.slot_of(None), groups.number_of(None), groups.number_of(2)) == (LEAD, 1, 2)


def test_the_main_group_is_the_full_one_wherever_its_slot_is() -> None:
    groups = learned([window(0)], [full(1)])
    assert (slots(groups), groups.slot_of(None), groups.number_of(None)) == ([0, 1], 1, 1)


def test_the_slots_of_known_groups_stay() -> None:
    groups = learned([window(0)])
    assert groups.learn([state(2)]) is None
    assert groups.learn([full(1)]) is None
    assert slots(groups) == [0, 2, 1]


@given(st.permutations([window(0), full(1), state(2), offloaded([1], group=1), sparse([2], 3, group=0, window=8)]))
def test_batches_teach_the_same_in_every_order(events: list[Event]) -> None:
    groups, together = learned(*([event] for event in events)), learned(events)
    assert {group.number: group for group in groups.known} == {group.number: group for group in together.known}
    assert groups.shape is not None
    assert together.shape is not None
    assert set(groups.shape.groups) == set(together.shape.groups)


def test_without_any_full_group_one_whose_kind_is_not_known_leads() -> None:
    assert slots(learned([window(0), stored([1, 2], group=1, kind=None)])) == [1, 0]


def test_no_more_groups_than_the_limit_are_known() -> None:
    groups = learned([full(0), window(1), state(2)], groups_max=2)
    assert kinds(groups) == {0: Kind.FULL, 1: Kind.WINDOW}
    with pytest.raises(Refused) as refused:
        groups.settle(state(2))
    assert refused.value.reason == "groups_max"
    assert groups.settle(window(1)) == 1


# Several block sizes in one engine


def test_the_smallest_block_size_is_between_two_keys_and_the_least_common_multiple_between_two_hits() -> None:
    groups = learned([full(0, block_size=4), window(1, block_size=8)])
    assert groups.shape is not None
    assert (groups.key_size, groups.shape.alignment, slots(groups)) == (4, 8, [0, 1])
    assert [groups.width(slot) for slot in (0, 1)] == [1, 2]


def test_a_group_of_larger_blocks_that_came_first_does_not_lead() -> None:
    groups = learned([full(0, block_size=8)])
    former = groups.learn([window(1, block_size=4)])
    assert former == CacheShape(8, (Group(0, Kind.FULL, 8, None, is_proven=True),))
    assert (groups.key_size, slots(groups), groups.slot_of(None)) == (4, [1, 0], 1)


def test_where_no_group_has_the_size_of_a_key_the_lead_is_nobodys() -> None:
    groups = learned([full(0, block_size=4), state(1, block_size=6)])
    assert groups.shape is not None
    assert (groups.key_size, groups.shape.alignment, slots(groups)) == (2, 12, [NO_GROUP, 0, 1])
    assert groups.learn([state(2, block_size=6)]) is None
    assert slots(groups) == [NO_GROUP, 0, 1, 2]
    assert sorted(sizes(groups)) == [0, 1, 2]


def test_a_state_has_the_key_of_its_end_alone_and_a_part_that_fits_no_key_covers_itself() -> None:
    groups = learned([full(0, block_size=4), state(1, block_size=8), window(2, block_size=8)])
    assert [groups.width(slot) for slot in range(3)] == [1, 1, 2]
    assert [groups.width(0, tokens) for tokens in (4, 8, 12, 6)] == [1, 2, 3, 1]


@pytest.mark.parametrize(("asked", "kept"), [(None, None), (16, 16), (4, None), (6, None), (2, None)])
def test_an_offload_block_size_counts_where_it_is_several_blocks(asked: int | None, kept: int | None) -> None:
    groups = learned([full()], offload_block_size=asked)
    assert groups.shape is not None
    assert groups.shape.offload_block_size == kept
    assert groups.shape.is_plain == (kept is None)


@pytest.mark.parametrize(
    ("groups", "is_plain"),
    [
        ((), True),
        ((Group(0, Kind.FULL, 4),), True),
        ((Group(0, Kind.UNKNOWN, 4),), True),
        ((Group(0, Kind.WINDOW, 4, 8),), False),
        ((Group(0, Kind.STATE, 4),), False),
        ((Group(0, Kind.CHUNKED, 4),), False),
        ((Group(0, Kind.FULL, 4), Group(1, Kind.FULL, 4)), False),
    ],
)
def test_a_plain_shape_is_one_group_that_needs_all_its_blocks(groups: tuple[Group, ...], is_plain: bool) -> None:
    assert CacheShape(4, groups).is_plain is is_plain


# What an engine does not tell


def test_what_is_not_decided_is_said_in_words() -> None:
    chunked = stored([1, 2], group=5, kind="chunked_local_attention")
    assert learned([full(), window(), state()]).undecided == ()
    assert learned([full(), chunked]).undecided == ("chunk_size",)
    assert learned([full(), stored([1, 2], group=5, kind="of_next_year")]).undecided == ("group_kind",)
    assert learned([full(), stored([1, 2], group=5, kind=None)]).undecided == ("group_kind",)
    assert learned([stored([1, 2], group=5, kind=None)]).undecided == (), "one group of an engine that tells no kinds is the main attention"
    assert learned([window(), sparse([9], 3, group=0, window=8)]).undecided == ("window_blocks",)
    assert learned([full(), sparse([9], 3, group=0, window=8)]).undecided == ()


# After a restart of the indexer


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_a_restored_engine_goes_on_as_if_nothing_had_happened(order: tuple[int, ...]) -> None:
    first: list[Event] = [window(0), full(1), state(2)]
    groups = learned([first[place] for place in order], [offloaded([1], group=7)])
    restored = Groups(8)
    restored.restore(groups.shape, groups.unsized)
    assert (restored.shape, restored.unsized) == (groups.shape, groups.unsized)
    later: list[Event] = [stored([1, 2], group=7, kind="chunked_local_attention"), removed([1])]
    assert groups.learn(later) == restored.learn(later) is None
    assert restored.shape == groups.shape
    assert {group.number: group for group in restored.known} == {group.number: group for group in groups.known}


def test_a_lead_that_is_nobodys_is_restored_as_that() -> None:
    groups = learned([full(0, block_size=4), state(1, block_size=6)])
    restored = Groups(8)
    restored.restore(groups.shape, groups.unsized)
    assert sorted(sizes(restored)) == [0, 1]
    assert restored.learn([state(2, block_size=6)]) is None
    assert slots(restored) == [NO_GROUP, 0, 1, 2]


def test_what_is_written_by_a_version_without_groups_is_a_group_of_no_number() -> None:
    """Its shape has a block size alone: the first group that is announced takes the lead."""
    groups = Groups(8)
    groups.restore(CacheShape(4), ())
    assert (groups.key_size, groups.slot_of(None), groups.slot_of(0)) == (4, LEAD, None)
    assert groups.learn([full(0)]) is None
    assert slots(groups) == [0]

"""Which KV-cache group of an engine is indexed."""

import pytest
from indexer.core.attention_groups import AttentionGroups

from indexer.core.events import Stored
from tests.events import stored


def event_of(group: int | None = None, kind: str | None = None) -> Stored:
    return stored([1], group=group, kind=kind)


def test_without_groups_everything_is_indexed() -> None:
    groups = AttentionGroups(8)
    assert groups.is_indexed(event_of())
    assert groups.indexed is None


@pytest.mark.parametrize("kind", ["full_attention", "mla_attention", "sink_full_attention"])
def test_the_first_group_of_full_attention_is_indexed_and_no_other(kind: str) -> None:
    groups = AttentionGroups(8)
    assert not groups.is_indexed(event_of(1, "sliding_window"))
    assert groups.is_indexed(event_of(2, kind))
    assert not groups.is_indexed(event_of(3, kind))
    assert groups.indexed == 2


def test_a_group_keeps_its_kind_where_an_event_does_not_say_it() -> None:
    groups = AttentionGroups(8)
    groups.is_indexed(event_of(2, "full_attention"))
    assert groups.is_indexed(event_of(2))
    assert AttentionGroups(8).is_indexed(event_of(0)), "the first group of an engine that announces no kinds"
    assert not AttentionGroups(8).is_indexed(event_of(1))


def test_what_a_former_owner_recorded_goes_on() -> None:
    assert AttentionGroups(8, 3, {3: True}).is_indexed(event_of(3))
    assert not AttentionGroups(8, 3, {0: True, 3: True}).is_indexed(event_of(0))


def test_so_many_groups_are_remembered() -> None:
    groups = AttentionGroups(2)
    for group in range(5):
        groups.is_indexed(event_of(group, "sliding_window"))
    assert groups.is_full == {0: False, 1: False}

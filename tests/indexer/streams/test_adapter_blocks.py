"""Blocks of an adapter's former weights are removed, and no others."""

from collections.abc import Iterator
from typing import Any

import pytest

from indexer.core.block_keys import pack_tokens
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.streams.adapter_blocks import STEP_HASHES, AdapterBlocks

GPU, CPU = Tier.GPU, Tier.CPU


def stored(hashes: list[int], tokens: str, adapter: str | None = "ad", parent: int | None = None, **more: Any) -> Stored:
    """Blocks of two tokens, one for each letter."""
    fields: dict[str, Any] = {"tier": GPU, "extra_keys": None, "announces_extra_keys": True, "group": 0, "kind": None, **more}
    return Stored(hashes=hashes, parent=parent, tokens=pack_tokens([ord(letter) for letter in tokens]), block_size=2, lora_name=adapter, **fields)


def removals(blocks: AdapterBlocks, *events: Event) -> list[tuple[int, Tier, int | None]]:
    """What is removed besides what the events say."""
    followed = blocks.follow(list(events))
    assert [event for event in followed if event in events] == list(events)
    return sorted((event.hashes[0], event.tier, event.group) for event in followed if isinstance(event, Removed) and event not in events)


def test_the_first_block_under_another_hash_removes_all_of_the_adapter() -> None:
    blocks = AdapterBlocks(255)
    assert removals(blocks, stored([1, 2], "abcd"), stored([3], "ef", parent=2), stored([4], "xy"), stored([9], "ab", "other")) == []
    # A second hash of one block alone is no sign yet; blocks that follow it are.
    assert removals(blocks, stored([51], "ab")) == []
    assert removals(blocks, stored([52], "cd", parent=51)) == [(1, GPU, 0), (2, GPU, 0), (3, GPU, 0), (4, GPU, 0)]
    assert removals(blocks, stored([51], "ab"), stored([53], "xy", parent=51), stored([9], "ab", "other")) == []
    # Reloaded once more; the copies of both announcements.
    assert removals(blocks, stored([71, 72], "abcd")) == [(51, GPU, 0), (51, GPU, 0), (52, GPU, 0), (53, GPU, 0)]


def test_a_second_hash_of_a_block_is_no_reload() -> None:
    """Also where it came first: what follows the block names the other hash as its parent."""
    blocks = AdapterBlocks(255)
    assert removals(blocks, stored([5], "ab"), stored([1, 2], "abcd"), stored([5], "ab"), stored([3], "ef", parent=2), stored([6], "xy")) == []


@pytest.mark.parametrize(
    "other",
    [
        stored([2, 3], "abcd", extra_keys={0: b"another image"}),
        stored([2, 3], "accd"),
        stored([2, 3], "abcd", parent=7),
        stored([2, 3], "abcd", "other"),
        stored([2, 3], "abcd", None),
        stored([2, 3], "abcd", announces_extra_keys=False),
        stored([1, 3], "abcd"),
        stored([2], ""),
    ],
    ids=["extra keys", "tokens", "parent", "adapter", "no adapter", "not announced", "hash", "placeholder"],
)
def test_another_block_is_no_reload(other: Stored) -> None:
    blocks = AdapterBlocks(255)
    assert removals(blocks, stored([1, 9], "abxy"), other) == []


def test_copies_are_removed_from_every_place_that_has_them() -> None:
    blocks = AdapterBlocks(2)
    placeholder = Stored([1], None, b"", 0, CPU, None, None, announces_extra_keys=False, group=None, kind=None)
    assert removals(blocks, *[stored([1], "ab")] * 3, stored([1], "ab", group=1), placeholder) == []
    assert list(blocks.remove("ad")) == [Removed([1], GPU, 0), Removed([1], GPU, 0), Removed([1], GPU, 1), Removed([1], CPU, None)]
    assert [*blocks.remove("ad"), *blocks.remove("unknown")] == []


def test_what_the_engine_removed_is_not_removed_again() -> None:
    blocks = AdapterBlocks(255)
    assert removals(blocks, stored([1, 2, 3], "abcdef"), Removed([1, 3], GPU, 0)) == []
    # The first block is gone: under another hash it may come back without a reload, which nothing contradicts.
    assert removals(blocks, stored([51], "ab")) == []
    assert removals(blocks, Cleared()) == []
    assert not list(blocks.remove("ad"))


def test_a_clear_empties_the_gpu_only() -> None:
    blocks = AdapterBlocks(255)
    removals(blocks, stored([1, 2], "abcd"), stored([1], "ab", tier=CPU), Cleared())
    assert list(blocks.remove("ad")) == [Removed([1], CPU, 0)]


def test_a_stream_that_holds_nothing_has_no_adapters() -> None:
    blocks = AdapterBlocks(255)
    removals(blocks, stored([1], "ab"))
    blocks.forget()
    assert removals(blocks, stored([51], "ab")) == []
    assert list(blocks.remove("ad")) == [Removed([51], GPU, 0)]


def test_events_without_adapters_are_passed_on_as_they_are() -> None:
    blocks = AdapterBlocks(255)
    events: list[Event] = [stored([1], "ab", None), Removed([1], GPU, 0), Cleared()]
    assert blocks.follow(events) is events


def test_a_clear_looks_at_what_is_on_the_gpu_only() -> None:
    """Else a batch of clears would cost each of them what lies below."""

    class Counted(dict[int, Any]):
        looks = 0

        def __getitem__(self, key: int) -> Any:
            Counted.looks += 1
            return super().__getitem__(key)

        def __iter__(self) -> Iterator[int]:
            for key in super().__iter__():
                Counted.looks += 1
                yield key

        def values(self) -> Any:
            Counted.looks += len(self)
            return super().values()

    blocks = AdapterBlocks(255)
    blocks._copies = Counted()
    removals(blocks, stored([1], "a"), *(stored([number], "a", tier=CPU) for number in range(2, 200)), Cleared())
    Counted.looks = 0
    removals(blocks, *[Cleared()] * 50, stored([1], "a"), Cleared())
    assert Counted.looks < 20
    assert len(list(blocks.remove("ad"))) == 198


def test_the_blocks_of_an_engine_that_removes_none_are_forgotten_at_a_limit() -> None:
    blocks = AdapterBlocks(255, blocks_max=32)
    for number in range(1_000):
        removals(blocks, stored([number], "a", f"ad{number % 7}"))
        assert len(blocks.adapter_of) <= 32
    left = [event for number in range(7) for event in blocks.remove(f"ad{number}")]
    assert {event.hashes[0] for event in left if isinstance(event, Removed)} == set(range(969, 1_000)), "three went at a time"
    for kept in (blocks.adapter_of, blocks._copies, blocks._hashes, blocks._first, blocks._content_of, blocks._on_gpu):
        assert not kept


@pytest.mark.parametrize("varied", ["adapter", "tokens"])
def test_hashes_that_are_announced_again_as_something_else_take_no_more_memory(varied: str) -> None:
    blocks = AdapterBlocks(255)
    for number in range(100):
        if varied == "adapter":
            blocks.follow([stored([1, 2], "abcd", f"ad{number}")])
        else:
            blocks.follow([stored([1, 2], f"{chr(1_000 + number)}bcd")])
    kept = [vars(blocks)[name] for name in ("adapter_of", "_copies", "_hashes", "_first", "_content_of", "_on_gpu")]
    assert max(map(len, kept)) <= 2
    # What was announced last counts: the same first block under another hash shows a reload.
    tokens, name = ("abcd", "ad99") if varied == "adapter" else (f"{chr(1_099)}bcd", "ad")
    assert {engine_hash for engine_hash, _, _ in removals(blocks, stored([3, 4], tokens, name))} == (set() if varied == "adapter" else {1, 2})


def test_an_event_of_many_blocks_is_followed_in_steps() -> None:
    blocks = AdapterBlocks(copies_max=255)
    event = stored(list(range(1, 5_001)), "a" * 5_000)
    for each in (event, Removed(event.hashes, Tier.GPU, 0)):
        found = list(blocks.follow_each([each]))
        assert [one for one in found if one is not None] == [each]
        assert found.count(None) >= 5_000 // STEP_HASHES
    assert not blocks.adapter_of

"""What is expected of pods, and what ends that."""

from array import array
from collections.abc import Sequence

import pytest

from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.names import StreamKey
from scorer_api.routing.speculation import Speculation, SpeculativePrompt

CUT = (16, 0)
A, B, A1 = StreamKey("m", "a", 0), StreamKey("m", "b", 0), StreamKey("m", "a", 1)


def announced(*keys: int, tier: Tier = Tier.GPU, held: bool = True) -> Change:
    change = Change()
    change.touched[tier].update(dict.fromkeys(keys, held))
    return change


@pytest.fixture(autouse=True)
def _every_prompt_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorer_api.routing.speculation.SAMPLE", 1)


class Told:
    """Keeps what it is told of prompts that ended."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, int, list[int]]] = []

    def __call__(self, expected: SpeculativePrompt, keys: Sequence[int]) -> None:
        self.ended.append((expected.stream.pod, expected.matched_blocks, list(keys)))


def speculation(blocks_max: int = 1000) -> tuple[Speculation, Told]:
    told = Told()
    return Speculation(2.0, told, blocks_max), told


def test_a_prompt_counts_for_its_time() -> None:
    found, told = speculation()
    found.add("1", A, CUT, [1, 2, 3], 1, now_s=10.0)
    assert found.match("m", CUT, [1, 2, 9]) == {("a", 0): 2}
    assert found.match("m", (32, 0), [1, 2, 9]) == found.match("m", (16, 1), [1, 2, 9]) == found.match("n", CUT, [1, 2, 9]) == {}
    found.expire(11.9)
    assert found.match("m", CUT, [1, 2, 3, 4]) == {("a", 0): 3}
    found.expire(12.0)
    assert found.match("m", CUT, [1, 2, 3, 4]) == {}
    assert told.ended == [("a", 1, [1, 2, 3])]
    assert (len(found), found.blocks, found._trees, found._awaited) == (0, 0, {}, {})


def test_what_a_follower_loads_at_once_is_announced_too() -> None:
    found, told = speculation()
    found.add("1", A, CUT, [1, 2, 3], 1, now_s=10.0)
    found.add("2", A, CUT, [1, 2, 3, 4], 1, now_s=10.0)
    found.add("3", B, CUT, [1, 2, 3], 0, now_s=10.0)
    found.on_load(A, {1, 2, 3}.__contains__)
    found.on_load(A1, {1, 2, 3}.__contains__)
    assert told.ended == [("a", 1, [1, 2, 3])]
    assert found.match("m", CUT, [1, 2, 3, 4]) == {("a", 0): 4, ("b", 0): 3}


def test_one_that_ends_takes_nothing_from_others() -> None:
    """Each of two requests with the same prompt counts by itself, whichever goes first."""
    for first in ("1", "2"):
        found, told = speculation()
        found.add("1", A, CUT, [1, 2, 3], 0, now_s=10.0)
        found.add("2", A, CUT, [1, 2, 3], 0, now_s=11.0)
        found.add("3", A, CUT, [1, 2], 0, now_s=11.0)
        assert found.take_back(first)
        assert found.match("m", CUT, [1, 2, 3]) == {("a", 0): 3}
        found.expire(12.5)
        assert found.match("m", CUT, [1, 2, 3]) == {("a", 0): 3 if first == "1" else 2}
        found.expire(13.0)
        assert found.match("m", CUT, [1, 2, 3]) == {}
        assert len(told.ended) == 2
        assert not found.take_back(first)


def test_the_last_block_that_its_pod_announces_ends_it() -> None:
    found, told = speculation()
    found.add("1", A, CUT, [1, 2, 3], 1, now_s=10.0)
    found.on_change(B, announced(3))
    found.on_change(A, announced(2))
    found.on_change(A, announced(3, held=False))
    assert len(found) == 1
    found.on_change(A, announced(7, 3, 8))
    assert len(found) == 0
    assert told.ended == [("a", 1, [1, 2, 3])]


def test_it_says_which_prompts_are_announced_and_of_none_that_end_otherwise() -> None:
    found, _ = speculation()
    names: list[str] = []
    found.announced = names.append
    for number in range(4):
        found.add(str(number), A, CUT, [1, 2 + number], 0, now_s=float(number))
    found.on_change(A, announced(1, 2))
    found.on_load(A, lambda key: key == 3)
    found.take_back("2")
    found.expire(10.0)
    assert names == ["0", "1"]


def test_the_last_block_counts_in_any_tier_of_the_pods_own() -> None:
    for tier in Tier:
        found, _ = speculation()
        found.add("1", A, CUT, [1], 0, now_s=10.0)
        found.on_change(A, announced(1, tier=tier))
        assert len(found) == (1 if tier is Tier.REMOTE else 0)


def test_all_that_end_with_the_same_block_end_with_it() -> None:
    found, told = speculation()
    for name in "123":
        found.add(name, A, CUT, [1, 2], 0, now_s=10.0)
    found.add("other", A, CUT, [1, 2, 3], 0, now_s=10.0)
    found.on_change(A, announced(1, 2))
    assert len(found) == 1
    assert len(told.ended) == 3


def test_a_restart_ends_what_was_sent_before_it_and_tells_nothing_of_it() -> None:
    found, told = speculation()
    found.add("1", A, CUT, [1, 2], 0, now_s=10.0)
    found.add("2", A1, CUT, [1, 2], 0, now_s=10.0)
    restarted = announced(2)
    restarted.reload = True
    found.on_change(A, restarted)
    assert found.match("m", CUT, [1, 2]) == {("a", 1): 2}
    found.on_drop(A1)
    assert len(found) == 0
    assert told.ended == []


def test_there_is_room_for_so_many_blocks_and_the_oldest_go() -> None:
    found, told = speculation(blocks_max=10)
    for number in range(5):
        found.add(str(number), A, CUT, [number * 10 + block for block in range(4)], 0, now_s=10.0)
        found.expire(10.0)
        assert found.blocks <= 10
    assert [keys[0] for _, _, keys in told.ended] == [0, 10, 20]


def test_keys_may_be_an_array() -> None:
    found, _ = speculation()
    found.add("1", A, CUT, array("Q", [2**64 - 1, 5]), 0, now_s=10.0)
    assert found.match("m", CUT, [2**64 - 1, 5]) == {("a", 0): 2}


def test_it_is_told_of_one_prompt_in_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scorer_api.routing.speculation.SAMPLE", 8)
    found, told = speculation()
    for number in range(20):
        found.add(str(number), A, CUT, [number], 0, now_s=10.0)
    found.expire(12.0)
    assert [keys for _, _, keys in told.ended] == [[0], [8], [16]]

"""The view keeps what the streams' owners announce."""

import time
from collections.abc import Callable

import pytest

from indexer.core.change import Change
from indexer.core.groups import CacheShape
from indexer.core.names import StreamKey, Trust
from scorer_api.index.prompt import Prompt
from tests.scorer_api.index.contents import A1, A, B, asked, holds, keys, matched, new_view


def test_an_unknown_model_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        new_view(A).score(Prompt("n", b""))


def test_models_share_nothing() -> None:
    other = StreamKey("n", "a", 0)
    view = new_view(A, other)
    view.append(other, CacheShape(2), holds(*keys("X")))
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}}
    assert view.models() == {"m": ["a"], "n": ["a"]}


def test_a_stream_with_another_block_size_holds_nothing_of_the_old_one() -> None:
    view = new_view(A)
    view.append(A, CacheShape(4), holds(*keys("X", block_size=4)))
    view.append(A, CacheShape(2), holds(*keys("X")))
    (index,) = view.indexes
    assert (index.holders, view.score(asked("X"))[0].ranks[0].block_size) == (1, 2)


def test_what_is_dropped_leaves_no_index_behind() -> None:
    view = new_view(A, B)
    view.append(A, CacheShape(2), holds(*keys("X")))
    view.append(B, CacheShape(2), holds(*keys("X")))
    view.drop(A)
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}, "b": {"0": 1}}
    (index,) = view.indexes
    assert index.holders == 1
    view.drop(B)
    view.drop(B)
    assert list(view.indexes) == []
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}, "b": {"0": 0}}
    assert view.score(asked("X"))[0].ranks[0].block_size is None


def test_a_stream_dropped_and_filled_again_has_no_ghosts() -> None:
    view = new_view(A, B)
    first, second = keys("XY")
    view.append(A, CacheShape(2), holds(first, second))
    view.append(B, CacheShape(2), holds(first))
    view.drop(A)
    view.append(A, CacheShape(2), holds(first))
    assert matched(view.score(asked("XY"))) == {"a": {"0": 1}, "b": {"0": 1}}


def test_a_stream_opened_again_holds_nothing() -> None:
    view = new_view(A)
    view.append(A, CacheShape(2), holds(*keys("X")))
    view.open(A)
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}}
    assert sum(index.holders for index in view.indexes) == 0


def test_a_closed_stream_is_forgotten() -> None:
    view = new_view(A, A1, B)
    view.append(A, CacheShape(2), holds(*keys("X")))
    view.close(A)
    view.close(A)
    assert matched(view.score(asked("X"))) == {"a": {"1": 0}, "b": {"0": 0}}
    assert list(view.indexes) == []
    view.close(A1)
    assert view.models() == {"m": ["b"]}
    view.close(B)
    assert view.models() == {}
    view.close(B)


def test_an_empty_index_is_never_left_by_a_changing_block_size() -> None:
    view = new_view(A)
    for block_size in (2, 4, 2, 8):
        view.append(A, CacheShape(block_size), holds(1))
    assert [index.holders for index in view.indexes] == [1]


class Listening:
    """Keeps which of some blocks it was told that they are held."""

    def __init__(self, *blocks: int) -> None:
        self.blocks = blocks
        self.held: list[tuple[StreamKey, list[bool]]] = []

    def on_change(self, stream: StreamKey, change: Change) -> None:
        raise AssertionError("nothing was appended")

    def on_drop(self, stream: StreamKey) -> None:
        raise AssertionError("nothing was dropped")

    def on_load(self, stream: StreamKey, is_held: Callable[[int], bool]) -> None:
        self.held.append((stream, [is_held(key) for key in self.blocks]))


def test_whoever_listens_is_told_of_what_is_loaded_at_once() -> None:
    view = new_view(A, B)
    old, new = keys("XY"), keys("XZ")
    view.append(A, CacheShape(2), holds(*old))
    holding = view.hold_apart(A, CacheShape(2))
    holding.apply(holds(*new), CacheShape(2))
    view.listener = listening = Listening(new[0], old[1], new[1])
    view.exchange(A, holding)
    view.exchange(B, None)
    assert listening.held == [(A, [True, False, True]), (B, [False, False, False])]


def test_trust_counts_until_its_time_is_over() -> None:
    view = new_view(A, B)
    view.set_trust(A, Trust.PARTIAL, until_s=time.monotonic() + 3600)
    view.set_trust(B, Trust.LIVE, until_s=time.monotonic() - 1)
    assert (view.trust(A), view.trust(B)) == (Trust.PARTIAL, Trust.STALE)
    assert [(pod.pod, pod.ranks[0].trust) for pod in view.score(asked("X"))] == [("a", Trust.PARTIAL), ("b", Trust.STALE)]
    assert [view.count(trust) for trust in Trust] == [0, 1, 1, 0]
    view.set_trust(B, Trust.EXPIRED, until_s=time.monotonic() - 1)
    assert view.trust(B) is Trust.EXPIRED


def test_the_age_of_the_newest_word() -> None:
    view = new_view(A)
    assert view.age_s == 0.0
    now_s = time.monotonic()
    view.note_heartbeat(now_s - 5)
    view.note_heartbeat(now_s - 60)
    assert 5 <= view.age_s < 30
    view.note_heartbeat(now_s + 3600)
    assert view.age_s == 0.0

"""What a stream holds is built apart, exchanged and given back in pieces."""

from indexer.core.events import Tier
from indexer.core.groups import CacheShape
from tests.scorer_api.index.contents import A, B, asked, holds, keys, matched, new_view


def test_what_is_held_apart_is_in_no_answer_until_it_is_exchanged() -> None:
    view = new_view(A, B)
    old, new = keys("XY"), keys("XZ")
    view.append(A, CacheShape(2), holds(*old))
    view.append(B, CacheShape(2), holds(*old))
    holding = view.hold_apart(A, CacheShape(2))
    holding.apply(holds(*new), CacheShape(2))
    assert matched(view.score(asked("XY"))) == {"a": {"0": 2}, "b": {"0": 2}}
    assert matched(view.score(asked("XZ"))) == {"b": {"0": 1}, "a": {"0": 1}}
    given_back = view.exchange(A, holding)
    assert given_back is not None
    assert matched(view.score(asked("XY"))) == {"b": {"0": 2}, "a": {"0": 1}}
    assert matched(view.score(asked("XZ"))) == {"a": {"0": 2}, "b": {"0": 1}}
    (index,) = view.indexes
    assert index.holders == 6
    assert [given_back.give_back(1), given_back.give_back(1)] == [True, False]
    assert index.holders == 4
    assert matched(view.score(asked("XY"))) == {"b": {"0": 2}, "a": {"0": 1}}


def test_a_holding_is_given_back_in_pieces_from_every_tier() -> None:
    view = new_view(A)
    holding = view.hold_apart(A, CacheShape(2))
    for tier in Tier:
        holding.apply(holds(*keys("ABCDEFG"), tier=tier), CacheShape(2))
    pieces = 1
    while holding.give_back(4):
        pieces += 1
    assert pieces == 9, "35 of them, 4 at a time"
    assert list(view.indexes) == []


def test_an_exchange_for_another_block_size_or_for_nothing() -> None:
    view = new_view(A)
    view.append(A, CacheShape(2), holds(*keys("X")))
    wide = view.hold_apart(A, CacheShape(4))
    wide.apply(holds(*keys("X", block_size=4)), CacheShape(4))
    old = view.exchange(A, wide)
    assert old is not None
    assert not old.give_back(10)
    assert [rank.block_size for pod in view.score(asked("X", block_size=4)) for rank in pod.ranks] == [4]
    assert len(list(view.indexes)) == 1
    last = view.exchange(A, None)
    assert last is not None
    assert view.exchange(A, None) is None
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}}
    assert not last.give_back(10)
    assert list(view.indexes) == []


def test_what_is_given_back_late_takes_nothing_from_a_model_that_came_anew() -> None:
    view = new_view(A)
    view.append(A, CacheShape(2), holds(*keys("X")))
    late = view.exchange(A, None)
    view.close(A)
    view.open(A)
    view.append(A, CacheShape(2), holds(*keys("X")))
    assert late is not None
    assert not late.give_back(10)
    assert matched(view.score(asked("X"))) == {"a": {"0": 1}}
    assert [index.holders for index in view.indexes] == [1]

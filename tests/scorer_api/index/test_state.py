"""The indexes of a model are there as long as a stream holds blocks of their size."""

import pytest

from indexer.core.names import Trust
from scorer_api.index.removals import Removals
from scorer_api.index.state import IndexedModel, IndexedStream


def new_stream(trust: Trust = Trust.LIVE, until_s: float = 10.0) -> IndexedStream:
    return IndexedStream(Removals(4), None, trust, until_s)


@pytest.mark.parametrize(
    ("trust", "now_s", "is_now"),
    [
        (Trust.LIVE, 9.9, Trust.LIVE),
        (Trust.PARTIAL, 9.9, Trust.PARTIAL),
        (Trust.LIVE, 10.0, Trust.STALE),
        (Trust.PARTIAL, 11.0, Trust.STALE),
        (Trust.EXPIRED, 11.0, Trust.EXPIRED),
    ],
)
def test_trust_lasts_until_its_time(trust: Trust, now_s: float, is_now: Trust) -> None:
    assert new_stream(trust).trust_at(now_s) is is_now


def test_streams_of_one_block_size_share_an_index_until_the_last_is_empty() -> None:
    model, one, other, wide = IndexedModel(), new_stream(), new_stream(), new_stream()
    (index, holder), (same, second) = model.index_for(one, 16), model.index_for(other, 16)
    assert (same is index, second != holder) == (True, True)
    assert model.index_for(one, 16) == (index, holder), "a stream keeps its holder"
    model.index_for(wide, 32)
    assert set(model.indexes) == {16, 32}
    model.empty(one)
    assert (one.block_size, one.holder, set(model.indexes)) == (None, None, {16, 32})
    model.empty(one)
    model.empty(other)
    assert set(model.indexes) == {32}
    assert model.count_held(one, [1, 2]) == 0

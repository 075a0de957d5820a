"""The indexes of a model are there as long as a stream holds blocks of their size."""

import pytest

from indexer.core.groups import CacheShape, Group, Kind
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


def test_streams_of_one_key_size_share_an_index_until_the_last_is_empty() -> None:
    model, one, other, wide = IndexedModel(), new_stream(), new_stream(), new_stream()
    first, second = model.holders_for(one, CacheShape(16)), model.holders_for(other, CacheShape(16))
    assert (second.index is first.index, second.lead != first.lead) == (True, True)
    assert model.holders_for(one, CacheShape(16)) is first, "a stream keeps its holders"
    model.holders_for(wide, CacheShape(32))
    assert set(model.indexes) == {(16, 0), (32, 0)}
    assert (one.cut, one.block_size) == ((16, 0), 16)
    model.empty(one)
    assert (one.block_size, one.cut, one.holders, set(model.indexes)) == (None, None, None, {(16, 0), (32, 0)})
    model.empty(one)
    model.empty(other)
    assert set(model.indexes) == {(32, 0)}
    assert model.count_held(one, [1, 2]) == 0


def test_a_stream_whose_groups_become_known_keeps_its_holders() -> None:
    model, stream = IndexedModel(), new_stream()
    holders = model.holders_for(stream, CacheShape(16, (Group(0, Kind.FULL, 16),)))
    assert (holders.rule, holders.block_size) == (None, 16)
    lead = holders.lead
    assert model.holders_for(stream, CacheShape(16, (Group(0, Kind.FULL, 16), Group(1, Kind.WINDOW, 32, 64)))) is holders
    assert (holders.lead, len(holders.by_slot), holders.rule is not None) == (lead, 2, True)
    assert (stream.cut, stream.block_size) == ((16, 0), 32)
    model.empty(stream)
    assert model.indexes == {}

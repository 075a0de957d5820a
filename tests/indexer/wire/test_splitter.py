"""Where events end, found without recursion; msgspec, which recurses, is the reference."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.core.event_pieces import result_of
from indexer.wire.splitter import ITEMS_MAX, STEP_ITEMS_MAX, split_events

scalars = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=300) | st.binary(max_size=300)
anything = st.recursive(scalars, lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(max_size=3), inner, max_size=20))
pack = msgspec.msgpack.encode


@given(anything, st.lists(anything, max_size=20), st.lists(scalars, max_size=2))
def test_every_event_is_cut_out_whole(stamp: object, events: list[object], rest: list[object]) -> None:
    assert result_of(split_events(pack([stamp, events, *rest]))) == [pack(event) for event in events]


@pytest.mark.parametrize("value", [msgspec.msgpack.Ext(5, b"x" * size) for size in (1, 2, 4, 8, 16, 3, 300, 70_000)] + [b"x" * 70_000, "x" * 70_000])
def test_every_length_has_its_form(value: object) -> None:
    assert result_of(split_events(pack([1.5, [value, 7]]))) == [pack(value), pack(7)]


def test_items_of_four_byte_counts_are_stepped_over() -> None:
    many = pack([[0] * 70_000, dict.fromkeys(range(70_000))])
    assert result_of(split_events(b"\x92\x01\x91" + many)) == [many]


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc0",
        b"\x91\x01",
        b"\x92\x01\x02",
        b"\x92\x01\x91",
        b"\x92\x01\x91\xc1",
        b"\x92\x01\x91\xda\x00",
        b"\x92\x01\xdd\xff\xff\xff\xff",
        b"\x82\x01\x90\x02\x90",
    ],
)
def test_what_is_no_batch_in_array_form_is_an_error(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        result_of(split_events(payload))


def test_so_many_items_are_looked_at_and_no_more() -> None:
    assert len(result_of(split_events(b"\x92\x01\x91" + b"\x91" * (ITEMS_MAX - 2) + b"\xc0"))) == 1
    with pytest.raises(ValueError, match="too many"):
        result_of(split_events(b"\x92\x01\x91" + b"\x91" * ITEMS_MAX + b"\xc0"))


def test_many_items_are_examined_in_steps() -> None:
    deep = b"\x91" * 100_000 + b"\xc0"
    assert sum(1 for _ in split_events(b"\x92\x01\x92" + deep + deep)) >= 200_000 // STEP_ITEMS_MAX

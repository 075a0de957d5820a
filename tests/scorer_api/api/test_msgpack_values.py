"""How many values msgpack has, without building them."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer_api.api.msgpack_values import has_more_values

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary() | st.binary(min_size=300, max_size=400),
    lambda inner: st.lists(inner, max_size=20) | st.dictionaries(st.text(), inner, max_size=20),
)


def count(value: Any) -> int:
    if isinstance(value, list):
        return 1 + sum(map(count, value))
    return 1 + sum(1 + count(each) for each in value.values()) if isinstance(value, dict) else 1


@given(VALUES)
def test_values_are_counted_as_they_are(value: Any) -> None:
    data = msgspec.msgpack.encode(value)
    assert not has_more_values(data, count(value))
    assert has_more_values(data, count(value) - 1)


@pytest.mark.parametrize("data", [b"\xc7\x01\x05x", b"\xc8\x00\x01\x05x", b"\xd4\x05x", b"\xd5\x05xx", b"\xd8\x05" + b"x" * 16])
def test_an_extension_is_one_value(data: bytes) -> None:
    assert not has_more_values(b"\x92" + data + b"\xc0", 3)
    assert has_more_values(b"\x92" + data + b"\xc0", 2)


def test_a_count_that_is_announced_is_enough() -> None:
    assert has_more_values(b"\xdd\xff\xff\xff\xff", 65_536)

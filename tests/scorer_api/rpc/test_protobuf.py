"""Protobuf's wire format, read and written by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scorer_api.rpc.protobuf import FIELDS_MAX, MalformedError, bytes_field, bytes_key, read_fields, text_of, varint_field, varint_key


def read(data: bytes) -> list[tuple[int, object]]:
    return [(key, bytes(value) if isinstance(value, memoryview) else value) for key, value in read_fields(memoryview(data))]


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (b"", []),
        (b"\x0a\x03abc", [(bytes_key(1), b"abc")]),
        (b"\x12\x00", [(bytes_key(2), b"")]),
        (b"\x18\x02", [(varint_key(3), 2)]),
        (b"\x08\xac\x02", [(varint_key(1), 300)]),
        (b"\x82\x01\x01x", [(bytes_key(16), b"x")]),
        (b"\x09\0\0\0\0\0\0\xf0\x3f\x10\x01", [(1 << 3 | 1, bytes(6) + b"\xf0\x3f"), (varint_key(2), 1)]),  # a double
        (b"\x0d\0\0\0\0\x10\x01", [(1 << 3 | 5, bytes(4)), (varint_key(2), 1)]),  # a float
        (b"\x08" + b"\xff" * 9 + b"\x01", [(varint_key(1), 2**64 - 1)]),
    ],
)
def test_fields_are_read(data: bytes, fields: list[tuple[int, object]]) -> None:
    assert read(data) == fields


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\x0a", "cut"),
        (b"\x0a\x05abc", "exceeds"),
        (b"\x0a\xff\xff\xff\xff\x0f", "exceeds"),
        (b"\x08\xff", "cut"),
        (b"\x08" + b"\xff" * 10 + b"\x01", "more than 10 bytes"),
        (b"\x09\0\0", "exceeds"),
        (b"\x0b", "wire type 3"),
        (b"\x02\x00", "without a number"),
        (b"\x08\x01" * (FIELDS_MAX + 1), "fields"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, what: str) -> None:
    with pytest.raises(MalformedError, match=what):
        read(data)


@given(st.binary(max_size=200))
def test_no_bytes_do_more_than_be_refused(data: bytes) -> None:
    try:
        fields = read(data)
    except MalformedError:
        return
    assert len(fields) <= len(data) // 2


@given(st.lists(st.tuples(st.integers(1, 2**20), st.binary(max_size=300) | st.integers(0, 2**64 - 1)), max_size=20))
def test_what_is_written_is_read_again(fields: list[tuple[int, bytes | int]]) -> None:
    data = b"".join(varint_field(number, value) if isinstance(value, int) else bytes_field(number, value) for number, value in fields)
    assert read(data) == [(varint_key(number) if isinstance(value, int) else bytes_key(number), value) for number, value in fields]


def test_text_that_is_no_utf_8_is_text_all_the_same() -> None:
    assert text_of(memoryview(b"\xffabc")) == "\N{REPLACEMENT CHARACTER}abc"

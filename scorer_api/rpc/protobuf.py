"""Protobuf's wire format, as far as the messages of gateways need it (protobuf.dev/programming-guides/encoding).

A field's key is its number and its wire type. Readers compare keys, so a known number with another wire type counts as an unknown field.
"""

from collections.abc import Iterator
from typing import Any

# The most fields of one message. Every field takes two bytes or more, so a large message could hold millions.
FIELDS_MAX = 65_536
VARINT_BITS = 64
_SIZES = {1: 8, 5: 4}


class MalformedError(ValueError):
    """The bytes are no message, or one with more fields than any gateway sends."""


def bytes_key(number: int) -> int:
    """The key of a field of bytes, text, or a message."""
    return number << 3 | 2


def varint_key(number: int) -> int:
    """The key of a field of a number or a bool."""
    return number << 3


def read_fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """(key, value) of each field: an int for a varint, a view for bytes and for fixed 32 and 64 bit numbers. Raises MalformedError."""
    at, end, left = 0, len(data), FIELDS_MAX
    while at < end:
        if not left:
            raise MalformedError(f"a message of more than {FIELDS_MAX} fields")
        left -= 1
        key = data[at]
        at += 1
        if key > 127:
            key, at = _read_varint(data, at - 1)
        if key < 8:
            raise MalformedError("a field without a number")
        kind = key & 7
        if kind == 2:
            # Nearly all sizes take one byte.
            if at < end and data[at] < 128:
                size = data[at]
                at += 1
            else:
                size, at = _read_varint(data, at)
            if size > end - at:
                raise MalformedError("a field exceeds its message")
            yield key, data[at : at + size]
            at += size
        elif kind == 0:
            value, at = _read_varint(data, at)
            yield key, value
        elif kind in _SIZES:
            start, at = at, at + _SIZES[kind]
            if at > end:
                raise MalformedError("a field exceeds its message")
            yield key, data[start:at]
        else:
            raise MalformedError(f"wire type {kind}")


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number that begins there, and where it ends. Raises MalformedError."""
    result = shift = 0
    end = len(data)
    while at < end:
        byte = data[at]
        at += 1
        result |= (byte & 127) << shift
        if byte < 128:
            return result, at
        shift += 7
        if shift >= VARINT_BITS + 6:
            raise MalformedError("a varint of more than 10 bytes")
    raise MalformedError("a varint is cut")


def text_of(data: memoryview) -> str:
    """The text; what is not UTF-8 is replaced, since it matches nothing then."""
    return str(data, "utf-8", "replace")


_ONE_BYTE = [bytes((value,)) for value in range(128)]


def varint(value: int) -> bytes:
    """A number of 0 or more."""
    if value < 128:
        return _ONE_BYTE[value]
    written = bytearray()
    while value > 127:
        written.append(value & 127 | 128)
        value >>= 7
    written.append(value)
    return bytes(written)


def bytes_field(number: int, content: bytes) -> bytes:
    """A field of bytes, text in UTF-8, or a message."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def varint_field(number: int, value: int) -> bytes:
    """A field of a number, an enumeration, or a bool."""
    return varint(number << 3) + varint(value)

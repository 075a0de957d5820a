from typing import Any

import msgspec
import pytest

from indexer.wire.outline import array_header, array_length, fields_of, is_array, kind_of, list_lengths, longest_plain_field, outline_of

pack = msgspec.msgpack.encode


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"\x90", (0, 1)),
        (b"\x9f", (15, 1)),
        (b"\xdc\x00\x10", (16, 3)),
        (b"\xdc\xff\xff\x01", (65_535, 3)),
        (b"\xdd\x00\x01\x00\x00", (65_536, 5)),
        (b"\xdd\xff\xff\xff\xff", (2**32 - 1, 5)),
        (b"", None),
        (b"\x80", None),
        (b"\xc0", None),
        (b"\xde\x00\x10", None),
        (b"\xa0", None),
    ],
)
def test_an_arrays_length_is_in_its_header(header: bytes, expected: tuple[int, int] | None) -> None:
    assert array_header(header) == expected
    assert array_length(header + bytes(9)) == (expected and expected[0])
    assert is_array(header + bytes(9)) == (expected is not None)


@pytest.mark.parametrize(
    ("event", "kind"),
    [
        (["BlockStored", 1, 2], "BlockStored"),
        ({"x": [{}], "type": "BlockRemoved"}, "BlockRemoved"),
        (["News"], "News"),
        (["x" * 32], "x" * 32),
        (["x" * 62], "x" * 62),
        (["x" * 63], ""),
        (["x" * 70_000], ""),
        ([b"x" * 70_000], None),
        ([["BlockStored"]], None),
        ({"type": None}, None),
    ],
)
def test_the_kind_is_the_type_where_that_is_a_text(event: Any, kind: str | None) -> None:
    assert kind_of(outline_of(pack(event)).type) == kind


def test_a_type_that_is_no_utf_8_is_none() -> None:
    assert kind_of(outline_of(b"\x91\xa2\xff\xff").type) is None


@pytest.mark.parametrize("event", [[], {}, {"kind": "BlockStored"}, 5, None, "BlockStored"])
def test_what_has_no_type_has_no_outline(event: Any) -> None:
    with pytest.raises(msgspec.DecodeError):
        outline_of(pack(event))


def test_lists_are_measured_by_their_items_and_all_else_by_its_bytes() -> None:
    stored = {"type": "BlockStored", "block_hashes": [1] * 20, "token_ids": [1] * 70_000, "medium": "gpu", "lora_name": "x" * 40, "extra_keys": 5}
    outline = outline_of(pack(stored))
    assert list_lengths(fields_of(outline)) == {"block_hashes": 20, "token_ids": 70_000, "extra_keys": 0}
    assert longest_plain_field(fields_of(outline)) == 42  # the text and a header of two bytes


def test_the_fields_of_a_removed_array_are_measured_too() -> None:
    outline = outline_of(pack(["BlockRemoved", [1] * 20, "x" * 100]))
    assert list_lengths(fields_of(outline))["block_hashes"] == 20
    assert longest_plain_field(fields_of(outline)) == 102

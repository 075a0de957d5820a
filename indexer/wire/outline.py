"""An event's outline: its fields, still encoded.

msgspec builds a Python object of up to 80 bytes for each byte of a payload before any limit of ours is asked. What is skipped or left
encoded costs nothing, so the outline says what an event is and how much would be built from it.
"""

from collections.abc import Mapping
from typing import Any

from msgspec import Raw, Struct
from msgspec.msgpack import Decoder

NIL = Raw(b"\xc0")
# A longer word is the type of no event that we know.
KIND_BYTES_MAX = 64
ARRAY_HEADER_BYTES_MAX = 5


class _OutlineArray(Struct, array_like=True, gc=False):
    """Positions of a stored event; those of a removed one are the same up to the hashes, and short from there on."""

    type: Raw
    block_hashes: Raw = NIL
    parent_block_hash: Raw = NIL
    token_ids: Raw = NIL
    block_size: Raw = NIL
    lora_id: Raw = NIL
    medium: Raw = NIL
    lora_name: Raw = NIL
    extra_keys: Raw = NIL
    group_idx: Raw = NIL
    kv_cache_spec_kind: Raw = NIL


class _OutlineMap(Struct, gc=False):
    type: Raw
    block_hashes: Raw = NIL
    parent_block_hash: Raw = NIL
    token_ids: Raw = NIL
    block_size: Raw = NIL
    lora_id: Raw = NIL
    medium: Raw = NIL
    lora_name: Raw = NIL
    extra_keys: Raw = NIL
    group_idx: Raw = NIL
    kv_cache_spec_kind: Raw = NIL
    locality: Raw = NIL
    cache_salt: Raw = NIL


Outline = _OutlineArray | _OutlineMap
LISTS = ("block_hashes", "token_ids", "extra_keys")
# They are looked at when they are read, or not at all.
OTHER_FIELDS = ("lookahead_token_ids", "kv_cache_spec_sliding_window", "ownership", "session_id")

_decode_array = Decoder(_OutlineArray).decode
_decode_map = Decoder(_OutlineMap).decode
_decode_anything = Decoder().decode


def outline_of(event: Raw | bytes) -> Outline:
    """Raises what msgspec's decoders raise, for what is neither an array nor a map with a type."""
    return _decode_array(event) if is_array(event) else _decode_map(event)


def kind_of(encoded: Raw) -> str | None:
    """The type of an event, None where that is no text; empty where it is longer than any that we know."""
    if len(encoded) > KIND_BYTES_MAX:
        return "" if memoryview(encoded)[0] in (0xD9, 0xDA, 0xDB) else None
    try:
        kind: Any = _decode_anything(encoded)
    except UnicodeDecodeError:
        return None
    return kind if isinstance(kind, str) else None


def fields_of(outline: Outline) -> dict[str, Raw]:
    """Its fields by their names."""
    return {name: getattr(outline, name) for name in outline.__struct_fields__}


def list_lengths(fields: Mapping[str, Raw]) -> dict[str, int]:
    """How many items each list has, by its header; 0 for what is no list."""
    return {name: array_length(fields.get(name, NIL)) or 0 for name in LISTS}


def longest_plain_field(fields: Mapping[str, Raw]) -> int:
    """The bytes of the longest field that is no list, of those that are read whole."""
    return max(len(field) for name, field in fields.items() if name not in LISTS and name not in OTHER_FIELDS)


def is_array(item: Raw | bytes) -> bool:
    """Whether this is an array, by its first byte."""
    return array_header(memoryview(item)[:1].tobytes()) is not None


def array_length(item: Raw | bytes) -> int | None:
    """How many items an encoded array has, by its header; None for anything else."""
    header = array_header(memoryview(item)[:ARRAY_HEADER_BYTES_MAX].tobytes())
    return None if header is None else header[0]


def array_header(start: bytes) -> tuple[int, int] | None:
    """How many items an encoded array has, and how many bytes its header; None for anything else."""
    first = start[0] if start else 0
    if first >> 4 == 0x9:
        return first & 0x0F, 1
    if first == 0xDC:
        return int.from_bytes(start[1:3], "big"), 3
    if first == 0xDD:
        return int.from_bytes(start[1:5], "big"), 5
    return None

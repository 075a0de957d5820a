"""The shapes of payloads on the wire, release by release, and their decoders.

Array position 0 is the type. Fields that a release does not send have their defaults; UNSET tells "not sent" from "sent as nil".
"""

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

GroupNumber = Annotated[int, Meta(ge=0, le=65_535)]
"""Of a KV-cache group."""


class SaltMap(Struct, gc=False):
    """In the position where vLLM sends the LoRA name, SGLang 0.5.18 and 0.5.19 send a map with the cache salt."""

    cache_salt: str | None = None


# Fields of unknown content stay encoded (Raw): decoded into objects, they could take 80 times their bytes.
class StoredArray(Struct, array_like=True, tag="BlockStored", gc=False):
    block_hashes: list[int | bytes]
    parent_block_hash: int | bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | SaltMap | None = None
    extra_keys: Raw | UnsetType = UNSET
    group_idx: GroupNumber | None = None
    kv_cache_spec_kind: str | None = None
    kv_cache_spec_sliding_window: Raw | UnsetType = UNSET


class RemovedArray(Struct, array_like=True, tag="BlockRemoved", gc=False):
    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: GroupNumber | None = None


class ClearedArray(Struct, array_like=True, tag="AllBlocksCleared", gc=False):
    pass


class StoredMap(Struct, tag="BlockStored", gc=False):
    block_hashes: list[int | bytes]
    token_ids: list[int]
    block_size: int
    parent_block_hash: int | bytes | None = None
    lora_id: int | None = None
    medium: str | None = None
    lora_name: str | None = None
    extra_keys: Raw | UnsetType = UNSET
    group_idx: GroupNumber | UnsetType | None = UNSET
    kv_cache_spec_kind: str | None = None
    locality: str | None = None
    cache_salt: str | None = None
    kv_cache_spec_sliding_window: Raw | UnsetType = UNSET
    ownership: Raw | UnsetType = UNSET
    session_id: Raw | UnsetType = UNSET
    lookahead_token_ids: Raw | UnsetType = UNSET


class RemovedMap(Struct, tag="BlockRemoved", gc=False):
    block_hashes: list[int | bytes]
    medium: str | None = None
    group_idx: GroupNumber | None = None
    locality: str | None = None
    ownership: Raw | UnsetType = UNSET


class ClearedMap(Struct, tag="AllBlocksCleared", gc=False):
    pass


# The same types without unknown fields: if one of these decodes a payload, nothing in it is unknown.
class StoredArrayExact(StoredArray, tag="BlockStored", forbid_unknown_fields=True, gc=False):
    pass


class RemovedArrayExact(RemovedArray, tag="BlockRemoved", forbid_unknown_fields=True, gc=False):
    pass


class ClearedArrayExact(ClearedArray, tag="AllBlocksCleared", forbid_unknown_fields=True, gc=False):
    pass


class StoredMapExact(StoredMap, tag="BlockStored", forbid_unknown_fields=True, gc=False):
    pass


class RemovedMapExact(RemovedMap, tag="BlockRemoved", forbid_unknown_fields=True, gc=False):
    pass


class ClearedMapExact(ClearedMap, tag="AllBlocksCleared", forbid_unknown_fields=True, gc=False):
    pass


# The same with tokens that are still encoded, as the compiled core takes them.
class StoredArrayEncoded(StoredArrayExact, tag="BlockStored", forbid_unknown_fields=True, gc=False):
    token_ids: Raw  # type: ignore[assignment]


class StoredMapEncoded(StoredMapExact, tag="BlockStored", forbid_unknown_fields=True, gc=False):
    token_ids: Raw  # type: ignore[assignment]


# The same with tokens that are no integers, or not all.
class StoredArrayOfPairs(StoredArray, tag="BlockStored", gc=False):
    token_ids: list[tuple[int, int]]  # type: ignore[assignment]


class StoredMapOfPairs(StoredMap, tag="BlockStored", gc=False):
    token_ids: list[tuple[int, int]]  # type: ignore[assignment]


class StoredArrayOfAnything(StoredArray, tag="BlockStored", gc=False):
    token_ids: list[Any]


class StoredMapOfAnything(StoredMap, tag="BlockStored", gc=False):
    token_ids: list[Any]


ArrayEvent = StoredArrayExact | RemovedArrayExact | ClearedArrayExact
MapEvent = StoredMapExact | RemovedMapExact | ClearedMapExact


# `publisher_id` is not read: vLLM's proposal for snapshots (github.com/vllm-project/vllm/pull/57789) ends each batch with it.
NIL = Raw(b"\xc0")


class ArrayBatch(Struct, array_like=True, forbid_unknown_fields=True):
    ts: float
    events: list[ArrayEvent]
    data_parallel_rank: int | None = None
    publisher_id: Raw = NIL


class MapBatch(Struct, array_like=True, forbid_unknown_fields=True):
    ts: float
    events: list[MapEvent]
    data_parallel_rank: int | None = None
    publisher_id: Raw = NIL


class ArrayBatchEncoded(Struct, array_like=True, forbid_unknown_fields=True):
    ts: float
    events: list[StoredArrayEncoded | RemovedArrayExact | ClearedArrayExact]
    data_parallel_rank: int | None = None
    publisher_id: Raw = NIL


class MapBatchEncoded(Struct, array_like=True, forbid_unknown_fields=True):
    ts: float
    events: list[StoredMapEncoded | RemovedMapExact | ClearedMapExact]
    data_parallel_rank: int | None = None
    publisher_id: Raw = NIL


class RawBatch(Struct, array_like=True):
    ts: Raw
    events: Raw
    data_parallel_rank: Raw = NIL
    publisher_id: Raw = NIL


class RawBatchAsMap(Struct):
    ts: Raw
    events: Raw
    data_parallel_rank: Raw = NIL
    publisher_id: Raw = NIL


class RawBatchExact(RawBatch, array_like=True, forbid_unknown_fields=True):
    pass


class RawBatchAsMapExact(RawBatchAsMap, forbid_unknown_fields=True):
    pass


decode_array_batch = msgspec.msgpack.Decoder(ArrayBatch).decode
decode_map_batch = msgspec.msgpack.Decoder(MapBatch).decode
decode_array_batch_encoded = msgspec.msgpack.Decoder(ArrayBatchEncoded).decode
decode_map_batch_encoded = msgspec.msgpack.Decoder(MapBatchEncoded).decode
decode_raw_batch = msgspec.msgpack.Decoder(RawBatch).decode
decode_raw_batch_as_map = msgspec.msgpack.Decoder(RawBatchAsMap).decode
decode_raw_batch_exact = msgspec.msgpack.Decoder(RawBatchExact).decode
decode_raw_batch_as_map_exact = msgspec.msgpack.Decoder(RawBatchAsMapExact).decode
decode_array_event = msgspec.msgpack.Decoder(ArrayEvent).decode
decode_map_event = msgspec.msgpack.Decoder(MapEvent).decode
decode_array_event_encoded = msgspec.msgpack.Decoder(StoredArrayEncoded | RemovedArrayExact | ClearedArrayExact).decode
decode_map_event_encoded = msgspec.msgpack.Decoder(StoredMapEncoded | RemovedMapExact | ClearedMapExact).decode
decode_lenient_array_event = msgspec.msgpack.Decoder(StoredArray | RemovedArray | ClearedArray).decode
decode_lenient_map_event = msgspec.msgpack.Decoder(StoredMap | RemovedMap | ClearedMap).decode
decode_array_of_pairs = msgspec.msgpack.Decoder(StoredArrayOfPairs).decode
decode_map_of_pairs = msgspec.msgpack.Decoder(StoredMapOfPairs).decode
decode_array_of_anything = msgspec.msgpack.Decoder(StoredArrayOfAnything).decode
decode_map_of_anything = msgspec.msgpack.Decoder(StoredMapOfAnything).decode
decode_raw_list = msgspec.msgpack.Decoder(list[Raw]).decode
decode_token_lists = msgspec.msgpack.Decoder(list[list[Annotated[int, Meta(ge=0, le=2**32 - 1)]]]).decode
decode_anything = msgspec.msgpack.Decoder().decode

# What a decoder raises for bytes that do not encode its type; text that is not UTF-8 raises no DecodeError.
UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError)

FIELDS = {
    "BlockStored": (("type", *StoredArray.__struct_fields__), ("type", *StoredMap.__struct_fields__)),
    "BlockRemoved": (("type", *RemovedArray.__struct_fields__), ("type", *RemovedMap.__struct_fields__)),
    "AllBlocksCleared": (("type",), ("type",)),
}
"""Type of an event → the names of its fields in array form, in their order, and in map form."""

KNOWN_EVENTS = tuple(FIELDS)

WireEvent = StoredArray | RemovedArray | ClearedArray | StoredMap | RemovedMap | ClearedMap


def read_anything(raw: Raw | bytes) -> Any:
    """Whatever this encodes; None also where it cannot be decoded."""
    try:
        return decode_anything(raw)
    except (*UNREADABLE, ValueError, TypeError):
        return None

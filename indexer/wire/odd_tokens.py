"""Events whose tokens are not all integers: as much of them is used as can be.

pairs      [[t0, t1], [t1, t2], …]    EAGLE under SGLang: each token with the next one. The first ones are the block's
others     [t0, t1, "digest", …]      TensorRT-LLM's digests of images, or what is no token at all: the blocks before it are used
"""

from collections.abc import Callable

from msgspec import UNSET, Raw, UnsetType, msgpack

from indexer.wire.types import (
    UNREADABLE,
    StoredArray,
    StoredMap,
    decode_array_of_anything,
    decode_array_of_pairs,
    decode_map_of_anything,
    decode_map_of_pairs,
    decode_raw_list,
)

# A pair takes up to 25 times its bytes, anything else up to 80 times.
PAIRS_BYTES_MAX = 4 * 2**20
ANYTHING_BYTES_MAX = 262_144

TOKEN_MAX = 2**32 - 1

_Stored = StoredArray | StoredMap
_Decode = Callable[[Raw | bytes], _Stored]


def read_pairs(raw: Raw | bytes, *, is_array: bool) -> _Stored | None:
    """The event with the first token of each pair; None where its tokens are no pairs of integers."""
    event = _decode(decode_array_of_pairs if is_array else decode_map_of_pairs, raw, PAIRS_BYTES_MAX)
    if event is not None:
        pairs: list[tuple[int, int]] = event.token_ids  # type: ignore[assignment]
        event.token_ids = [first for first, _ in pairs]
    return event


def read_good_part(raw: Raw | bytes, *, is_array: bool) -> _Stored | None:
    """The event with the blocks before the first that has no integers for tokens; None where there are none."""
    event = _decode(decode_array_of_anything if is_array else decode_map_of_anything, raw, ANYTHING_BYTES_MAX)
    return None if event is None or not cut_to_good_blocks(event) else event


def cut_to_good_blocks(event: _Stored) -> bool:
    """Leave the blocks before the first with a token that is none. Returns whether there are any."""
    if event.block_size <= 0 or len(event.token_ids) != len(event.block_hashes) * event.block_size:
        return False
    good = next((position for position, token in enumerate(event.token_ids) if type(token) is not int or not 0 <= token <= TOKEN_MAX), None)
    blocks = len(event.block_hashes) if good is None else good // event.block_size
    event.block_hashes, event.token_ids = event.block_hashes[:blocks], event.token_ids[: blocks * event.block_size]
    event.extra_keys = cut_extra_keys(event.extra_keys, blocks)
    return blocks > 0


def cut_extra_keys(extra_keys: Raw | UnsetType, blocks: int) -> Raw | UnsetType:
    """Those of the first blocks."""
    if isinstance(extra_keys, UnsetType):
        return UNSET
    try:
        return Raw(msgpack.encode(decode_raw_list(extra_keys)[:blocks]))
    except UNREADABLE:
        return extra_keys


def _decode(decode: _Decode, raw: Raw | bytes, bytes_max: int) -> _Stored | None:
    if len(raw) > bytes_max:
        return None
    try:
        return decode(raw)
    except UNREADABLE:
        return None

"""Payloads for the tests of the wire, and what they decode to."""

import struct
from typing import Any

import msgspec

from indexer.core.events import Cleared, Event, Removed, Stored
from indexer.limits import WireLimits
from indexer.wire.decoder import Batch, WireDecoder

MAX = 2**64 - 1
# The last 8 of the 32 bytes 00 01 .. 1f.
SHA = 0x18191A1B1C1D1E1F

pack = msgspec.msgpack.encode


def decode(payload: bytes, **limits: int) -> Batch:
    return WireDecoder(WireLimits(**limits)).decode(payload)


def decode_events(*events: Any, **limits: int) -> Batch:
    return decode(pack([1.5, list(events), 0]), **limits)


def plain(event: Event) -> tuple[Any, ...]:
    """An event with its tokens and extra keys unpacked."""
    match event:
        case Stored():
            tokens = list(struct.unpack(f"<{len(event.tokens) // 4}I", event.tokens))
            extra = {position: msgspec.msgpack.decode(folded) for position, folded in (event.extra_keys or {}).items()}
            what = event.hashes, event.parent, tokens, event.block_size, event.tier, event.lora_name, extra
            return "stored", *what, event.announces_extra_keys, event.group, event.kind
        case Removed():
            return "removed", event.hashes, event.tier, event.group
        case Cleared():
            return ("cleared",)


def stored_map(**fields: Any) -> dict[str, Any]:
    return {"type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1, 2], "block_size": 2} | fields


def stored_array(hashes: Any = (1,), parent: Any = None, tokens: Any = (1, 2), block_size: Any = 2, *more: Any) -> list[Any]:
    return ["BlockStored", hashes, parent, tokens, block_size, *more]


def only(*events: Any) -> Stored:
    (event,) = decode_events(*events).events
    assert isinstance(event, Stored)
    return event

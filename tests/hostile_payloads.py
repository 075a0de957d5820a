"""Payloads as large as a message may be, made to cost a decoder as much memory as they can: each byte is an item, or becomes one.

`python -m tests.hostile_payloads NAME` decodes one in a process of its own and prints how much memory that took at its peak.
"""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec

from indexer.errors import Refused
from indexer.limits import WireLimits
from indexer.wire.decoder import WireDecoder

SIZE = 32 * 2**20
pack = msgspec.msgpack.encode
NIL, EMPTY_ARRAY, EMPTY_MAP = b"\xc0", b"\x90", b"\x80"
STAMP = b"\xcb" + struct.pack(">d", 1.5)
GOOD = pack({"type": "BlockStored", "block_hashes": [7], "parent_block_hash": None, "token_ids": [1, 2], "block_size": 2, "group_idx": 0})


def array(*items: bytes) -> bytes:
    """Items, encoded already, in an array."""
    return b"".join([b"\xdd", struct.pack(">I", len(items)), *items])


def repeated(item: bytes, count: int | None = None) -> bytes:
    """An array of the same item over and over: as often as there is room for."""
    if count is None:
        count = (SIZE - 1_000) // len(item)
    return b"".join([b"\xdd", struct.pack(">I", count), item * count])


def mapping(**fields: bytes) -> bytes:
    return b"".join([bytes([0x80 + len(fields)]), *(part for name, value in fields.items() for part in (pack(name), value))])


def long_text(encoded: str) -> bytes:
    """A text that fills the payload, all of this character but for one that makes each of its characters take four bytes."""
    data = "\U0001f600".encode() + encoded.encode() * ((SIZE - 1_000) // len(encoded.encode()))
    return b"".join([b"\xdb", struct.pack(">I", len(data)), data])


def batch(*events: bytes, more: bytes = NIL) -> bytes:
    return b"".join([b"\x93", STAMP, array(*events), more])


def between(event: bytes) -> bytes:
    """A batch with a good event before and a good one behind this."""
    return batch(GOOD, event, GOOD)


def stored(**fields: bytes) -> bytes:
    """A BlockStored in map form, every field given encoded."""
    plain = {"type": pack("BlockStored"), "block_hashes": b"\x91\x01", "token_ids": b"\x92\x01\x02", "block_size": b"\x02"}
    return mapping(**{**plain, **fields})


def stored_array(*fields: bytes) -> bytes:
    return array(pack("BlockStored"), *fields)


def full_events(event: bytes) -> bytes:
    """A good event, then this one as often as there is room for."""
    return batch(GOOD, *[event] * ((SIZE - 1_000) // len(event)))


EXTRA_KEYS = b"\xdc\x01\xf0" + EMPTY_MAP * 496
HASH, TOKEN = b"\xcd\x7f\xff", b"\xcd\x7f\xff"  # the shortest encodings of numbers that are objects of their own
DEEP = 40  # well within what the decoder takes
NESTED = b"\x91" * DEEP + NIL

# Name → how to make it, the reason it is refused for (None: not at all), and how many of its events are good.
PAYLOADS: dict[str, tuple[Callable[[], bytes], str | None, int]] = {
    "nil for events": (lambda: b"\x93" + STAMP + repeated(NIL) + NIL, "batch_events", 0),
    "empty arrays for events": (lambda: b"\x93" + STAMP + repeated(EMPTY_ARRAY) + NIL, "batch_events", 0),
    "empty maps for events": (lambda: b"\x93" + STAMP + repeated(EMPTY_MAP) + NIL, "batch_events", 0),
    "a million events": (lambda: b"\x93" + STAMP + repeated(pack(["AllBlocksCleared"]), 1_000_000) + NIL, "batch_events", 0),
    "as many empty events as allowed": (lambda: batch(*[stored_array(EMPTY_ARRAY, NIL, EMPTY_ARRAY, b"\0")] * 100_000), None, 100_000),
    "as many malformed events as allowed": (lambda: batch(GOOD, *[array(pack("BlockStored"), *[NIL] * 260)] * 99_999), "event_malformed", 1),
    "items for a time stamp": (lambda: b"\x93" + repeated(EMPTY_MAP) + array(GOOD) + NIL, None, 1),
    "items for a rank": (lambda: batch(GOOD, more=repeated(EMPTY_MAP)), None, 1),
    "items in a field of the batch that nobody knows": (lambda: b"\x94" + STAMP + array(GOOD) + NIL + repeated(EMPTY_MAP), None, 1),
    "items in a map batch": (lambda: mapping(ts=STAMP, events=array(GOOD), more=repeated(EMPTY_MAP)), None, 1),
    "items instead of a batch": (lambda: repeated(EMPTY_MAP), "batch_malformed", 0),
    "items in an event that nobody knows": (lambda: between(mapping(type=pack("News"), items=repeated(EMPTY_MAP))), None, 2),
    "nested items in an event that nobody knows": (lambda: between(array(pack("News"), repeated(NESTED))), None, 2),
    "items for a type": (lambda: between(mapping(type=repeated(EMPTY_MAP))), "event_malformed", 2),
    "a long type": (lambda: between(mapping(type=long_text("x"))), None, 2),
    "items for hashes": (lambda: between(stored(block_hashes=repeated(EMPTY_MAP))), "event_limit", 2),
    "items for a hash": (lambda: between(stored(block_hashes=b"\x91" + repeated(EMPTY_MAP))), "event_malformed", 2),
    "items for a parent": (lambda: between(stored(parent_block_hash=repeated(EMPTY_MAP))), "event_limit", 2),
    "items for tokens": (lambda: between(stored(token_ids=repeated(EMPTY_ARRAY))), "event_limit", 2),
    "nested items for a token": (lambda: between(stored(token_ids=b"\x91" + repeated(NESTED))), "event_malformed", 2),
    "items for a medium": (lambda: between(stored(medium=repeated(EMPTY_MAP))), "event_limit", 2),
    "a long medium": (lambda: between(stored(medium=long_text("ΐ"))), "event_limit", 2),
    "a long name": (lambda: between(stored_array(b"\x91\x01", NIL, b"\x92\x01\x02", b"\x02", NIL, NIL, long_text("x"))), "event_limit", 2),
    "a long salt": (lambda: between(stored(cache_salt=long_text("x"))), "event_limit", 2),
    "items beside a salt": (
        lambda: between(stored_array(b"\x91\x01", NIL, b"\x92\x01\x02", b"\x02", NIL, NIL, mapping(more=repeated(EMPTY_MAP)))),
        "event_limit",
        2,
    ),
    "items for extra keys": (lambda: between(stored(extra_keys=repeated(EMPTY_MAP))), "extra_keys", 2),
    "items for the extra keys of a block": (lambda: between(stored(extra_keys=b"\x91" + repeated(EMPTY_MAP))), "event_limit", 2),
    "extra keys of many blocks": (
        lambda: between(stored(block_hashes=repeated(b"\x01", 65_536), token_ids=EMPTY_ARRAY, extra_keys=repeated(EXTRA_KEYS, 65_536))),
        "batch_limit",
        2,
    ),
    "short extra keys of as many blocks as allowed": (
        lambda: batch(*[stored(block_hashes=repeated(b"\x01", 65_536), token_ids=EMPTY_ARRAY, extra_keys=repeated(b"\x91\x01", 65_536))] * 9),
        "batch_limit",
        4,
    ),
    "items in a field of an event that nobody knows": (lambda: between(stored(more=repeated(EMPTY_MAP))), None, 3),
    "items for tokens that are not read": (lambda: between(stored(session_id=repeated(EMPTY_MAP))), None, 3),
    "items for lookahead tokens": (lambda: between(stored(lookahead_token_ids=repeated(EMPTY_MAP))), "lookahead", 2),
    "hashes in event after event": (lambda: full_events(array(pack("BlockRemoved"), repeated(HASH, 65_536))), "batch_limit", 4),
    "long hashes": (lambda: between(array(pack("BlockRemoved"), repeated(b"\xc5\x01\x00" + b"\1" * 256, 65_536))), None, 3),
    "tokens beyond an event's": (lambda: between(stored(token_ids=repeated(TOKEN))), "event_limit", 2),
    "as many tokens as allowed": (
        lambda: batch(*[stored_array(repeated(b"\x01", 32), NIL, repeated(TOKEN, 2_097_152), b"\xce\x00\x01\x00\x00")] * 5),
        "batch_limit",
        2,
    ),
}


def memory_bytes(what: str, pid: int | str = "self") -> int:
    """`VmRSS`, the resident memory of a process, or `VmHWM`, its peak."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(what))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Print the growth of the resident memory in bytes, what was refused, and how many events are good."""
    make, _, _ = PAYLOADS[sys.argv[1]]
    payload = make()
    assert len(payload) <= SIZE, len(payload)
    # Making it took more than decoding may.
    Path("/proc/self/clear_refs").write_text("5")
    before = memory_bytes("VmRSS")
    try:
        batch = WireDecoder(WireLimits()).decode(payload)
        refused, good = dict(batch.refused), len(batch.events)
    except Refused as error:
        refused, good = {error.reason: 1}, 0
    sys.stdout.write(json.dumps({"growth": memory_bytes("VmHWM") - before, "refused": refused, "good": good}))


if __name__ == "__main__":
    main()

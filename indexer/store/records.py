"""What lies in Redis, byte for byte.

All integers are little-endian.

field of a block    engine hash u64, and behind it the slot of its KV-cache group u8 if that is not the lead group
block               copies u8 | flags u8 | parent u64, 0 without one | block key u64 | further keys that it covers u64 …     18 bytes and more
                    flags: 1 it has a parent; 2 the last u64 is no key but what the engine calls the block; the other six bits: how many keys
                    back its parent is, 0 for 1
field of a parked block, and of a removed one    engine hash u64
field of a parked copy under a foreign hash      that hash u64, and behind it 1 u8
parked block        msgpack of `ParkedRecord`, or of `ForeignRecord`
removed block       as a block, with 0 copies
state hash          gen, fence, number: decimal texts, for scripts to compare; lengths: fields per part, decimal, joined by commas;
                    head: msgpack of `Head`; status: JSON of the stream's status
entry of the log    field e: msgpack of `Entry`, or of `TracedEntry`
"""

import sys
from array import array
from collections.abc import Iterable
from enum import StrEnum
from struct import Struct as Layout

import msgspec
from msgspec import Struct

from indexer.core.block_table import BlockRecord
from indexer.core.change import Change, HashMapping
from indexer.core.groups import LEAD, CacheShape
from indexer.core.names import Trust
from indexer.core.traits import Traits

# A change of more blocks goes into the log as `reload`: followers load the stream instead.
ENTRY_BLOCKS_MAX = 1_024

_BLOCK = Layout("<BBQQ")
_FIELD_AND_BLOCK = Layout("<QBBQQ").pack
_HASH = Layout("<Q").pack
_HASH_AND_SLOT = Layout("<QB").pack
HASH_BYTES = 8
HAS_PARENT, IS_SALTED, SPAN_SHIFT = 1, 2, 2


def encode_hash(engine_hash: int) -> bytes:
    return _HASH(engine_hash)


def decode_hash(field: bytes) -> int:
    return int.from_bytes(field[:HASH_BYTES], "little")


def encode_field(engine_hash: int, slot: int) -> bytes:
    """The field of a block."""
    return _HASH_AND_SLOT(engine_hash, slot) if slot else _HASH(engine_hash)


def slot_of_field(field: bytes) -> int:
    """The slot of the group that a block's field names."""
    return field[HASH_BYTES] if len(field) > HASH_BYTES else 0


def encode_plain(engine_hash: int, copies: int, parent: int | None, key: int) -> bytes:
    """Field and value of a block that covers itself only, as nearly all do: 26 bytes, always."""
    return _FIELD_AND_BLOCK(engine_hash, copies, 0, 0, key) if parent is None else _FIELD_AND_BLOCK(engine_hash, copies, 1, parent, key)


def encode_record(record: BlockRecord) -> bytes:
    """The value of any block."""
    parent, engine_hash = record.parent, record.engine_hash
    flags = (HAS_PARENT if parent is not None else 0) | (IS_SALTED if engine_hash is not None else 0)
    flags |= record.span << SPAN_SHIFT if record.span > 1 else 0
    more = record.keys[1:] if engine_hash is None else (*record.keys[1:], engine_hash)
    own = _BLOCK.pack(record.copies, flags, parent or 0, record.keys[0])
    return own + pack_keys(more) if more else own


def decode_block(value: bytes) -> BlockRecord:
    """Raises ValueError for what is no block."""
    if len(value) < _BLOCK.size:
        raise ValueError(f"a block has at least {_BLOCK.size} bytes")
    copies, flags, parent, key = _BLOCK.unpack_from(value)
    more = unpack_keys(value[_BLOCK.size :]) if len(value) > _BLOCK.size else []
    engine_hash = more.pop() if flags & IS_SALTED and more else None
    return BlockRecord(copies, parent if flags & HAS_PARENT else None, (key, *more), engine_hash, max(1, flags >> SPAN_SHIFT))


def keys_of_block(value: bytes) -> bytes:
    """The block keys that a block covers, packed."""
    return value[10:-8] if len(value) > _BLOCK.size and value[1] & IS_SALTED else value[10:]


def pack_keys(keys: Iterable[int]) -> bytes:
    """64-bit block keys, little-endian."""
    packed = array("Q", keys)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def unpack_keys(packed: bytes) -> list[int]:
    """Raises ValueError where the bytes are no multiple of 8."""
    keys = array("Q")
    keys.frombytes(packed)
    if sys.byteorder == "big":
        keys.byteswap()
    return keys.tolist()


class ParkedRecord(Struct, frozen=True, array_like=True):
    """A block that waits for its key. `since_ms`: Unix time. `copies`: group and tier, as `core.orphans` numbers them → count."""

    parent: int | None
    tokens: bytes
    extra: bytes
    since_ms: int
    copies: dict[int, int]


class ForeignRecord(Struct, frozen=True, array_like=True):
    """A `ForeignCopy` that waits for the gpu. `since_ms`: Unix time. `tokens`: empty once the keys are known."""

    parent: int | None
    root: int
    tokens: bytes
    place: int
    since_ms: int
    keys: tuple[int, ...] | None


class Head(Struct, frozen=True, array_like=True):
    """The part of a stream's state that goes with each batch.

    `sequence`, `fingerprint`: the last applied batch. `complete`: whether nothing is missing as far as the owner knows. The rest is what
    reading the engine's events depends on.
    """

    sequence: int | None
    fingerprint: bytes | None
    complete: bool
    trust: Trust
    counting: str
    hash_seed: str
    traits: Traits
    is_simulator: bool = False


class Kind(StrEnum):
    """What an entry of the log says."""

    CHANGE = "c"
    """These blocks changed."""
    RELOAD = "r"
    """Too much to write down, or a new generation: load the stream's state and blocks."""
    DROP = "d"
    """A new generation that holds nothing."""
    GONE = "g"
    """The stream was deleted."""


PackedTiers = tuple[tuple[bytes, bytes], ...]
"""Per tier, block keys that are held, packed, and such that are not."""


class Entry(Struct, frozen=True, array_like=True):
    """One change of one stream, with what it follows.

    `generation`, `fence`, `number`: the state after it; `after_fence`, `after_number`: the state that it was made from, in the same
    generation. `shape`: how the stream's blocks are cut. `tiers`: per tier, the packed keys of the lead group held afterwards and those not held;
    `tiers_in`: slot of another group → the same. `hash_mapping`: engine hashes and, behind all of them, their
    block keys, packed; `removed_hashes`: engine hashes that no longer map to a block; None where the owner does not send them. `sequence`: of the
    engine's last batch in it, None where it is not sent.
    """

    stream: str
    kind: Kind
    generation: int
    fence: int
    number: int
    after_fence: int
    after_number: int
    trust: Trust
    shape: CacheShape | None
    cleared: bool = False
    tiers: PackedTiers = ()
    tiers_in: dict[int, PackedTiers] = {}
    hash_mapping: bytes | None = None
    removed_hashes: bytes | None = None
    sequence: int | None = None


class TracedEntry(Entry, frozen=True, array_like=True):
    """One with batches that are kept in traces: `spans` of these, packed as `indexer.tracing.current` says. Else the field is not there."""

    spans: bytes = b""


def pack_mapping(mapping: HashMapping) -> tuple[bytes, bytes]:
    """As `hash_mapping` and `removed_hashes` of an entry."""
    return pack_keys((*mapping.keys, *mapping.keys.values())), pack_keys(mapping.removed_hashes)


def _mapping_of(entry: Entry) -> HashMapping | None:
    if entry.hash_mapping is None or entry.removed_hashes is None:
        return None
    packed = unpack_keys(entry.hash_mapping)
    half, odd = divmod(len(packed), 2)
    if odd:
        raise ValueError("each engine hash has a block key")
    return HashMapping(dict(zip(packed[:half], packed[half:], strict=True)), unpack_keys(entry.removed_hashes))


def pack_tiers(touched: Iterable[dict[int, bool]]) -> PackedTiers:
    """A change's `touched`, per tier."""
    packed = []
    for keys in touched:
        if not keys:
            packed.append((b"", b""))
        elif False in keys.values():
            packed.append((pack_keys(key for key, held in keys.items() if held), pack_keys(key for key, held in keys.items() if not held)))
        else:
            packed.append((pack_keys(keys), b""))
    return tuple(packed)


def change_of(entry: Entry) -> Change:
    """The change in an entry of kind CHANGE."""
    change = Change()
    change.cleared, change.sequence = entry.cleared, entry.sequence
    for slot, tiers in ((LEAD, entry.tiers), *entry.tiers_in.items()):
        for touched, (held, gone) in zip(change.touched_of(slot), tiers, strict=True):
            touched.update(dict.fromkeys(unpack_keys(held), True))
            touched.update(dict.fromkeys(unpack_keys(gone), False))
    change.hash_mapping = _mapping_of(entry)
    return change


encode_head = encode_entry = encode_parked = encode_foreign = msgspec.msgpack.Encoder().encode
decode_head = msgspec.msgpack.Decoder(Head).decode
decode_entry = msgspec.msgpack.Decoder(TracedEntry).decode
decode_parked = msgspec.msgpack.Decoder(ParkedRecord).decode
decode_foreign = msgspec.msgpack.Decoder(ForeignRecord).decode

"""The wire: frames and payloads as engines send them, turned into events.

Source of every rule: what vLLM 0.9 to 0.33, SGLang 0.5.2 to 0.5.23 and TensorRT-LLM send. Arrays and maps, hashes as unsigned or
signed integers or as bytes, fields that come and go. One bad event never costs its batch: the batch is first decoded whole, and only if
that fails event by event, where each refusal is counted under its reason.
"""

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from indexer.core.block_keys import fold_extra_keys, read_extra_keys
from indexer.core.events import HASH_MASK, Cleared, Event, Removed, Stored, Tier
from indexer.errors import Refused
from indexer.limits import WireLimits
from indexer.wire.outline import Outline, array_header, array_length, is_array, kind_of, list_lengths, longest_plain_field, outline_of
from indexer.wire.splitter import split_events
from indexer.wire.types import (
    KNOWN_EVENTS,
    UNREADABLE,
    RawBatch,
    RawBatchAsMap,
    RemovedArray,
    RemovedMap,
    SaltMap,
    StoredArray,
    StoredMap,
    WireEvent,
    decode_anything,
    decode_array_batch,
    decode_array_event,
    decode_lenient_array_event,
    decode_lenient_map_event,
    decode_map_batch,
    decode_map_event,
    decode_raw_batch,
    decode_raw_batch_as_map,
    decode_raw_batch_as_map_exact,
    decode_raw_batch_exact,
    decode_raw_list,
)

END_OF_REPLAY = b"\xff" * 8
NIL = b"\xc0"
# What is said where one block has no extra keys: nil, an empty array, or an array of one nil.
NO_EXTRA_KEYS = (b"\x91\xc0", NIL, b"\x90")

# The engine's word for where a block lies, in upper case; no word means GPU, an unknown one a lower tier.
TIER_OF_MEDIUM = {
    "GPU": Tier.GPU,
    "CPU": Tier.CPU,
    "CPU_PINNED": Tier.CPU,
    "DISK": Tier.DISK,
    "STORAGE": Tier.DISK,
    "FS": Tier.DISK,
    "OBJ": Tier.DISK,
}


# Up to so many bytes a batch is decoded in one call: what that builds is at most 14 times as large. In a larger one each event is measured first.
WHOLE_BYTES_MAX = 2**20
# In an event that is no larger nobody measures anything.
UNMEASURED_BYTES_MAX = 65_536
# A malformed event that is no larger is looked into for the reason: what that builds is up to 80 times as large.
LOOKED_INTO_BYTES_MAX = 262_144
# The longest encoding of a character, and of the header of a text.
CHARACTER_BYTES_MAX, TEXT_HEADER_BYTES_MAX = 4, 5
# In a batch, so many times the extra keys of one block.
EXTRA_KEYS_OF_A_BATCH = 128
# The longest encoding of a number.
NUMBER_BYTES_MAX = 9


class Refusals(Counter[str]):
    """Reason → number of events. Made for every batch, most of which refuse nothing: Counter's own start would cost half of a small batch."""

    def __init__(self) -> None:
        pass


class Batch(Struct):
    """One decoded payload.

    `published_at_s`: the engine's clock, Unix seconds, None where it is not usable. `rank`: the batch's own data-parallel rank. `refused`:
    reason → number of events. `unknown_events` and `unknown_fields`: things that this release of ours does not know, passed over.
    """

    events: list[Event]
    published_at_s: float | None = None
    rank: int | None = None
    refused: Refusals = msgspec.field(default_factory=Refusals)
    unknown_events: int = 0
    unknown_fields: int = 0


def split_frames(frames: Sequence[bytes]) -> tuple[int, bytes]:
    """The sequence number and the payload of one live message, `[topic, sequence, payload]`.

    Raises Refused.
    """
    if len(frames) != 3:
        raise Refused("frame_count")
    if len(frames[1]) != 8 or frames[1] == END_OF_REPLAY:
        raise Refused("frame_sequence")
    return int.from_bytes(frames[1], "big"), frames[2]


def split_reply(frames: Sequence[bytes]) -> tuple[int, bytes] | None:
    """The sequence number and the payload of one reply of a replay; None for the end marker.

    Both shapes, with the topic and without it, are read from the end. Raises Refused.
    """
    if len(frames) not in (3, 4):
        raise Refused("frame_count")
    if frames[-2] == END_OF_REPLAY:
        return None
    if len(frames[-2]) != 8:
        raise Refused("frame_sequence")
    return int.from_bytes(frames[-2], "big"), frames[-1]


def pack_tokens(token_ids: list[int]) -> bytes:
    """Token ids as little-endian uint32. Raises OverflowError where one does not fit."""
    packed = array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


# Of known events: the exact one, and the one that passes over unknown fields.
_Decoders = tuple[Callable[[Raw | bytes], WireEvent], Callable[[Raw | bytes], WireEvent]]
DECODERS_OF_ARRAYS: _Decoders = decode_array_event, decode_lenient_array_event
DECODERS_OF_MAPS: _Decoders = decode_map_event, decode_lenient_map_event


class WireDecoder:
    """Decodes the payloads of one stream. It remembers which encoding the engine uses, to try that first."""

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self.is_simulator = False
        """Whether the llm-d simulator's way of writing was seen; it counts its batches from 1."""
        self._decode_first: Callable[[bytes], Any] = decode_map_batch
        self._decode_second: Callable[[bytes], Any] = decode_array_batch
        self._hashes_left = self._tokens_left = self._extra_keys_bytes_left = 0
        self._is_counted = True

    def decode(self, payload: bytes) -> Batch:
        """Raises Refused where the payload is no batch of events."""
        limits = self._limits
        self._hashes_left, self._tokens_left = limits.hashes_per_batch_max, limits.tokens_per_batch_max
        self._extra_keys_bytes_left = EXTRA_KEYS_OF_A_BATCH * limits.extra_keys_bytes_max
        # A hash or a token takes a byte at least: in a small payload there is nothing to count.
        self._is_counted = len(payload) > min(self._hashes_left, self._tokens_left)
        try:
            known = self._decode_whole(payload) if len(payload) <= WHOLE_BYTES_MAX else None
            if known is None:
                return self._decode_apart(payload)
        except RecursionError:
            return self._decode_nested(payload)
        if len(known.events) > self._limits.events_per_batch_max:
            raise Refused("batch_events")
        batch = Batch([], published_at_s=known.ts, rank=known.data_parallel_rank)
        for event in known.events:
            self._add(batch, event)
        return batch

    def _decode_whole(self, payload: bytes) -> Any:
        """The whole batch in one call where every event in it is of a known shape, else None."""
        try:
            return self._decode_first(payload)
        except UNREADABLE:
            pass
        try:
            known = self._decode_second(payload)
        except UNREADABLE:
            return None
        self._decode_first, self._decode_second = self._decode_second, self._decode_first
        return known

    def _decode_apart(self, payload: bytes) -> Batch:
        """Event by event, so that a bad one costs itself only."""
        raw, is_exact = _decode_raw(payload)
        count = array_length(raw.events)
        if count is None:
            raise Refused("batch_malformed")
        if count > self._limits.events_per_batch_max:
            raise Refused("batch_events")
        batch = Batch([], unknown_fields=0 if is_exact else 1)
        stamp, rank = _number(raw.ts), _number(raw.data_parallel_rank)
        if stamp is not None:
            batch.published_at_s = float(stamp)
        if isinstance(rank, int):
            batch.rank = rank
        for event in decode_raw_list(raw.events):
            self._add_raw(batch, event)
        return batch

    def _decode_nested(self, payload: bytes) -> Batch:
        """A batch in which something is nested too deeply for the decoder: whatever is, costs itself only."""
        try:
            events = split_events(payload)
        except ValueError:
            raise Refused("batch_nested") from None
        if len(events) > self._limits.events_per_batch_max:
            raise Refused("batch_events")
        batch = Batch([])
        for event in events:
            try:
                self._add_raw(batch, event)
            except RecursionError:
                batch.refused["event_nested"] += 1
        return batch

    def _add_raw(self, batch: Batch, raw: Raw | bytes) -> None:
        try:
            event = self._read(batch, raw)
        except Refused as refused:
            batch.refused[refused.reason] += 1
        else:
            if event is None:
                batch.unknown_events += 1
            else:
                self._add(batch, event)

    def _read(self, batch: Batch, raw: Raw | bytes) -> WireEvent | None:
        """The event, None where it is of an unknown type. A large one is measured before anything is built from it. Raises Refused."""
        exact, lenient = DECODERS_OF_ARRAYS if is_array(raw) else DECODERS_OF_MAPS
        is_large = len(raw) > UNMEASURED_BYTES_MAX
        try:
            if not is_large:
                return exact(raw)
        except UNREADABLE:
            pass
        outline = _outline_of(raw)
        kind = kind_of(outline)
        if kind is None:
            raise Refused("event_malformed")
        if kind not in KNOWN_EVENTS:
            return None
        try:
            if is_large:
                self._measure(outline)
                return exact(raw)
        except UNREADABLE:
            pass
        try:
            event = lenient(raw)
        except UNREADABLE:
            raise Refused(_why_malformed(raw)) from None
        batch.unknown_fields += 1
        return event

    def _measure(self, outline: Outline) -> None:
        """See that an event of a known type builds no more than the limits allow. Raises Refused."""
        limits, counts = self._limits, list_lengths(outline)
        text_bytes_max = CHARACTER_BYTES_MAX * limits.text_length_max + TEXT_HEADER_BYTES_MAX
        if (
            counts["block_hashes"] > limits.hashes_per_event_max
            or counts["token_ids"] > limits.tokens_per_event_max
            or longest_plain_field(outline) > text_bytes_max
        ):
            raise Refused("event_limit")

    def _spend(self, hashes: int, tokens: int) -> None:
        """Raises Refused for an event beyond what a batch may hold."""
        self._hashes_left -= hashes
        self._tokens_left -= tokens
        if self._hashes_left < 0 or self._tokens_left < 0:
            raise Refused("batch_limit")

    def _add(self, batch: Batch, event: WireEvent) -> None:
        try:
            if isinstance(event, (StoredMap, StoredArray)):
                batch.events.append(self._stored(event))
            elif isinstance(event, (RemovedMap, RemovedArray)):
                if len(event.block_hashes) > self._limits.hashes_per_event_max:
                    raise Refused("event_limit")
                if self._is_counted:
                    self._spend(len(event.block_hashes), 0)
                batch.events.append(Removed(_hashes(event.block_hashes), _tier(event), event.group_idx))
            else:
                batch.events.append(Cleared())
        except Refused as refused:
            batch.refused[refused.reason] += 1

    def _stored(self, event: "StoredArray | StoredMap") -> Stored:
        limits = self._limits
        if len(event.block_hashes) > limits.hashes_per_event_max or len(event.token_ids) > limits.tokens_per_event_max:
            raise Refused("event_limit")
        if self._is_counted:
            self._spend(len(event.block_hashes), len(event.token_ids))
        if not 0 <= event.block_size <= limits.block_size_max:
            raise Refused("block_size")
        parent = event.parent_block_hash
        group: int | UnsetType | None = event.group_idx
        if isinstance(event, StoredMap):
            lora_name, salt = event.lora_name, event.cache_salt
            # SGLang's maps have neither of the two; vLLM's always have the group, even where all extra keys are left out.
            announces_extra_keys = event.extra_keys is not UNSET or group is not UNSET
        else:
            lora_name, salt = _array_isolation(event.lora_name)
            announces_extra_keys = event.extra_keys is not UNSET
            if type(parent) is int and parent == 0:
                parent = None  # the llm-d simulator's word for "none"
                self.is_simulator = True
        if lora_name is None and event.lora_id is not None:
            lora_name = f"#{event.lora_id}"
        if (lora_name or salt) and max(len(lora_name or ""), len(salt or "")) > limits.text_length_max:
            raise Refused("event_limit")
        if event.token_ids and len(event.token_ids) != len(event.block_hashes) * event.block_size:
            raise Refused("unaligned")
        try:
            tokens = pack_tokens(event.token_ids)
        except OverflowError:
            raise Refused("token_range") from None
        return Stored(
            hashes=_hashes(event.block_hashes),
            parent=None if parent is None else _hash(parent),
            tokens=tokens,
            block_size=event.block_size,
            tier=_tier(event),
            lora_name=lora_name or None,
            extra_keys=self._extra_keys(event, lora_name, salt, first_of_prompt=parent is None),
            announces_extra_keys=announces_extra_keys,
            group=None if isinstance(group, UnsetType) else group,
            kind=event.kv_cache_spec_kind,
        )

    def _extra_keys(
        self, event: "StoredArray | StoredMap", lora_name: str | None, salt: str | None, *, first_of_prompt: bool
    ) -> dict[int, bytes] | None:
        encoded = NIL if isinstance(event.extra_keys, UnsetType) else bytes(event.extra_keys)
        entries = None if encoded in NO_EXTRA_KEYS else self._extra_key_entries(encoded, len(event.block_hashes))
        if not entries and not salt:
            return None
        folded: dict[int, bytes] = {}
        for position, entry in entries or ():
            own_and_salt = _anything(entry)
            if not isinstance(own_and_salt, list):
                raise Refused("extra_keys")
            first = first_of_prompt and position == 0
            own, announced_salt = read_extra_keys(own_and_salt, lora_name, first=first)
            extra = _folded(own, (salt or announced_salt) if first else None)
            if len(extra) > self._limits.extra_keys_bytes_max:
                raise Refused("event_limit")
            if extra:
                folded[position] = extra
        if salt and first_of_prompt and 0 not in folded:
            folded[0] = fold_extra_keys([], salt)
        return folded or None

    def _extra_key_entries(self, encoded: bytes, blocks: int) -> Iterable[tuple[int, Raw]]:
        """Blocks' positions in an event with their entries, still encoded; those without any are left out. Raises Refused."""
        header = array_header(encoded)
        if header is None:
            raise Refused("event_malformed")
        count, header_bytes = header
        if count > blocks:
            raise Refused("extra_keys")
        if len(encoded.rstrip(NIL)) <= header_bytes:
            return ()  # they are all nil
        entries = [(position, entry) for position, entry in enumerate(decode_raw_list(encoded)) if bytes(entry) != NIL]
        if max(len(entry) for _, entry in entries) > self._limits.extra_keys_bytes_max:
            raise Refused("event_limit")
        self._extra_keys_bytes_left -= len(encoded)
        if self._extra_keys_bytes_left < 0:
            raise Refused("batch_limit")
        return entries


def _decode_raw(payload: bytes) -> tuple[RawBatch | RawBatchAsMap, bool]:
    """A batch whose events are left as they are, and whether it has no field that is unknown. Raises Refused, RecursionError."""
    is_map = bool(payload) and (payload[0] >> 4 == 0x8 or payload[0] in (0xDE, 0xDF))
    exact, lenient = (decode_raw_batch_as_map_exact, decode_raw_batch_as_map) if is_map else (decode_raw_batch_exact, decode_raw_batch)
    try:
        return exact(payload), True
    except UNREADABLE:
        pass
    try:
        return lenient(payload), False
    except UNREADABLE:
        raise Refused("batch_malformed") from None


def _folded(own: list[Any], salt: str | None) -> bytes:
    try:
        return fold_extra_keys(own, salt)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise Refused("extra_keys") from None


def _array_isolation(position_7: str | SaltMap | None) -> tuple[str | None, str | None]:
    """LoRA name and cache salt from the array position that vLLM and SGLang 0.5.18 use differently."""
    return (None, position_7.cache_salt) if isinstance(position_7, SaltMap) else (position_7, None)


def _tier(event: Any) -> Tier:
    locality = getattr(event, "locality", None)
    if locality is not None and locality.upper() == "REMOTE":
        return Tier.REMOTE
    if event.medium is None:
        return Tier.GPU
    tier = TIER_OF_MEDIUM.get(event.medium.upper())
    return Tier.OTHER if tier is None else tier


def _hashes(values: list[Any]) -> list[int]:
    try:
        if not values or min(values) >= 0:
            return values
        return [value & HASH_MASK for value in values]
    except TypeError:
        return [_hash(value) for value in values]


def _hash(value: int | bytes) -> int:
    """An engine hash as an unsigned 64-bit integer: the low 64 bits, or the last 8 bytes."""
    if isinstance(value, int):
        return value & HASH_MASK
    if len(value) < 8:
        raise Refused("hash_length")
    return int.from_bytes(value[-8:], "big")


def _anything(raw: Raw | bytes) -> Any:
    try:
        return decode_anything(raw)
    except (*UNREADABLE, ValueError, TypeError):
        return None


def _number(raw: Raw) -> float | int | None:
    """The number that this is, None for anything else."""
    value = _anything(raw) if len(raw) <= NUMBER_BYTES_MAX else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _outline_of(raw: Raw | bytes) -> Outline:
    """Raises Refused where it has no type."""
    try:
        return outline_of(raw)
    except UNREADABLE:
        raise Refused("event_malformed") from None


def _why_malformed(raw: Raw | bytes) -> str:
    """The reason of a known event that does not have the types it should have."""
    value = _anything(raw) if len(raw) <= LOOKED_INTO_BYTES_MAX else None
    if isinstance(value, dict):
        tokens, hashes = value.get("token_ids"), value.get("block_hashes")
    elif isinstance(value, list):
        tokens, hashes = value[3] if len(value) > 3 else None, value[1] if len(value) > 1 else None
    else:
        return "event_malformed"
    if isinstance(tokens, list):
        if any(isinstance(token, list) for token in tokens):
            return "token_pairs"  # EAGLE under SGLang
        if any(isinstance(token, str) for token in tokens):
            return "token_text"  # TensorRT-LLM's digests of multimodal content
        if any(not isinstance(token, int) or isinstance(token, bool) for token in tokens):
            return "token_type"
    if isinstance(hashes, list) and any(not isinstance(item, int | bytes) or isinstance(item, bool) for item in hashes):
        return "hash_type"
    return "event_malformed"

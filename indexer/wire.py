"""The wire: frames and payloads as engines send them, turned into events.

Source of every rule: what vLLM 0.9 to 0.33, SGLang 0.5.2 to 0.5.23 and TensorRT-LLM send. Arrays and maps, hashes as unsigned or
signed integers or as bytes, fields that come and go. One bad event never costs its batch: the batch is first decoded whole, and only if
that fails event by event, where each refusal is counted under its reason.
"""

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from indexer.block_keys import fold_extra_keys, read_extra_keys
from indexer.errors import Refused
from indexer.events import HASH_MASK, Cleared, Event, Removed, Stored, Tier
from indexer.msgpack_split import split_events
from indexer.wire_types import (
    KNOWN_EVENTS,
    UNREADABLE,
    RawBatch,
    RawBatchAsMap,
    RemovedArray,
    RemovedMap,
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
)

END_OF_REPLAY = b"\xff" * 8

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


class WireLimits(Struct, frozen=True):
    """What a payload may hold at most."""

    events_per_batch_max: int = 100_000
    hashes_per_event_max: int = 65_536
    tokens_per_event_max: int = 4_194_304
    block_size_max: int = 65_536
    text_length_max: int = 4_096
    extra_keys_bytes_max: int = 65_536


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


class WireDecoder:
    """Decodes the payloads of one stream. It remembers which encoding the engine uses, to try that first."""

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self.is_simulator = False
        """Whether the llm-d simulator's way of writing was seen; it counts its batches from 1."""
        self._decode_first: Callable[[bytes], Any] = decode_map_batch
        self._decode_second: Callable[[bytes], Any] = decode_array_batch

    def decode(self, payload: bytes) -> Batch:
        """Raises Refused where the payload is no batch of events."""
        try:
            known = self._decode_whole(payload)
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
        if len(raw.events) > self._limits.events_per_batch_max:
            raise Refused("batch_events")
        batch = Batch([], unknown_fields=0 if is_exact else 1)
        stamp, rank = _anything(raw.ts), _anything(raw.data_parallel_rank)
        if isinstance(stamp, int | float) and not isinstance(stamp, bool):
            batch.published_at_s = float(stamp)
        if isinstance(rank, int) and not isinstance(rank, bool):
            batch.rank = rank
        for event in raw.events:
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
        first = bytes(raw)[:1] or b"\xc0"
        is_array = first[0] >> 4 == 0x9 or first in (b"\xdc", b"\xdd")
        try:
            event: WireEvent = decode_array_event(raw) if is_array else decode_map_event(raw)
        except UNREADABLE:
            pass
        else:
            self._add(batch, event)
            return
        value = _anything(raw)
        kind = _kind_of(value)
        if kind is None:
            batch.refused["event_malformed"] += 1
        elif kind not in KNOWN_EVENTS:
            batch.unknown_events += 1
        else:
            try:
                event = decode_lenient_array_event(raw) if is_array else decode_lenient_map_event(raw)
            except UNREADABLE:
                batch.refused[_why_malformed(value, is_array=is_array)] += 1
            else:
                batch.unknown_fields += 1
                self._add(batch, event)

    def _add(self, batch: Batch, event: WireEvent) -> None:
        try:
            if isinstance(event, StoredMap | StoredArray):
                batch.events.append(self._stored(event))
            elif isinstance(event, RemovedMap | RemovedArray):
                if len(event.block_hashes) > self._limits.hashes_per_event_max:
                    raise Refused("event_limit")
                batch.events.append(Removed(_hashes(event.block_hashes), _tier(event), event.group_idx))
            else:
                batch.events.append(Cleared())
        except Refused as refused:
            batch.refused[refused.reason] += 1

    def _stored(self, event: "StoredArray | StoredMap") -> Stored:
        limits = self._limits
        if len(event.block_hashes) > limits.hashes_per_event_max or len(event.token_ids) > limits.tokens_per_event_max:
            raise Refused("event_limit")
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
        if max(len(lora_name or ""), len(salt or "")) > limits.text_length_max:
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
        folded: dict[int, bytes] = {}
        announced = event.extra_keys or ()
        if len(announced) > len(event.block_hashes):
            raise Refused("extra_keys")
        if not salt and announced.count(None) == len(announced):
            return None
        for position, entry in enumerate(announced):
            if entry is None:
                continue
            if not isinstance(entry, list):
                raise Refused("extra_keys")
            first = first_of_prompt and position == 0
            own, announced_salt = read_extra_keys(entry, lora_name, first=first)
            extra = _folded(own, (salt or announced_salt) if first else None)
            if len(extra) > self._limits.extra_keys_bytes_max:
                raise Refused("event_limit")
            if extra:
                folded[position] = extra
        if salt and first_of_prompt and 0 not in folded:
            folded[0] = fold_extra_keys([], salt)
        return folded or None


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


def _array_isolation(position_7: str | dict[str, Any] | None) -> tuple[str | None, str | None]:
    """LoRA name and cache salt from the array position that vLLM and SGLang 0.5.18 use differently."""
    if not isinstance(position_7, dict):
        return position_7, None
    salt = position_7.get("cache_salt")
    if not isinstance(salt, str | None):
        raise Refused("event_malformed")
    return None, salt


def _tier(event: Any) -> Tier:
    locality = getattr(event, "locality", None)
    if locality is not None and locality.upper() == "REMOTE":
        return Tier.REMOTE
    if event.medium is None:
        return Tier.GPU
    return TIER_OF_MEDIUM.get(event.medium.upper(), Tier.OTHER)


def _hashes(values: list[Any]) -> list[int]:
    try:
        if min(values, default=0) >= 0:
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


def _kind_of(value: Any) -> str | None:
    """The event's type, None where it has none."""
    kind = value[0] if isinstance(value, list) and value else value.get("type") if isinstance(value, dict) else None
    return kind if isinstance(kind, str) else None


def _why_malformed(value: Any, *, is_array: bool) -> str:
    """The reason of a known event that does not have the types it should have."""
    tokens = (value[3] if len(value) > 3 else None) if is_array else value.get("token_ids")
    if isinstance(tokens, list):
        if any(isinstance(token, list) for token in tokens):
            return "token_pairs"  # EAGLE under SGLang
        if any(isinstance(token, str) for token in tokens):
            return "token_text"  # TensorRT-LLM's digests of multimodal content
        if any(not isinstance(token, int) or isinstance(token, bool) for token in tokens):
            return "token_type"
    hashes = (value[1] if len(value) > 1 else None) if is_array else value.get("block_hashes")
    if isinstance(hashes, list) and any(not isinstance(item, int | bytes) or isinstance(item, bool) for item in hashes):
        return "hash_type"
    return "event_malformed"

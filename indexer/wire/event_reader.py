"""Single events, where something is odd or wrong in a batch or it is too large to be decoded whole: each as far as it can be used.

A large event is measured before anything is built from it, and read in steps: its tokens are packed, and its extra keys stay encoded.
"""

from collections.abc import Callable

from msgspec import Raw, Struct, msgpack

from indexer.compiled import core
from indexer.core.block_keys import TOKEN_BYTES
from indexer.core.event_pieces import Steps, result_of
from indexer.errors import Refused
from indexer.limits import WireLimits
from indexer.wire.large import SPLIT_BYTES_MIN, Fields, split_fields
from indexer.wire.odd_tokens import PAIRS_BYTES_MAX, cut_extra_keys, read_good_part, read_pairs
from indexer.wire.outline import NIL, Outline, fields_of, is_array, kind_of, list_lengths, longest_plain_field, outline_of
from indexer.wire.types import (
    FIELDS,
    KNOWN_EVENTS,
    UNREADABLE,
    StoredArray,
    StoredMap,
    WireEvent,
    decode_array_event,
    decode_array_event_encoded,
    decode_lenient_array_event,
    decode_lenient_map_event,
    decode_map_event,
    decode_map_event_encoded,
    read_anything,
)

# An event up to this size is decoded without measuring it first.
UNMEASURED_BYTES_MAX = 65_536
# A malformed event up to this size is decoded without types, to find the reason: what that builds is up to 80 times as large.
LOOKED_INTO_BYTES_MAX = 262_144
# The longest encoding of a character, and of the header of a text.
CHARACTER_BYTES_MAX, TEXT_HEADER_BYTES_MAX = 4, 5
# Reasons for which some of an event's tokens cannot be used.
TOKEN_REASONS = ("token_text", "token_type")
# Fields that stay encoded, and those that are not read.
ENCODED_FIELDS = ("token_ids", "extra_keys", "lookahead_token_ids")
UNREAD_FIELDS = ("ownership", "session_id")
NAMES = frozenset(name.encode() for fields in FIELDS.values() for names in fields for name in names)
ITEMS_MAX = max(len(names) for names, _ in FIELDS.values())
# The longest encoding of an integer.
WINDOW_BYTES_MAX = 9

# Decoders of known events: the exact one, and the one that ignores unknown fields.
_Decoders = tuple[Callable[[Raw | bytes], WireEvent], Callable[[Raw | bytes], WireEvent]]
DECODERS_OF_ARRAYS: _Decoders = decode_array_event, decode_lenient_array_event
DECODERS_OF_MAPS: _Decoders = decode_map_event, decode_lenient_map_event


class ReadEvent(Struct):
    """`event` is None where its type is unknown. `has_unknown`: whether a field is. `refused`: why only a part of it is used."""

    event: WireEvent | None = None
    has_unknown: bool = False
    refused: str | None = None


class EventReader:
    """Reads events one by one."""

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits

    def read(self, raw: Raw | bytes) -> Steps[ReadEvent]:
        """Raises Refused, and RecursionError where something in it is nested too deeply."""
        if len(raw) <= UNMEASURED_BYTES_MAX:
            return _read_small(raw)
        return (yield from self._read_in_calls(raw) if core is None else self._read_large(raw))

    def _read_in_calls(self, raw: Raw | bytes) -> Steps[ReadEvent]:
        """A large event without the compiled core. Each time that it is gone through is a step."""
        outline = _outline_of(raw)
        yield
        if not _is_known(outline.type):
            return ReadEvent()
        self._measure(fields_of(outline))
        return (yield from _read_measured(raw))

    def _read_large(self, raw: Raw | bytes) -> Steps[ReadEvent]:
        if len(raw) <= SPLIT_BYTES_MIN:
            _outline_of(raw)  # what is nested too deeply is refused as in a smaller one
            yield
        try:
            fields = yield from split_fields(raw, NAMES, ITEMS_MAX)
        except ValueError:
            raise Refused("event_malformed") from None
        yield
        kind_field = fields.known.get(0 if is_array(raw) else "type")
        if kind_field is None:
            raise Refused("event_malformed")
        if (kind := _known_kind(kind_field)) is None:
            return ReadEvent()
        known, has_unknown = _named(fields, kind, as_array=is_array(raw))
        self._measure(known)
        try:
            event = _decode(known, as_array=is_array(raw))
            yield
            refused = (yield from _take_tokens(event, known["token_ids"])) if isinstance(event, StoredArray | StoredMap) else None
        except (*UNREADABLE, _OddTokens):
            if len(raw) > max(LOOKED_INTO_BYTES_MAX, UNMEASURED_BYTES_MAX):
                raise Refused("event_malformed") from None
        else:
            return ReadEvent(event, has_unknown, refused)
        yield
        return (yield from _read_measured(raw))

    def _measure(self, fields: dict[str, Raw]) -> None:
        """Check that an event of a known type builds no more than the limits allow. Raises Refused."""
        limits, counts = self._limits, list_lengths(fields)
        text_bytes_max = CHARACTER_BYTES_MAX * limits.text_length_max + TEXT_HEADER_BYTES_MAX
        if (
            counts["block_hashes"] > limits.hashes_per_event_max
            or counts["token_ids"] > limits.tokens_per_event_max
            or longest_plain_field(fields) > text_bytes_max
        ):
            raise Refused("event_limit")


class _OddTokens(Exception):
    """Not all tokens are integers, or pairs of them."""


def _read_small(raw: Raw | bytes) -> ReadEvent:
    exact, lenient = DECODERS_OF_ARRAYS if is_array(raw) else DECODERS_OF_MAPS
    try:
        return ReadEvent(exact(raw))
    except UNREADABLE:
        pass
    if not _is_known(_outline_of(raw).type):
        return ReadEvent()
    try:
        return ReadEvent(lenient(raw), has_unknown=True)
    except UNREADABLE:
        return result_of(_read_part(raw))


def _read_measured(raw: Raw | bytes) -> Steps[ReadEvent]:
    """An event of a known type and within the limits. Each time that it is gone through is a step."""
    exact, lenient = DECODERS_OF_ARRAYS if is_array(raw) else DECODERS_OF_MAPS
    for decode, has_unknown in ((exact, False), (lenient, True)):
        try:
            event = decode(raw)
        except UNREADABLE:
            yield
        else:
            yield
            return ReadEvent(event, has_unknown)
    return (yield from _read_part(raw))


def _read_part(raw: Raw | bytes) -> Steps[ReadEvent]:
    """A malformed event as far as its tokens can be used. Raises Refused where that is not at all."""
    event = read_pairs(raw, is_array=is_array(raw))
    if event is not None:
        return ReadEvent(event)
    yield
    reason = yield from _why_malformed(raw)
    yield
    part = read_good_part(raw, is_array=is_array(raw)) if reason in TOKEN_REASONS else None
    if part is None:
        raise Refused(reason)
    return ReadEvent(part, refused=reason)


def _outline_of(raw: Raw | bytes) -> Outline:
    """Raises Refused for an event without a type."""
    try:
        return outline_of(raw)
    except UNREADABLE:
        raise Refused("event_malformed") from None


def _known_kind(encoded: Raw) -> str | None:
    """The type of an event, None for one that is not known. Raises Refused for what is no text."""
    kind = kind_of(encoded)
    if kind is None:
        raise Refused("event_malformed")
    return kind if kind in KNOWN_EVENTS else None


def _is_known(encoded: Raw) -> bool:
    return _known_kind(encoded) is not None


def _named(fields: Fields, kind: str, *, as_array: bool) -> tuple[dict[str, Raw], bool]:
    """The fields of this type by their names, and whether there are others."""
    of_array, of_map = FIELDS[kind]
    names = of_array if as_array else of_map
    known = {name: fields.known[at if as_array else name] for at, name in enumerate(names) if (at if as_array else name) in fields.known}
    return known, fields.count > len(known)


def _decode(known: dict[str, Raw], *, as_array: bool) -> WireEvent:
    """The event of these fields, with what is long left encoded. Raises what is in UNREADABLE."""
    short = {name: NIL if _is_left_out(name, field) else field for name, field in known.items()}
    event: WireEvent
    event = decode_array_event_encoded(msgpack.encode([*short.values()])) if as_array else decode_map_event_encoded(msgpack.encode(short))
    for name in ENCODED_FIELDS:
        if name in known:
            setattr(event, name, known[name])
    return event


def _is_left_out(name: str, field: Raw) -> bool:
    return name in ENCODED_FIELDS or name in UNREAD_FIELDS or (name == "kv_cache_spec_sliding_window" and len(field) > WINDOW_BYTES_MAX)


def _take_tokens(event: StoredArray | StoredMap, encoded: Raw) -> Steps[str | None]:
    """Pack the event's tokens. Returns the reason where only those of its first blocks can be used. Raises Refused, _OddTokens."""
    tokens = core.pack_msgpack_tokens(encoded)
    count = 0 if tokens is None else len(tokens) // TOKEN_BYTES
    if tokens is None:
        yield
        integers = core.pack_msgpack_integers(encoded, False)
        if integers is None and len(encoded) <= PAIRS_BYTES_MAX:
            yield
            integers = core.pack_msgpack_integers(encoded, True)
        if integers is None:
            raise _OddTokens
        tokens, count = integers
    event.token_ids = tokens  # type: ignore[assignment]
    good = len(tokens) // TOKEN_BYTES
    if good == count:
        return None
    if event.block_size <= 0 or count != len(event.block_hashes) * event.block_size or good < event.block_size:
        raise Refused("token_range")
    blocks = good // event.block_size
    event.block_hashes, event.token_ids = event.block_hashes[:blocks], tokens[: blocks * event.block_size * TOKEN_BYTES]  # type: ignore[assignment]
    event.extra_keys = cut_extra_keys(event.extra_keys, blocks)
    return "token_range"


def _why_malformed(raw: Raw | bytes) -> Steps[str]:
    """The reason for refusing a known event whose fields have wrong types."""
    value = read_anything(raw) if len(raw) <= LOOKED_INTO_BYTES_MAX else None
    yield
    if isinstance(value, dict):
        tokens, hashes = value.get("token_ids"), value.get("block_hashes")
    elif isinstance(value, list):
        tokens, hashes = value[3] if len(value) > 3 else None, value[1] if len(value) > 1 else None
    else:
        return "event_malformed"
    if isinstance(tokens, list):
        if any(isinstance(token, str) for token in tokens):
            return "token_text"  # TensorRT-LLM's digests of multimodal content
        if any(not isinstance(token, int) or isinstance(token, bool) for token in tokens):
            return "token_type"
    if isinstance(hashes, list) and any(not isinstance(item, int | bytes) or isinstance(item, bool) for item in hashes):
        return "hash_type"
    return "event_malformed"

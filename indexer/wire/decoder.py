"""Payloads as engines publish them, decoded into events.

The rules follow what vLLM 0.9 to 0.33, SGLang 0.5.2 to 0.5.23 and TensorRT-LLM send (docs/explanation/wire-format.md). A bad event never costs
its batch: the batch is first decoded whole, and only if that fails event by event, where each refusal is counted under its reason.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
from msgspec import Raw, Struct

from indexer.compiled import core
from indexer.core.event_pieces import Steps, result_of
from indexer.core.events import Cleared, Event, Events
from indexer.errors import Refused
from indexer.limits import WireLimits
from indexer.wire.event_reader import UNMEASURED_BYTES_MAX, EventReader
from indexer.wire.extra_keys import plain_extra_keys
from indexer.wire.large import SPLIT_BYTES_MIN, items_of, split_array, split_fields
from indexer.wire.normaliser import Normaliser, plain_removed, plain_stored
from indexer.wire.odd_tokens import cut_to_good_blocks
from indexer.wire.outline import array_length
from indexer.wire.splitter import split_events
from indexer.wire.types import (
    UNREADABLE,
    ArrayBatch,
    MapBatch,
    RawBatch,
    RawBatchAsMap,
    StoredArray,
    StoredMap,
    WireEvent,
    decode_array_batch,
    decode_array_batch_encoded,
    decode_map_batch,
    decode_map_batch_encoded,
    decode_raw_batch,
    decode_raw_batch_as_map,
    decode_raw_batch_as_map_exact,
    decode_raw_batch_exact,
    decode_raw_list,
    read_anything,
)

# A batch up to this size is decoded in one call: what that builds is at most 14 times as large. In a larger one each event is measured first.
WHOLE_BYTES_MAX = 2**20
# A batch of plain events up to this size is packed in one call: what that reserves is at most 16 times as large.
PLAIN_BYTES_MAX = 4 * 2**20
# A batch up to this size is decoded at once also where something is wrong with each of its events, which then are a byte at least.
AT_ONCE_BYTES_MAX = 4_096
BATCH_FIELDS = RawBatch.__struct_fields__
BATCH_NAMES = frozenset(name.encode() for name in BATCH_FIELDS)
# So many messages of so many bytes are packed as one batch.
MESSAGES_MAX = 256
MESSAGE_BYTES_MAX = 65_536
# The longest encoding of a number.
NUMBER_BYTES_MAX = 9


class Refusals(Counter[str]):
    """Reason → number of events. Created for every batch, and usually empty: Counter's own constructor would take half the time of a small batch."""

    def __init__(self) -> None:
        pass


class Batch(Struct):
    """One decoded payload.

    `published_at_s`: the engine's clock, Unix seconds, None where it is not usable. `rank`: the batch's own data-parallel rank. `refused`:
    reason → number of events. `unknown_events` and `unknown_fields`: how many were ignored because this release does not know them.
    """

    events: Events
    published_at_s: float | None = None
    rank: int | None = None
    refused: Refusals = msgspec.field(default_factory=Refusals)
    unknown_events: int = 0
    unknown_fields: int = 0


class WireDecoder:
    """Decodes the payloads of one stream. It remembers which encoding the engine uses, to try that first.

    `dialect`: what was seen of how the engine publishes.
    """

    def __init__(self, limits: WireLimits) -> None:
        self._limits = limits
        self._reader = EventReader(limits)
        self._normaliser = Normaliser(limits)
        self.dialect = self._normaliser.dialect
        self._decode_first: Callable[[bytes], Any] = decode_map_batch
        self._decode_second: Callable[[bytes], Any] = decode_array_batch
        self._plain = None if core is None else core.PlainDecoder(limits, plain_stored, plain_removed, Cleared, plain_extra_keys)
        self._encoded_first: Callable[[bytes], Any] = decode_map_batch_encoded
        self._encoded_second: Callable[[bytes], Any] = decode_array_batch_encoded

    def decode(self, payload: bytes) -> Batch:
        """Raises Refused where the payload is no batch of events. Events that are all plain are packed by the compiled core."""
        batch = self.start(payload)
        return batch if isinstance(batch, Batch) else result_of(batch)

    def start(self, payload: bytes) -> Batch | Steps[Batch]:
        """The same, or the steps of it where something is wrong with an event: of a batch that is not small each is then looked at alone, in a step.
        Raises Refused, as do the steps."""
        batch = self._start(payload)
        return batch if isinstance(batch, Batch) or len(payload) > AT_ONCE_BYTES_MAX else result_of(batch)

    def _start(self, payload: bytes) -> Batch | Steps[Batch]:
        if core is not None and len(payload) <= WHOLE_BYTES_MAX:
            batch = self._decode_plain(payload) or result_of(self._decode_regular(payload))
            if batch is not None:
                return batch
        self._normaliser.begin_batch(len(payload))
        try:
            known = self._decode_whole(payload) if len(payload) <= WHOLE_BYTES_MAX else None
        except RecursionError:
            return self._decode_nested(payload)
        if known is None:
            return self._decode_odd(payload)
        if len(known.events) > self._limits.events_per_batch_max:
            raise Refused("batch_events")
        events: list[Event] = []
        normalise = self._normaliser.normalise
        try:
            for event in known.events:
                events.append(normalise(event))  # noqa: PERF401 - a comprehension is a call more per batch
        except (Refused, RecursionError):
            self._normaliser.begin_batch(len(payload))
            return self._normalise_apart(known)
        return Batch(events, known.ts, known.data_parallel_rank)

    def decode_in_steps(self, payload: bytes) -> Steps[Batch]:
        """The same of a large payload in steps, none of which takes longer than its largest event does. Raises Refused."""
        if len(payload) <= PLAIN_BYTES_MAX and (batch := self._decode_plain(payload)) is not None:
            return batch
        yield
        if core is not None and len(payload) <= WHOLE_BYTES_MAX and (batch := (yield from self._decode_regular(payload))) is not None:
            return batch
        yield
        self._normaliser.begin_batch(len(payload))
        return (yield from self._decode_odd(payload))

    def _decode_odd(self, payload: bytes) -> Steps[Batch]:
        try:
            return (yield from self._decode_apart(payload))
        except RecursionError:
            return (yield from self._decode_nested(payload))

    def _decode_plain(self, payload: bytes) -> Batch | None:
        """A batch whose events are all plain, else None. The compiled core packs it."""
        packed = None if self._plain is None else self._plain.decode(payload)
        if packed is None:
            return None
        if packed.is_simulator:
            self.dialect.is_simulator = True
        return Batch(packed, packed.published_at_s, packed.rank)

    def decode_some(self, messages: list[list[bytes]], number: int) -> Batch | None:
        """The first of these messages as one batch, as many as are plain and follow each other from this number on. None where that are not even two.

        They clear nothing, and `stamps` of the events says how many they are.
        """
        packed = None if self._plain is None else self._plain.decode_some(messages, number, MESSAGES_MAX, MESSAGE_BYTES_MAX)
        if packed is None:
            return None
        if packed.is_simulator:
            self.dialect.is_simulator = True
        return Batch(packed, packed.published_at_s, packed.rank)

    def _decode_regular(self, payload: bytes) -> Steps[Batch | None]:
        """A batch in which every event has a known shape and is within the limits, else None: what is wrong is found without the compiled core.

        The core packs the tokens without an object for each.
        """
        self._normaliser.begin_batch(len(payload))
        try:
            known = self._encoded_first(payload)
        except (*UNREADABLE, RecursionError):
            try:
                known = self._encoded_second(payload)
            except (*UNREADABLE, RecursionError):
                return None
            self._encoded_first, self._encoded_second = self._encoded_second, self._encoded_first
        if len(known.events) > self._limits.events_per_batch_max:
            return None
        events: list[Event] = []
        normalise, prepare = self._normaliser.normalise, self._normaliser.prepare
        try:
            for event in known.events:
                if len(payload) > UNMEASURED_BYTES_MAX:
                    yield from prepare(event)
                events.append(normalise(event))
        except (Refused, RecursionError):
            return None
        finally:
            self._normaliser.forget_prepared()
        return Batch(events, known.ts, known.data_parallel_rank)

    def _normalise_apart(self, known: ArrayBatch | MapBatch) -> Steps[Batch]:
        """Normalise event by event, so that a refused event does not cost the others."""
        batch = Batch([], known.ts, known.data_parallel_rank)
        for event in known.events:
            self._add(batch, event)
            yield
        return batch

    def _decode_whole(self, payload: bytes) -> Any:
        """The whole batch in one call if every event in it has a known shape, else None."""
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

    def _decode_apart(self, payload: bytes) -> Steps[Batch]:
        """Decode event by event, so that a bad event does not cost the others."""
        raw, is_exact = yield from _decode_raw(payload) if core is None or len(payload) <= SPLIT_BYTES_MIN else _split_raw(payload)
        yield
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
        if core is None or len(payload) <= SPLIT_BYTES_MIN:
            events: Iterable[Raw] = decode_raw_list(raw.events)
        else:
            events = items_of(raw.events, (yield from split_array(raw.events)))
        for event in events:
            yield
            yield from self._add_raw(batch, event)
        return batch

    def _decode_nested(self, payload: bytes) -> Steps[Batch]:
        """Decode a batch in which something is nested too deeply for the decoder: only that event is refused."""
        try:
            events = yield from split_events(payload)
        except ValueError:
            raise Refused("batch_nested") from None
        if len(events) > self._limits.events_per_batch_max:
            raise Refused("batch_events")
        batch = Batch([])
        for event in events:
            try:
                yield from self._add_raw(batch, event)
            except RecursionError:
                batch.refused["event_nested"] += 1
            yield
        return batch

    def _add_raw(self, batch: Batch, raw: Raw | bytes) -> Steps[None]:
        try:
            read = yield from self._reader.read(raw)
        except Refused as refused:
            batch.refused[refused.reason] += 1
            return
        if read.event is None:
            batch.unknown_events += 1
            return
        batch.unknown_fields += read.has_unknown
        if read.refused is not None:
            batch.refused[read.refused] += 1
        yield from self._normaliser.prepare(read.event)
        self._add(batch, read.event)
        self._normaliser.forget_prepared()

    def _add(self, batch: Batch, event: WireEvent) -> None:
        assert isinstance(batch.events, list), "packed events come all at once"
        try:
            batch.events.append(self._normaliser.normalise(event))
        except Refused as refused:
            batch.refused[refused.reason] += 1
            if refused.reason == "token_range" and isinstance(event, StoredArray | StoredMap) and cut_to_good_blocks(event):
                self._add(batch, event)
        except RecursionError:
            batch.refused["event_nested"] += 1


def _decode_raw(payload: bytes) -> Steps[tuple[RawBatch | RawBatchAsMap, bool]]:
    """A batch with its events still encoded, and whether it has no unknown field. Raises Refused, RecursionError."""
    is_map = bool(payload) and (payload[0] >> 4 == 0x8 or payload[0] in (0xDE, 0xDF))
    exact, lenient = (decode_raw_batch_as_map_exact, decode_raw_batch_as_map) if is_map else (decode_raw_batch_exact, decode_raw_batch)
    try:
        return exact(payload), True
    except UNREADABLE:
        yield
    try:
        return lenient(payload), False
    except UNREADABLE:
        raise Refused("batch_malformed") from None


def _split_raw(payload: bytes) -> Steps[tuple[RawBatch, bool]]:
    """The same of a large one."""
    try:
        fields = yield from split_fields(payload, BATCH_NAMES, len(BATCH_FIELDS))
    except ValueError:
        raise Refused("batch_malformed") from None
    known = {BATCH_FIELDS[key] if isinstance(key, int) else key: field for key, field in fields.known.items()}
    if fields.end != len(payload) or "ts" not in known or "events" not in known:
        raise Refused("batch_malformed")
    return RawBatch(**known), fields.count <= len(known)


def _number(raw: Raw) -> float | int | None:
    """The number that this encodes, None for anything else."""
    value = read_anything(raw) if len(raw) <= NUMBER_BYTES_MAX else None
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None

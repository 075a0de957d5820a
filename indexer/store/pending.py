"""What of one owned stream is not in Redis yet, turned into calls of scripts.

    pending    changes that are in no call yet: records of touched engine hashes, and block keys
    sealed     calls made of them, not sent yet; values are those of the moment of sealing, which is the end of a batch
    in flight  sent, not answered

An answer that never comes leaves nothing undecided: numbers show whether the call was carried out, and final values may be written twice.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable
from typing import cast

from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.block_table import BlockRecord, HashRecord
from indexer.core.blocks import Block
from indexer.core.change import Change, HashMapping
from indexer.core.events import Tier
from indexer.core.names import StreamKey, Trust
from indexer.core.places import LEAD_GPU, REMOVED, is_gpu, is_parked, slot_and_part
from indexer.core.snapshot import Snapshot
from indexer.core.store import StreamPosition
from indexer.store.encoding import StreamEncoder, words
from indexer.store.keyspace import PARTS, ModelKeys
from indexer.store.records import ENTRY_BLOCKS_MAX, Kind
from indexer.store.scripts import Call, Word
from indexer.tracing.current import PACKED_SPANS_BYTES_MAX

# A call is sealed from this number of touched hashes on: one script takes Redis some milliseconds at the most, and its entry fits into the log …
SEAL_OPERATIONS = 768
# … at most this number of calls waits; then changes gather in one …
SEALED_MAX = 32
# … and beyond this, a full write, which goes piece by piece, keeps the event loop and Redis from other work for a shorter time than one append would.
APPEND_OPERATIONS_MAX = 10_000


PendingRecords = dict[int, dict[int, HashRecord | None]]
"""Place → engine hash → what it holds for it, None where it holds nothing."""


PendingMapping = dict[int, int | None]
"""Engine hash → the block key that it stands for, None for none: where records do not say it, see `Change.hash_mapping`."""


class Sealed(Struct, frozen=True):
    """A call, and what it carries. `mapping`: what its records do not say. `grows`: a full Redis refuses it; not where the gpu is emptied first."""

    call: Call
    records: PendingRecords
    mapping: PendingMapping
    change: Change
    number: int
    grows: bool


def random_number() -> int:
    """For generations and fences: 64 bits, never 0."""
    return secrets.randbits(64) or 1


class PendingWrites:
    """See the module.

    `needs_full_write`: what Redis has does not count, all has to be written as a new generation. `is_expired`: the stream is to be deleted.
    `is_unsure`: a call was not answered, and may have been carried out. `old_generations`: those that the next switch deletes, the oldest first.
    """

    def __init__(
        self,
        stream: StreamKey,
        snapshot: Snapshot,
        position: StreamPosition,
        keys: ModelKeys,
        settings: Settings,
        fence: int,
        trusted_until_ms: Callable[[], int],
    ) -> None:
        """`position`: the stream's position; each change brings the next one.

        `trusted_until_ms`: until when a stream is trusted that Redis has completely now, by Redis's clock."""
        self.key = stream
        self.position = position
        self.keys = keys
        self.fence = fence
        self.encoder = StreamEncoder(stream, snapshot, settings)
        self.name = self.encoder.name
        self.generation: int | None = None
        self.old_generations: dict[int, None] = {}
        self.needs_full_write = False
        self.is_dirty = False
        self.is_expired = False
        self.is_writing_in_full = False
        self.is_unsure = False
        self.expected_lengths: list[int] = []
        """How many fields each part should have once the switch is done."""
        self.sealed: deque[Sealed] = deque()
        self.in_flight: list[Sealed] = []
        self._settings = settings
        self._trusted_until_ms = trusted_until_ms
        self._state_ttl_ms = int(settings.pod_expiry_s * 1000)
        self._blocks_ttl_ms = int((settings.pod_expiry_s + settings.lease_s) * 1000)
        self._base = self._after = (0, 0)
        self._next_number = self._last_number = 0
        self._change = Change()
        self._records: PendingRecords = {}
        self._mapping: PendingMapping = {}
        self._unwritten_since_s: float | None = None

    @property
    def ttl_ms(self) -> tuple[int, int]:
        """How long the state and the blocks outlive the last heartbeat."""
        return self._state_ttl_ms, self._blocks_ttl_ms

    @property
    def is_behind(self) -> bool:
        """Whether more is waiting than should be."""
        return len(self.sealed) >= SEALED_MAX

    @property
    def is_amid_batch(self) -> bool:
        """Whether the stream has applied a batch in part: then neither it nor its head is to be read whole."""
        return self.encoder.snapshot.is_amid_batch

    @property
    def is_settled(self) -> bool:
        """Whether Redis has everything."""
        return self.is_expired or not (self.is_dirty or self.needs_full_write or self.is_writing_in_full or self.sealed or self.in_flight)

    def continue_from(self, generation: int, fence_before: int, number: int) -> None:
        """Redis holds what the stream holds now."""
        self.generation = generation
        self._go_on_from(fence_before, number)

    def _go_on_from(self, fence: int, number: int) -> None:
        self._base = self._after = (fence, number)
        self._next_number = number

    def _new_number(self) -> int:
        """One that names no other state. An append whose answer never came may have been carried out, and then lost: a follower that read it from the
        log must not take what is written instead for the same."""
        self._last_number = max(self._last_number, self._next_number) + 1
        self._next_number = self._last_number
        return self._next_number

    @property
    def number(self) -> int:
        """The number that the state is known to have."""
        return self._base[1]

    @property
    def unwritten_since_s(self) -> float | None:
        """Since when Redis lacks something, by time.monotonic; None where it lacks nothing."""
        if self.is_settled:
            self._unwritten_since_s = None
        return self._unwritten_since_s

    def note_unwritten(self) -> None:
        """Redis lacks something from now on: of the content, or how far it can be relied on."""
        self.is_dirty = True
        if self._unwritten_since_s is None:
            self._unwritten_since_s = time.monotonic()

    # Changes of the stream

    def append(self, change: Change, position: StreamPosition) -> None:
        """One batch was applied, whether it changed anything or not."""
        self.position = position
        self._add(change)
        self.note_unwritten()
        if self.needs_full_write or self.is_writing_in_full:
            return
        operations = self.operations
        if operations > APPEND_OPERATIONS_MAX:
            self.require_full_write()
        elif operations >= SEAL_OPERATIONS and not self.is_behind:
            self.seal()

    def set_trust(self, trust: Trust, position: StreamPosition) -> None:
        """The content can be relied on otherwise than Redis says."""
        self.position = position
        self.is_expired = trust is Trust.EXPIRED
        self.note_unwritten()

    def _add(self, change: Change) -> None:
        if change.reload or (change.cleared and self.is_writing_in_full):
            self.require_full_write()
        if not self.is_writing_in_full and change.records is not None and sum(map(len, change.records.values())) > APPEND_OPERATIONS_MAX:
            self.require_full_write()
        if self.needs_full_write:
            return
        if change.cleared:
            self._clear_gpu()
        if change.records is not None:
            for place, records in change.records.items():
                before = self._records.get(place)
                if before is None:
                    self._records[place] = dict(records)
                else:
                    before.update(records)
        if change.hash_mapping is not None:
            self._mapping.update(change.hash_mapping.keys)
            self._mapping.update(dict.fromkeys(change.hash_mapping.removed_hashes))
        if change or change.spans:
            merge(self._change, change)

    def _clear_gpu(self) -> None:
        """What was to be written of the gpu does not count any more; the followers' mappings go with it."""
        on_gpu = [place for place in self._records if is_gpu(place)]
        others = [records for place, records in self._records.items() if not is_gpu(place) and not is_parked(place)]
        for place in on_gpu:
            for engine_hash in self._mapping.keys() & self._records.pop(place).keys():
                if not any(engine_hash in records for records in others):
                    del self._mapping[engine_hash]

    def require_full_write(self) -> None:
        """Nothing of what Redis has of the stream counts any more: write it all."""
        self.needs_full_write = True
        self.note_unwritten()
        self.sealed.clear()
        self._change, self._records, self._mapping = Change(), {}, {}

    @property
    def operations(self) -> int:
        """How many blocks the next call would write."""
        return sum(map(len, self._records.values()))

    def take_records(self) -> PendingRecords:
        """The records that no call carries yet; the caller writes them."""
        records, self._records = self._records, {}
        return records

    def _take_mapping(self) -> PendingMapping:
        mapping, self._mapping = self._mapping, {}
        return mapping

    # Appending

    def seal(self) -> None:
        """Make a call of what is pending."""
        assert self.generation is not None, "what is appended to was written before"
        records, mapping = self.take_records(), self._take_mapping()
        change, self._change = self._change, Change()
        if self._settings.engine_hashes:
            change.hash_mapping = hash_mapping(records, mapping)
        self.is_dirty = False
        before = self._next_number
        number = self._new_number()
        block_words, growth = words(records)
        is_large = max(len(change), len(change.hash_mapping or ())) > ENTRY_BLOCKS_MAX
        kind = Kind.RELOAD if is_large else Kind.CHANGE
        entry = self.encoder.entry(kind, self.generation, (self.fence, number), self._after, self.position.trust, None if is_large else change)
        self._after = (self.fence, number)
        keys = [self.keys.state(self.key), self.keys.log, self.keys.streams, *self.keys.parts(self.key, self.generation)]
        head: list[Word] = [self.fence, before, self.generation, number, self.encoder.head(self.position), entry]
        flags: list[Word] = [self.name, int(growth > 0), int(change.cleared)]
        call = Call("append", keys, [*head, *self._limits(), *flags, *block_words])
        self.sealed.append(Sealed(call, records, mapping, change, number, growth > 0 and not change.cleared))

    def take_sealed(self) -> list[Sealed]:
        """What to send now. What is pending waits for the end of a batch that is applied in part: the head is that of the stream as it is."""
        if self.is_dirty and not self.is_amid_batch:
            self.seal()
        self.in_flight = list(self.sealed)
        self.sealed.clear()
        return self.in_flight

    def confirm(self, sealed: Sealed) -> None:
        """It was carried out."""
        self.in_flight.remove(sealed)
        self._base = (self.fence, sealed.number)
        self.is_unsure = False
        if self.is_settled:
            self._unwritten_since_s = None

    def confirm_unanswered(self, number: int) -> bool:
        """The state has this number. Returns whether that is my own call whose answer never came."""
        if not self.is_unsure or number <= self.number:
            return False
        self._base = (self.fence, number)
        return True

    def take_back(self, *, is_unsure: bool) -> None:
        """The call was not carried out, or its outcome is unknown: it becomes pending again."""
        if self.needs_full_write:
            self.in_flight = []
            return
        newer = (self.take_records(), self._take_mapping(), self._change)
        self._change = Change()
        for sealed in (*self.in_flight, *self.sealed):
            self._merge_back(sealed.records, sealed.mapping, sealed.change)
        self._merge_back(*newer)
        self.in_flight = []
        self.sealed.clear()
        self.is_dirty = True
        self.is_unsure = self.is_unsure or is_unsure
        self._go_on_from(*self._base)
        if self.operations > APPEND_OPERATIONS_MAX:
            self.require_full_write()

    def _merge_back(self, records: PendingRecords, mapping: PendingMapping, change: Change) -> None:
        if change.cleared:
            self._clear_gpu()
        for place, after in records.items():
            self._records.setdefault(place, {}).update(after)
        self._mapping.update(mapping)
        merge(self._change, change)

    # Full write

    def begin_full_write(self) -> int:
        """Collect changes from now on. Returns a new generation."""
        self.needs_full_write = False
        self.sealed.clear()
        self._change, self._records, self._mapping = Change(), {}, {}
        generation = random_number()
        self.old_generations[generation] = None
        return generation

    def switch(self, generation: int, owner: str, incarnation: str) -> Call:
        """The call that makes a generation the stream's, with what changed while it was written."""
        self.is_dirty = False
        self._change, self._mapping = Change(), {}
        block_words, _ = words(self.take_records())
        self.expected_lengths = [0] * len(PARTS)
        for place in self.encoder.snapshot.places():
            self.expected_lengths[slot_and_part(place)[1]] += self.encoder.snapshot.count(place)
        # Hashes of removed blocks are part of the mapping: a follower that just dropped everything would not have them.
        maps_removed = self._settings.engine_hashes and self.expected_lengths[REMOVED] > 0
        is_empty = not maps_removed and not any(self.expected_lengths[tier] for tier in Tier)
        kind = Kind.DROP if is_empty else Kind.RELOAD
        entry = self.encoder.entry(kind, generation, (self.fence, self._new_number()), self._after, self.position.trust)
        self._after = (self.fence, self._next_number)
        old = [number for number in (*self.old_generations, self.generation) if number is not None and number != generation]
        keys = [self.keys.state(self.key), self.keys.log, self.keys.streams, self.keys.incarnation, self.keys.lease(self.key)]
        keys += [name for number in (generation, *old) for name in self.keys.parts(self.key, number)]
        head: list[Word] = [self.fence, owner, generation, self._next_number, self.encoder.head(self.position), entry]
        return Call("switch", keys, [*head, *self._limits(), self.name, incarnation, *block_words])

    def switched(self, generation: int) -> None:
        """It was carried out."""
        self.generation = generation
        self.old_generations.clear()
        self._go_on_from(self.fence, self._next_number)
        self.is_unsure = False

    def end_full_write(self) -> None:
        """It is over. Where it was not carried out, another has to follow: what changed before and meanwhile is kept in no other form."""
        self.is_writing_in_full = False
        if self.old_generations:  # begun, and not switched to
            self.require_full_write()

    def delete(self) -> Call:
        """The call that deletes the stream, unless another owner has it."""
        generation = self.generation
        entry = self.encoder.entry(Kind.GONE, generation or 0, (self.fence, self._new_number()), self._after, self.position.trust)
        parts = [] if generation is None else self.keys.parts(self.key, generation)
        keys = [self.keys.state(self.key), self.keys.log, self.keys.streams, *parts]
        words: list[Word] = [self.fence, "" if generation is None else generation, self.name, entry]
        return Call("delete", keys, [*words, self._settings.limits.store.log_entries_max, self._state_ttl_ms])

    def _limits(self) -> list[Word]:
        return [self._settings.limits.store.log_entries_max, self._state_ttl_ms, self._blocks_ttl_ms, self._trusted_until_ms()]


def hash_mapping(records: PendingRecords, mapping: PendingMapping) -> HashMapping:
    """What the engine hashes of these records stand for. `mapping` says it of some of them, and counts."""
    keys: dict[int, int] = {}
    removed_hashes: list[int] = []
    for engine_hash, block in cast(dict[int, Block | BlockRecord | None], records.get(LEAD_GPU, {})).items():
        if engine_hash in mapping:
            continue
        if block is None or not block.copies:
            removed_hashes.append(engine_hash)
        else:
            keys[engine_hash] = block.key if isinstance(block, Block) else block.keys[0]
    for engine_hash, key in mapping.items():
        if key is None:
            removed_hashes.append(engine_hash)
        else:
            keys[engine_hash] = key
    return HashMapping(keys, removed_hashes)


def merge(older: Change, newer: Change) -> None:
    """Make `older` what both are together."""
    if newer.cleared:
        older.clear_gpu()
    if newer.sequence is not None:
        older.sequence = newer.sequence
    if newer.spans:
        older.spans = (older.spans + newer.spans)[:PACKED_SPANS_BYTES_MAX]
    for before, after in zip(older.touched, newer.touched, strict=True):
        if after:
            before.update(after)
    for slot, touched in newer.touched_in.items():
        for before, after in zip(older.touched_of(slot), touched, strict=True):
            before.update(after)

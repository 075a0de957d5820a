"""One owned stream's way into Redis: what changed since the last append, turned into calls of scripts.

    pending    changes that no call carries yet: the touched engine hashes (in the stream's state) and block keys
    sealed     calls made of them, not sent yet; values are those of the moment of sealing, which is the end of a batch
    in flight  sent, not answered

An answer that never comes leaves nothing undecided: numbers tell whether the call was carried out, values are final and may be written twice.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.change import Change, HashMapping
from indexer.core.events import Tier
from indexer.core.names import StreamKey
from indexer.core.store import Point
from indexer.core.stream_state import PARKED, REMOVED, StreamState, Touched
from indexer.store.keyspace import PARTS, ModelKeys, stream_id
from indexer.store.records import (
    ENTRY_BLOCKS_MAX,
    Entry,
    Head,
    Kind,
    ParkedRecord,
    encode_entry,
    encode_hash,
    encode_head,
    encode_parked,
    encode_plain,
    encode_record,
    pack_mapping,
    pack_tiers,
)
from indexer.store.scripts import Call, Word

# A call is sealed from so many touched hashes on: one script takes Redis some milliseconds at the most, and its entry fits into the log …
SEAL_OPERATIONS = 768
# … so many of them may wait; then changes gather in one …
SEALED_MAX = 32
# … and beyond this, writing everything anew blocks Redis less than one append would.
APPEND_OPERATIONS_MAX = 10_000


class Recorded(Protocol):
    """What is read of a stream whose content is kept in Redis."""

    key: StreamKey

    @property
    def state(self) -> StreamState: ...

    @property
    def is_connected(self) -> bool: ...

    def point(self) -> Point: ...


class Sealed(Struct, frozen=True):
    """A call, and what it carries. `grows`: a full Redis refuses it; not where the gpu is emptied first."""

    call: Call
    touched: Touched
    change: Change
    number: int
    grows: bool


def random_number() -> int:
    """For generations and fences: 64 bits, never 0."""
    return secrets.randbits(64) or 1


class StreamWriter:
    """See the module. `needs_all`: what Redis has is void, the whole state has to be written as a new generation."""

    def __init__(self, stream: Recorded, keys: ModelKeys, settings: Settings, fence: int, vouched_until_ms: Callable[[], int]) -> None:
        """`vouched_until_ms`: until when a stream is vouched for that is vouched for now, by Redis's clock."""
        self.stream = stream
        self.key = stream.key
        self.keys = keys
        self.fence = fence
        self.name = stream_id(stream.key)
        self.generation: int | None = None
        self.outdated: set[int] = set()
        self.needs_all = False
        self.is_dirty = False
        self.is_absent = False
        self.is_writing_all = False
        self.is_unsure = False
        self.expected: list[int] = []
        """How many fields each part should have once the switch is done."""
        self.sealed: deque[Sealed] = deque()
        self.in_flight: list[Sealed] = []
        self._settings = settings
        self._vouched_until_ms = vouched_until_ms
        self._state_ttl_ms = int(settings.pod_expiry_s * 1000)
        self._blocks_ttl_ms = int((settings.pod_expiry_s + settings.lease_s) * 1000)
        self._base = self._after = (0, 0)
        self._next_number = self._last_number = 0
        self._change = Change()
        self._unwritten_since_s: float | None = None

    @property
    def ttl_ms(self) -> tuple[int, int]:
        """How long the state and the blocks outlive the last sign of life."""
        return self._state_ttl_ms, self._blocks_ttl_ms

    @property
    def is_behind(self) -> bool:
        """Whether more is waiting than should be."""
        return len(self.sealed) >= SEALED_MAX

    @property
    def is_settled(self) -> bool:
        """Whether Redis has everything."""
        return self.is_absent or not (self.is_dirty or self.needs_all or self.is_writing_all or self.sealed or self.in_flight)

    def continue_from(self, generation: int, fence_before: int, number: int) -> None:
        """Redis holds what the stream holds now."""
        self.generation = generation
        self._go_on_from(fence_before, number)
        self.stream.state.track()

    def _go_on_from(self, fence: int, number: int) -> None:
        self._base = self._after = (fence, number)
        self._next_number = number

    def _new_number(self) -> int:
        """One that names nothing else. An append whose answer never came may have been carried out, and then lost: who read it from the log must not
        take what is written instead for the same."""
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

    def _note_unwritten(self) -> None:
        self.is_dirty = True
        if self._unwritten_since_s is None:
            self._unwritten_since_s = time.monotonic()

    # What happens to the stream

    def note(self, change: Change) -> None:
        """One batch changed this."""
        if change.reload or (change.cleared and self.is_writing_all):
            self.void()
        if self.needs_all:
            return
        if not any(self._change.touched) and not self._change.cleared:
            self._change = change
            return
        merge(self._change, change)

    def recorded(self) -> None:
        """A batch is done."""
        self._note_unwritten()
        if self.needs_all or self.is_writing_all:
            return
        operations = self.operations
        if operations >= SEAL_OPERATIONS and not self.is_behind:
            self.seal()
        elif operations > APPEND_OPERATIONS_MAX:
            self.void()

    def void(self) -> None:
        """Nothing of what Redis has of the stream counts any more."""
        self.needs_all = True
        self._note_unwritten()
        self.sealed.clear()
        self._change = Change()
        self.stream.state.untrack()

    @property
    def operations(self) -> int:
        """How many blocks the next call would write."""
        touched = self.stream.state.touched
        return sum(map(len, touched)) if touched is not None else 0

    # Appending

    def seal(self) -> None:
        """Make a call of what is pending."""
        assert self.generation is not None, "what is appended to was written before"
        touched = self.stream.state.track()
        change, self._change = self._change, Change()
        self.is_dirty = False
        before = self._next_number
        number = self._new_number()
        words, growth = self._words(touched)
        change.hash_mapping = self._mapping(touched) if self._settings.engine_hashes else None
        is_large = max(sum(map(len, change.touched)), len(change.hash_mapping or ())) > ENTRY_BLOCKS_MAX
        entry = self._entry(Kind.RELOAD if is_large else Kind.CHANGE, self.generation, number, None if is_large else change)
        self._after = (self.fence, number)
        keys = [self.keys.state(self.key), self.keys.log, self.keys.streams, *self.keys.parts(self.key, self.generation)]
        head: list[Word] = [self.fence, before, self.generation, number, self._head(), entry]
        flags: list[Word] = [self.name, int(growth > 0), int(change.cleared)]
        call = Call("append", keys, [*head, *self._limits(), *flags, *words])
        self.sealed.append(Sealed(call, touched, change, number, growth > 0 and not change.cleared))

    def take(self) -> list[Sealed]:
        """What to send now."""
        if self.is_dirty:
            self.seal()
        self.in_flight = list(self.sealed)
        self.sealed.clear()
        return self.in_flight

    def done(self, sealed: Sealed) -> None:
        """It was carried out."""
        self.in_flight.remove(sealed)
        self._base = (self.fence, sealed.number)
        self.is_unsure = False
        if self.is_settled:
            self._unwritten_since_s = None

    def done_unanswered(self, number: int) -> bool:
        """The state has this number. Returns whether that is my own call whose answer never came."""
        if not self.is_unsure or number <= self.number:
            return False
        self._base = (self.fence, number)
        return True

    def take_back(self, *, is_unsure: bool) -> None:
        """What was sent was not carried out, or nobody knows: it becomes pending again."""
        if self.needs_all:
            self.in_flight = []
            return
        state = self.stream.state
        newer, newer_change = state.track(), self._change
        self._change = Change()
        assert state.touched is not None, "a stream that is written is tracked"
        for sealed in (*self.in_flight, *self.sealed):
            _touch(state.touched, sealed.touched)
            merge(self._change, sealed.change)
        _touch(state.touched, newer)
        merge(self._change, newer_change)
        self.in_flight = []
        self.sealed.clear()
        self.is_dirty = True
        self.is_unsure = self.is_unsure or is_unsure
        self._go_on_from(*self._base)
        if self.operations > APPEND_OPERATIONS_MAX:
            self.void()

    # Writing everything

    def begin_all(self) -> int:
        """From now on changes count from here. Returns a new generation."""
        self.needs_all = False
        self.sealed.clear()
        self._change = Change()
        self.stream.state.track()
        generation = random_number()
        self.outdated.add(generation)
        return generation

    def fields(self, part: int, hashes: Iterable[int]) -> Iterator[tuple[bytes, bytes | None]]:
        """Field and value of these engine hashes in a part, as they are now; None for those that are not held."""
        state = self.stream.state
        if part == PARKED:
            now_s, now_ms = time.monotonic(), time.time() * 1000
            for engine_hash in hashes:
                parked = state.orphans.get(engine_hash)
                if parked is None:
                    yield encode_hash(engine_hash), None
                else:
                    since_ms = int(now_ms - (now_s - parked.since_s) * 1000)
                    copies = {int(tier): count for tier, count in parked.copies.items()}
                    yield encode_hash(engine_hash), encode_parked(ParkedRecord(parked.parent, parked.tokens, parked.extra, since_ms, copies))
            return
        for engine_hash in hashes:
            found = state.removed_record(engine_hash) if part == REMOVED else state.record(Tier(part), engine_hash)
            yield encode_hash(engine_hash), None if found is None else encode_record(found)

    def hashes(self, part: int) -> list[int]:
        """The engine hashes that a part holds now."""
        state = self.stream.state
        if part == PARKED:
            return list(state.orphans)
        return state.removed_hashes() if part == REMOVED else state.hashes(Tier(part))

    def switch(self, generation: int, owner: str, incarnation: str) -> Call:
        """The call that makes a generation the stream's, with what changed while it was written."""
        state = self.stream.state
        self.is_dirty = False
        self._change = Change()
        touched = state.track()
        words, _ = self._words(touched)
        self.expected = [len(self.hashes(part)) for part in range(len(PARTS))]
        # Hashes of removed blocks are part of the mapping: a follower that just dropped everything would not have them.
        maps_removed = self._settings.engine_hashes and self.expected[REMOVED] > 0
        is_empty = not maps_removed and not any(self.expected[tier] for tier in Tier)
        entry = self._entry(Kind.DROP if is_empty else Kind.RELOAD, generation, self._new_number(), None)
        self._after = (self.fence, self._next_number)
        old = [number for number in (*self.outdated, self.generation) if number is not None and number != generation]
        keys = [self.keys.state(self.key), self.keys.log, self.keys.streams, self.keys.incarnation, self.keys.lease(self.key)]
        keys += [name for number in (generation, *old) for name in self.keys.parts(self.key, number)]
        head: list[Word] = [self.fence, owner, generation, self._next_number, self._head(), entry]
        return Call("switch", keys, [*head, *self._limits(), self.name, incarnation, *words])

    def switched(self, generation: int) -> None:
        """It was carried out."""
        self.generation = generation
        self.outdated.clear()
        self._go_on_from(self.fence, self._next_number)
        self.is_unsure = False
        self.is_absent = False

    def delete(self) -> Call:
        """The call that deletes the stream, unless another owner has it."""
        generation = self.generation
        entry = self._entry(Kind.GONE, generation or 0, self._new_number(), None)
        parts = [] if generation is None else self.keys.parts(self.key, generation)
        keys = [self.keys.state(self.key), self.keys.log, self.keys.streams, *parts]
        words: list[Word] = [self.fence, "" if generation is None else generation, self.name, entry]
        return Call("delete", keys, [*words, self._settings.log_entries_max, self._state_ttl_ms])

    # Parts of calls

    def _words(self, touched: Touched) -> tuple[list[Word], int]:
        """What to set and delete, as prelude.lua reads it, and how many more fields there are afterwards, at the most."""
        plain, gone = self._gpu_words(touched[Tier.GPU])
        words: list[Word] = [b"".join(plain), 0, b"".join(gone)]
        growth = len(plain) - len(gone)
        for part in range(1, len(PARTS)):
            sets: list[Word] = []
            dels: list[bytes] = []
            for field, value in self.fields(part, touched[part]):
                if value is None:
                    dels.append(field)
                else:
                    sets += (field, value)
            growth += len(sets) // 2 - len(dels)
            words += (b"", len(sets), *sets, b"".join(dels))
        return words, growth

    def _gpu_words(self, touched: Iterable[int]) -> tuple[list[bytes], list[bytes]]:
        """The same of the gpu's part, which is nearly all that there is."""
        blocks = self.stream.state.blocks
        plain: list[bytes] = []
        gone: list[bytes] = []
        for engine_hash in touched:
            block = blocks.get(engine_hash)
            if block is None or not block.copies:
                gone.append(encode_hash(engine_hash))
            else:
                plain.append(encode_plain(engine_hash, block.copies, block.parent, block.key))
        return plain, gone

    def _mapping(self, touched: Touched) -> HashMapping:
        """What these engine hashes stand for now."""
        state, keys, removed_hashes = self.stream.state, {}, []
        for part in (*Tier, REMOVED):
            for engine_hash in touched[part]:
                key = state.mapped_key(engine_hash)
                if key is None:
                    removed_hashes.append(engine_hash)
                else:
                    keys[engine_hash] = key
        return HashMapping(keys, removed_hashes)

    def _limits(self) -> list[Word]:
        return [self._settings.log_entries_max, self._state_ttl_ms, self._blocks_ttl_ms, self._vouched_until_ms()]

    def _head(self) -> bytes:
        point, settings, state = self.stream.point(), self._settings, self.stream.state
        traits = state.traits()
        head = Head(point.sequence, point.fingerprint, point.complete, point.trust, state.counting, settings.hash_seed, traits, point.is_simulator)
        return encode_head(head)

    def _entry(self, kind: Kind, generation: int, number: int, change: Change | None) -> bytes:
        block_size = self.stream.state.block_size
        tiers = () if change is None else pack_tiers(change.touched)
        cleared = change is not None and change.cleared
        trust = self.stream.point().trust
        mapping, removed_hashes = (None, None) if change is None or change.hash_mapping is None else pack_mapping(change.hash_mapping)
        sequence = None if change is None else change.sequence
        version = (generation, self.fence, number, *self._after)
        return encode_entry(Entry(self.name, kind, *version, trust, block_size, cleared, tiers, mapping, removed_hashes, sequence))


def merge(older: Change, newer: Change) -> None:
    """Make `older` what both are together."""
    if newer.cleared:
        older.clear_gpu()
    if newer.sequence is not None:
        older.sequence = newer.sequence
    for before, after in zip(older.touched, newer.touched, strict=True):
        before.update(after)


def _touch(touched: Touched, more: Touched) -> None:
    for before, after in zip(touched, more, strict=True):
        before.update(after)

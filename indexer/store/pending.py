"""What of one owned stream is not in Redis yet, turned into calls of scripts.

    pending    changes that are in no call yet: the touched engine hashes (in the stream's state) and block keys
    sealed     calls made of them, not sent yet; values are those of the moment of sealing, which is the end of a batch
    in flight  sent, not answered

An answer that never comes leaves nothing undecided: numbers tell whether the call was carried out, and final values may be written twice.
"""

import secrets
import time
from collections import deque
from collections.abc import Callable

from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.block_table import REMOVED, Touched
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.store.encoding import RecordedStream, StreamEncoder
from indexer.store.keyspace import PARTS, ModelKeys
from indexer.store.records import ENTRY_BLOCKS_MAX, Kind
from indexer.store.scripts import Call, Word

# A call is sealed from so many touched hashes on: one script takes Redis some milliseconds at the most, and its entry fits into the log …
SEAL_OPERATIONS = 768
# … so many of them may wait; then changes gather in one …
SEALED_MAX = 32
# … and beyond this, writing everything anew blocks Redis less than one append would.
APPEND_OPERATIONS_MAX = 10_000


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


class PendingWrites:
    """See the module.

    `needs_full_write`: what Redis has does not count, all has to be written as a new generation. `is_expired`: the stream is to be deleted.
    `is_unsure`: a call was not answered, and may have been carried out. `old_generations`: those that the next switch deletes.
    """

    def __init__(self, stream: RecordedStream, keys: ModelKeys, settings: Settings, fence: int, vouched_until_ms: Callable[[], int]) -> None:
        """`vouched_until_ms`: until when a stream is vouched for that Redis has completely now, by Redis's clock."""
        self.stream = stream
        self.key = stream.key
        self.keys = keys
        self.fence = fence
        self.encoder = StreamEncoder(stream, settings)
        self.name = self.encoder.name
        self.generation: int | None = None
        self.old_generations: set[int] = set()
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
        self._vouched_until_ms = vouched_until_ms
        self._state_ttl_ms = int(settings.pod_expiry_s * 1000)
        self._blocks_ttl_ms = int((settings.pod_expiry_s + settings.lease_s) * 1000)
        self._base = self._after = (0, 0)
        self._next_number = self._last_number = 0
        self._change = Change()
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
    def is_settled(self) -> bool:
        """Whether Redis has everything."""
        return self.is_expired or not (self.is_dirty or self.needs_full_write or self.is_writing_in_full or self.sealed or self.in_flight)

    def continue_from(self, generation: int, fence_before: int, number: int) -> None:
        """Redis holds what the stream holds now."""
        self.generation = generation
        self._go_on_from(fence_before, number)
        self.stream.state.track()

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

    def _note_unwritten(self) -> None:
        self.is_dirty = True
        if self._unwritten_since_s is None:
            self._unwritten_since_s = time.monotonic()

    # Changes of the stream

    def add(self, change: Change) -> None:
        """The change of one batch."""
        if change.reload or (change.cleared and self.is_writing_in_full):
            self.require_full_write()
        if self.needs_full_write:
            return
        if not any(self._change.touched) and not self._change.cleared:
            self._change = change
            return
        merge(self._change, change)

    def end_batch(self) -> None:
        """A batch was applied, whether it changed anything or not."""
        self._note_unwritten()
        if self.needs_full_write or self.is_writing_in_full:
            return
        operations = self.operations
        if operations >= SEAL_OPERATIONS and not self.is_behind:
            self.seal()
        elif operations > APPEND_OPERATIONS_MAX:
            self.require_full_write()

    def require_full_write(self) -> None:
        """Nothing of what Redis has of the stream counts any more: write it all."""
        self.needs_full_write = True
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
        words, growth = self.encoder.words(touched)
        change.hash_mapping = self.encoder.hash_mapping(touched) if self._settings.engine_hashes else None
        is_large = max(sum(map(len, change.touched)), len(change.hash_mapping or ())) > ENTRY_BLOCKS_MAX
        kind = Kind.RELOAD if is_large else Kind.CHANGE
        entry = self.encoder.entry(kind, self.generation, (self.fence, number), self._after, None if is_large else change)
        self._after = (self.fence, number)
        keys = [self.keys.state(self.key), self.keys.log, self.keys.streams, *self.keys.parts(self.key, self.generation)]
        head: list[Word] = [self.fence, before, self.generation, number, self.encoder.head(), entry]
        flags: list[Word] = [self.name, int(growth > 0), int(change.cleared)]
        call = Call("append", keys, [*head, *self._limits(), *flags, *words])
        self.sealed.append(Sealed(call, touched, change, number, growth > 0 and not change.cleared))

    def take_sealed(self) -> list[Sealed]:
        """What to send now."""
        if self.is_dirty:
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
        """What was sent was not carried out, or nobody knows: it becomes pending again."""
        if self.needs_full_write:
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
            self.require_full_write()

    # Full write

    def begin_full_write(self) -> int:
        """Collect changes from now on. Returns a new generation."""
        self.needs_full_write = False
        self.sealed.clear()
        self._change = Change()
        self.stream.state.track()
        generation = random_number()
        self.old_generations.add(generation)
        return generation

    def switch(self, generation: int, owner: str, incarnation: str) -> Call:
        """The call that makes a generation the stream's, with what changed while it was written."""
        state = self.stream.state
        self.is_dirty = False
        self._change = Change()
        touched = state.track()
        words, _ = self.encoder.words(touched)
        self.expected_lengths = [len(self.encoder.hashes(part)) for part in range(len(PARTS))]
        # Hashes of removed blocks are part of the mapping: a follower that just dropped everything would not have them.
        maps_removed = self._settings.engine_hashes and self.expected_lengths[REMOVED] > 0
        is_empty = not maps_removed and not any(self.expected_lengths[tier] for tier in Tier)
        entry = self.encoder.entry(Kind.DROP if is_empty else Kind.RELOAD, generation, (self.fence, self._new_number()), self._after)
        self._after = (self.fence, self._next_number)
        old = [number for number in (*self.old_generations, self.generation) if number is not None and number != generation]
        keys = [self.keys.state(self.key), self.keys.log, self.keys.streams, self.keys.incarnation, self.keys.lease(self.key)]
        keys += [name for number in (generation, *old) for name in self.keys.parts(self.key, number)]
        head: list[Word] = [self.fence, owner, generation, self._next_number, self.encoder.head(), entry]
        return Call("switch", keys, [*head, *self._limits(), self.name, incarnation, *words])

    def switched(self, generation: int) -> None:
        """It was carried out."""
        self.generation = generation
        self.old_generations.clear()
        self._go_on_from(self.fence, self._next_number)
        self.is_unsure = False
        self.is_expired = False

    def delete(self) -> Call:
        """The call that deletes the stream, unless another owner has it."""
        generation = self.generation
        entry = self.encoder.entry(Kind.GONE, generation or 0, (self.fence, self._new_number()), self._after)
        parts = [] if generation is None else self.keys.parts(self.key, generation)
        keys = [self.keys.state(self.key), self.keys.log, self.keys.streams, *parts]
        words: list[Word] = [self.fence, "" if generation is None else generation, self.name, entry]
        return Call("delete", keys, [*words, self._settings.limits.store.log_entries_max, self._state_ttl_ms])

    def _limits(self) -> list[Word]:
        return [self._settings.limits.store.log_entries_max, self._state_ttl_ms, self._blocks_ttl_ms, self._vouched_until_ms()]


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

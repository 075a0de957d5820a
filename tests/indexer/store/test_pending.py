import msgspec

from indexer.config.settings import Settings
from indexer.core.blocks import Block
from indexer.core.change import HashMapping
from indexer.core.event_pieces import result_of
from indexer.core.events import Cleared, Event, Tier
from indexer.core.names import StreamKey, Trust
from indexer.core.places import LEAD_GPU, place_of
from indexer.core.snapshot import Snapshot
from indexer.core.store import StreamPosition
from indexer.core.stream_state import StreamState
from indexer.store.keyspace import Keyspace
from indexer.store.pending import PendingRecords, PendingWrites, Sealed, hash_mapping
from indexer.store.records import Entry, decode_entry
from tests.events import removed, stored
from tests.owner import keys_of

MODEL = "some/model"
KEY = StreamKey(MODEL, "pod", 0)
A, B, C = 101, 102, 103
KEYS = dict(zip((A, B, C), keys_of(MODEL, [1, 2, 3]), strict=True))


class Written:
    """A stream that Redis has, and what is pending of it."""

    def __init__(self) -> None:
        settings = Settings(redis="redis://nowhere", engine_hashes=True)
        self.state = StreamState(MODEL, "", with_records=True, with_hash_mapping=True)
        position = StreamPosition(0, b"fingerprint", True, Trust.LIVE, False)
        self.position = position
        self.pending = PendingWrites(KEY, Snapshot(self.state), position, Keyspace("test").model(MODEL), settings, 5, lambda: 1)
        self.pending.continue_from(7, 4, 1)

    def apply(self, *events: Event) -> None:
        """One batch."""
        self.pending.append(self.state.apply(events, 0.0), self.position)

    def sealed_mapping(self) -> HashMapping:
        """What the next call says of engine hashes."""
        (sealed,) = self.pending.take_sealed()
        assert sealed.change.hash_mapping is not None
        return sealed.change.hash_mapping


def test_an_engine_hash_stands_for_the_key_of_its_block_or_for_none() -> None:
    written = Written()
    written.apply(stored([A, B, C], [1, 2, 3]))
    written.apply(removed([C]))
    assert written.sealed_mapping() == HashMapping({A: KEYS[A], B: KEYS[B]}, [C])


def test_an_engine_hash_that_is_offloaded_keeps_its_key_when_the_gpu_drops_it() -> None:
    written = Written()
    written.apply(stored([A, B], [1, 2]))
    written.apply(stored([A], [1], tier=Tier.CPU), removed([A, B]))
    assert written.sealed_mapping() == HashMapping({A: KEYS[A], B: KEYS[B]}, []), "B is remembered: a later run may cover it"


def test_a_hash_that_was_removed_before_anything_was_offloaded_is_mapped_from_then_on() -> None:
    written = Written()
    written.apply(stored([A, B], [1, 2]))
    written.apply(removed([B]))
    written.apply(stored([A], [1], tier=Tier.CPU))
    assert written.sealed_mapping() == HashMapping({A: KEYS[A], B: KEYS[B]}, [])


def test_what_a_call_in_vain_said_does_not_outlive_what_happened_since() -> None:
    written = Written()
    written.apply(stored([A, B], [1, 2]))
    written.pending.take_sealed()
    written.apply(removed([B]))
    written.pending.take_back(is_unsure=True)
    assert written.sealed_mapping() == HashMapping({A: KEYS[A]}, [B])


def test_a_cleared_gpu_takes_its_mapping_with_it() -> None:
    written = Written()
    written.apply(stored([A, B], [1, 2]))
    written.apply(Cleared())
    (sealed,) = written.pending.take_sealed()
    assert sealed.change.cleared
    assert sealed.change.hash_mapping == HashMapping({}, [])
    assert not sealed.records.get(LEAD_GPU)


def test_a_given_mapping_counts_before_what_records_say() -> None:
    records: PendingRecords = {LEAD_GPU: {A: None, B: Block(2, None), C: Block(3, None, 0)}}
    assert hash_mapping({}, {}) == HashMapping({}, [])
    assert hash_mapping(records, {}) == HashMapping({B: 2}, [A, C])
    assert hash_mapping(records, {A: 1, B: None}) == HashMapping({A: 1}, [C, B])


def test_everything_pending_becomes_one_call_and_a_confirmed_one_settles_it() -> None:
    written = Written()
    written.apply(stored([A], [1]))
    written.apply(stored([B], [2], A))
    (sealed,) = written.pending.take_sealed()
    assert (sealed.call.script, set(sealed.records[LEAD_GPU]), sealed.grows) == ("append", {A, B}, True)
    assert not written.pending.is_settled
    written.pending.confirm(sealed)
    assert written.pending.is_settled
    assert written.pending.number == sealed.number
    assert written.pending.unwritten_since_s is None


def entry_of(sealed: Sealed) -> bytes:
    """The entry of the log that a call adds."""
    (entry,) = [word for word in sealed.call.words if isinstance(word, bytes) and KEY.pod.encode() in word]
    return entry


def test_an_entry_names_the_spans_of_its_batches_as_many_as_it_may() -> None:
    written = Written()
    spans = [bytes([number]) * 24 for number in range(1, 20)]
    for number, span in enumerate(spans):
        change = written.state.apply([stored([number], [number])], 0.0)
        change.spans = span
        written.pending.append(change, written.position)
    written.pending.take_sealed()
    written.pending.take_back(is_unsure=True)
    (sealed,) = written.pending.take_sealed()
    assert decode_entry(entry_of(sealed)).spans == b"".join(spans[:16])


def test_an_entry_of_a_batch_that_changed_nothing_names_its_span() -> None:
    written = Written()
    change = written.state.apply([], 0.0)
    change.spans = b"s" * 24
    written.pending.append(change, written.position)
    (sealed,) = written.pending.take_sealed()
    assert decode_entry(entry_of(sealed)).spans == b"s" * 24


def test_entries_with_and_without_spans_are_read_by_those_that_know_none() -> None:
    """The field is absent where there is none, so that scorers of the previous release and of this one read the same."""
    for spans in (b"", b"s" * 24):
        written = Written()
        change = written.state.apply([stored([A], [1])], 0.0)
        change.spans = spans
        written.pending.append(change, written.position)
        (sealed,) = written.pending.take_sealed()
        fields = msgspec.msgpack.decode(entry_of(sealed))
        assert (len(fields), fields[15:]) == (16 if spans else 15, [spans] if spans else [])
        known = msgspec.msgpack.decode(entry_of(sealed), type=Entry)
        assert known == Entry(*(getattr(decode_entry(entry_of(sealed)), name) for name in Entry.__struct_fields__))


def test_redis_lacks_something_from_when_the_trust_changed_until_that_is_written() -> None:
    """Else a renewal would go on saying of the content what was true before."""
    written = Written()
    assert written.pending.unwritten_since_s is None
    written.pending.set_trust(Trust.STALE, written.position)
    since_s = written.pending.unwritten_since_s
    assert since_s is not None
    written.apply(stored([A], [1]))
    assert written.pending.unwritten_since_s == since_s, "since the oldest of what it lacks"
    (sealed,) = written.pending.take_sealed()
    written.pending.confirm(sealed)
    assert written.pending.unwritten_since_s is None


def test_of_several_groups_the_mapping_is_told_beside_the_records() -> None:
    """A record of one group does not say whether another group holds the hash."""
    written = Written()
    window = {"group": 1, "kind": "sliding_window", "window": 8}
    written.apply(stored([A, B], [1, 2]), stored([A, B], [1, 2], **window))
    written.apply(removed([A]), removed([B]), removed([B], group=1))
    (sealed,) = written.pending.take_sealed()
    assert sealed.records.keys() == {LEAD_GPU, place_of(1, Tier.GPU)}
    assert sealed.change.hash_mapping == HashMapping({A: KEYS[A]}, [B])
    assert sealed.change.touched_in[1][Tier.GPU] == {KEYS[A]: True, KEYS[B]: False}


def test_a_cleared_gpu_takes_what_is_pending_of_every_group_and_leaves_the_lower_tiers() -> None:
    written = Written()
    window = {"group": 1, "kind": "sliding_window", "window": 8}
    written.apply(stored([A, B], [1, 2]), stored([A, B], [1, 2], **window), stored([A], [1], tier=Tier.CPU, **window))
    written.apply(Cleared())
    (sealed,) = written.pending.take_sealed()
    assert [place for place, records in sealed.records.items() if place in (LEAD_GPU, place_of(1, Tier.GPU)) and records] == []
    assert set(sealed.records[place_of(1, Tier.CPU)]) == {A}
    assert (sealed.change.cleared, sealed.change.touched_in[1][Tier.GPU], sealed.change.touched_in[1][Tier.CPU]) == (True, {}, {KEYS[A]: True})


def test_what_a_call_in_vain_said_of_a_group_is_said_again() -> None:
    written = Written()
    window = {"group": 1, "kind": "sliding_window", "window": 8}
    written.apply(stored([A, B], [1, 2]), stored([A, B], [1, 2], **window))
    written.pending.take_sealed()
    written.apply(removed([B], group=1))
    written.pending.take_back(is_unsure=True)
    (sealed,) = written.pending.take_sealed()
    assert sealed.records[place_of(1, Tier.GPU)].keys() == {A, B}
    assert sealed.records[place_of(1, Tier.GPU)][B] is None
    assert sealed.change.touched_in[1][Tier.GPU] == {KEYS[A]: True, KEYS[B]: False}


def test_what_is_pending_waits_for_the_end_of_a_batch_that_is_applied_in_part() -> None:
    """The head says how the stream's blocks are cut, which adapters it has, …: as it is, not as it was."""
    written = Written()
    written.apply(stored([A], [1]))
    batch = [stored([B], [2], lora_name="ad")]
    steps = written.state.apply_in_steps(batch, batch, 0.0)
    next(steps)
    assert written.pending.is_amid_batch
    assert written.pending.take_sealed() == []
    written.pending.append(result_of(steps), written.position)
    (sealed,) = written.pending.take_sealed()
    assert sealed.records[LEAD_GPU].keys() == {A, B}

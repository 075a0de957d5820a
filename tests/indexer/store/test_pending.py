from indexer.config.settings import Settings
from indexer.core.block_table import Block, HashRecord
from indexer.core.change import HashMapping
from indexer.core.events import Cleared, Event, Tier
from indexer.core.names import StreamKey, Trust
from indexer.core.places import REMOVED
from indexer.core.snapshot import Snapshot
from indexer.core.store import StreamPosition
from indexer.core.stream_state import StreamState
from indexer.store.keyspace import Keyspace
from indexer.store.pending import PendingWrites, hash_mapping
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
    assert not sealed.records[Tier.GPU]


def test_a_given_mapping_counts_before_what_records_say() -> None:
    records: list[dict[int, HashRecord | None]] = [{} for _ in range(REMOVED + 1)]
    records[Tier.GPU] = {A: None, B: Block(2, None), C: Block(3, None, 0)}
    assert hash_mapping(records, {}) == HashMapping({B: 2}, [A, C])
    assert hash_mapping(records, {A: 1, B: None}) == HashMapping({A: 1}, [C, B])


def test_everything_pending_becomes_one_call_and_a_confirmed_one_settles_it() -> None:
    written = Written()
    written.apply(stored([A], [1]))
    written.apply(stored([B], [2], A))
    (sealed,) = written.pending.take_sealed()
    assert (sealed.call.script, set(sealed.records[Tier.GPU]), sealed.grows) == ("append", {A, B}, True)
    assert not written.pending.is_settled
    written.pending.confirm(sealed)
    assert written.pending.is_settled
    assert written.pending.number == sealed.number
    assert written.pending.unwritten_since_s is None

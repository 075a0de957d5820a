"""The packed blocks of a stream hold what those in Python do, whatever is done to them."""

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from indexer.core import block_runs, block_table, held_blocks, indexed_keys
from indexer.core.block_keys import pack_tokens
from indexer.core.block_table import HashRecord
from indexer.core.blocks import Block, Blocks, BlocksInPython
from indexer.core.change import Change
from indexer.core.event_pieces import result_of
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.held_keys import HeldKeys, HeldKeysInPython
from indexer.core.key_claims import KeyClaims, KeyClaimsInPython
from indexer.core.orphans import Parked
from indexer.core.places import LEAD_GPU
from indexer.core.snapshot import Snapshot
from indexer.core.stream_state import Counting, StreamState
from indexer.limits import StateLimits
from tests.indexer.core.test_isolation import some_events
from tests.indexer.core.test_stream_state import any_batches

core = pytest.importorskip("indexer.compiled._core")

# Few, so that they meet; and those at both ends.
NUMBERS = st.sampled_from([*range(8), 2**63, 2**64 - 1])
BLOCK = st.builds(Block, NUMBERS, st.none() | NUMBERS, st.integers(0, 3))

# Tables


def both(steps: Iterable[Callable[[Any], Any]], first: Any, second: Any, read: Callable[[Any], Any]) -> None:
    for step in steps:
        assert step(first) == step(second)
        assert read(first) == read(second)


def step_of_blocks(name: str, engine_hash: int, block: Block) -> Callable[[Blocks], Any]:
    def step(blocks: Blocks) -> Any:
        match name:
            case "put":
                blocks[engine_hash] = block
            case "pop":
                return blocks.pop(engine_hash, None)
            case "delete" if engine_hash in blocks:
                del blocks[engine_hash]
            case "clear" if engine_hash == 0:
                blocks.clear()
        return blocks.get(engine_hash), blocks.key_of(engine_hash), engine_hash in blocks, len(blocks)

    return step


@given(st.lists(st.builds(step_of_blocks, st.sampled_from(["put", "put", "pop", "delete", "clear"]), NUMBERS, BLOCK), max_size=60))
def test_blocks_are_a_dict_in_its_order(steps: list[Callable[[Blocks], Any]]) -> None:
    def read(blocks: Blocks) -> Any:
        return list(blocks.items()), list(blocks.hashes_with_copies()), blocks.count_with_copies()

    both(steps, BlocksInPython(), core.BlockMap(Block), read)


def test_very_many_blocks_come_and_go() -> None:
    """Through every size of the table, with holes in all places, up and down again."""
    rng = random.Random("blocks")
    expected, blocks = BlocksInPython(), core.BlockMap(Block)
    for share in (0.1, 0.5, 0.9, 0.2, 1.1):
        for _ in range(6_000):
            engine_hash = rng.getrandbits(12) << rng.choice([0, 20, 52])
            if rng.random() < share:
                assert blocks.pop(engine_hash, None) == expected.pop(engine_hash, None)
            else:
                expected[engine_hash] = blocks[engine_hash] = Block(rng.getrandbits(64), rng.choice([None, engine_hash]), rng.randrange(4))
        assert list(blocks.items()) == list(expected.items())


def test_what_is_no_hash_is_refused_and_changes_nothing() -> None:
    blocks = core.BlockMap(Block)
    for wrong in (-1, 2**64, "1", None, 1.0):
        with pytest.raises((TypeError, OverflowError)):
            blocks[wrong] = Block(1, None)
        for block in (Block(wrong, None), Block(1, wrong) if wrong is not None else Block(None, None), Block(1, None, wrong)):  # type: ignore[arg-type]
            with pytest.raises((TypeError, OverflowError)):
                blocks[1] = block
    assert list(blocks) == []
    with pytest.raises(KeyError):
        blocks[1]
    with pytest.raises(KeyError):
        del blocks[1]


def test_blocks_that_change_during_iteration_are_noticed() -> None:
    blocks = core.BlockMap(Block)
    blocks[1] = blocks[2] = Block(1, None)
    hashes = iter(blocks)
    assert next(hashes) == 1
    del blocks[1]
    with pytest.raises(RuntimeError):
        next(hashes)


STEPS_OF_KEYS = st.lists(st.tuples(st.sampled_from(["add", "add", "remove", "clear"]), NUMBERS), max_size=60)


@given(STEPS_OF_KEYS)
def test_held_keys_are_counted_alike(steps: list[tuple[str, int]]) -> None:
    def step(name: str, key: int) -> Callable[[HeldKeys], Any]:
        if name == "clear":
            return lambda held: held.clear() if key == 0 else None
        return lambda held: getattr(held, name)(key)

    both([step(*each) for each in steps], HeldKeysInPython(), core.HeldKeys(), lambda held: set(held.keys))


@given(st.lists(st.tuples(st.sampled_from(["claim", "claim", "release"]), NUMBERS, NUMBERS), max_size=80))
def test_keys_are_claimed_alike(steps: list[tuple[str, int, int]]) -> None:
    def step(name: str, engine_hash: int, key: int) -> Callable[[KeyClaims], Any]:
        return lambda claims: getattr(claims, name)(engine_hash, key)

    both([step(*each) for each in steps], KeyClaimsInPython(), core.KeyClaims(), lambda claims: claims.ambiguous)


def test_very_many_keys_are_claimed_and_released() -> None:
    rng = random.Random("claims")
    expected, claims = KeyClaimsInPython(), core.KeyClaims()
    for share in (0.2, 0.8, 0.5):
        for _ in range(6_000):
            engine_hash, key = rng.getrandbits(3), rng.getrandbits(12) << rng.choice([0, 52])
            if rng.random() < share:
                assert claims.release(engine_hash, key) == expected.release(engine_hash, key)
            else:
                assert claims.claim(engine_hash, key) == expected.claim(engine_hash, key)
        assert claims.ambiguous == expected.ambiguous


# Streams


@contextmanager
def tables_of(*, are_packed: bool) -> Iterator[None]:
    """What streams are made of."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block_table, "make_blocks", (lambda: core.BlockMap(Block)) if are_packed else BlocksInPython)
        patch.setattr(indexed_keys, "make_held_keys", core.HeldKeys if are_packed else HeldKeysInPython)
        patch.setattr(indexed_keys, "make_key_claims", core.KeyClaims if are_packed else KeyClaimsInPython)
        patch.setattr(block_runs, "core", core)
        runs = block_runs.packed if are_packed else block_runs.in_python
        patch.setattr(held_blocks, "make_block_runs", runs)
        yield


def value_of(record: HashRecord | None) -> Any:
    """A record as it is now: some are the stream's own."""
    return [getattr(record, name) for name in Parked.__slots__] if isinstance(record, Parked) else str(record)


def said(change: Change) -> Any:
    """All that a change says, as values."""
    records = change.records and {place: {number: value_of(record) for number, record in held.items()} for place, held in change.records.items()}
    mapping = change.hash_mapping and (change.hash_mapping.keys, set(change.hash_mapping.removed_hashes))
    return change.reload, change.cleared, change.touched, change.touched_in, records, mapping


def history(batches: list[list[Event]], counting: Counting, *, are_packed: bool, with_records: bool, **limits: int) -> list[Any]:
    """What a stream says and holds after each batch."""
    found = []
    with tables_of(are_packed=are_packed):
        state = StreamState("m", "", counting, StateLimits(**limits), with_records=with_records, with_hash_mapping=with_records)
        for batch in batches:
            change, snapshot = state.apply(batch, 0.0), Snapshot(state)
            records = {place: snapshot.records(place, snapshot.hashes(place)) for place in snapshot.places()}
            assert snapshot.count(LEAD_GPU) == sum(block.copies > 0 for _, block in state.table.held.items())
            held = {place: [(number, value_of(record)) for number, record in of_place.items()] for place, of_place in records.items()}
            slots = range(1 if state.shape is None else len(state.shape.groups))
            shown = {(slot, tier): state.held(tier, slot) for slot in slots for tier in Tier}
            removed = str(list(state.table.removed.items()))
            found.append((said(change), held, shown, removed, dict(state.tally), state.ambiguous, dict(state.stored), dict(state.removed)))
        result_of(state.drop_held())
        found.append((len(state.table.held), str(list(state.table.removed.items()))))
    return found


def check_history(batches: list[list[Event]], counting: Counting = "copies", **limits: int) -> None:
    for with_records in (False, True):
        packed_history = history(batches, counting, are_packed=True, with_records=with_records, **limits)
        assert packed_history == history(batches, counting, are_packed=False, with_records=with_records, **limits)


@pytest.mark.parametrize("are_packed", [True, False])
def test_a_block_that_is_its_own_parent_covers_one_key(are_packed: bool) -> None:
    with tables_of(are_packed=are_packed):
        table = StreamState("m", "").table
        table.held[1], table.held[2] = Block(7, 1, 1), Block(8, 1, 1)
        assert table.covered(1, table.held[1], 3) == (7,)
        assert table.covered(2, table.held[2], 3) == (8, 7)


@given(any_batches(), st.sampled_from(["copies", "set"]))
def test_streams_of_any_events_are_the_same(batches: list[list[Event]], counting: Counting) -> None:
    check_history(batches, counting, removed_max=3, parked_max=3)


@pytest.mark.parametrize("dialect", ["vllm", "sglang"])
def test_streams_of_several_tenants_are_the_same(dialect: str) -> None:
    @given(st.lists(st.lists(some_events(dialect), min_size=1, max_size=4), max_size=8))
    def check(batches: list[list[Event]]) -> None:
        check_history(batches, removed_max=4)

    check()


def random_events(rng: random.Random, *, announces: bool) -> Iterator[Event]:
    """Prompts that grow, in runs, some of them with the tokens of others; and all that makes them go. `announces`: whether with extra keys."""
    known: list[int] = [0]
    while True:
        tier = rng.choice([Tier.GPU] * 9 + [Tier.CPU])
        kind = rng.random()
        if kind < 0.6:
            count = rng.choice([1, 1, 2, 5, 70])
            hashes = [rng.choice(known) if rng.random() < 0.03 else rng.getrandbits(64) for _ in range(count)]
            tokens = pack_tokens([rng.randrange(2) if rng.random() < 0.3 else rng.getrandbits(32) for _ in hashes])
            with_extra = rng.sample(range(count), rng.randint(1, count)) if announces and rng.random() < 0.2 else ()
            extra_keys = dict.fromkeys(with_extra, b"\x92\x91\x01\xc0") or None
            adapter = "a" if rng.random() < 0.05 else None
            parent = rng.choice([None, None, known[-1], rng.choice(known)])
            yield Stored(hashes, parent, tokens, 1, tier, adapter, extra_keys, announces, 0, None, lists_extra_keys=announces)
            known = (known + hashes)[-400:]
        elif kind < 0.98:
            yield Removed(rng.sample(known, min(len(known), rng.choice([1, 3, 40]))), tier, 0)
        else:
            yield Cleared()


@pytest.mark.parametrize("announces", [True, False])
def test_long_runs_of_blocks_do_the_same(announces: bool) -> None:
    """Above the limits, too."""
    for seed in range(12):
        rng = random.Random(seed)
        events = random_events(rng, announces=announces)
        batches = [[next(events) for _ in range(rng.randint(1, 4))] for _ in range(25)]
        check_history(batches, "copies" if seed % 3 else "set", removed_max=50, gpu_blocks_max=300, lower_tier_blocks_max=40, copies_max=3)

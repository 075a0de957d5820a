"""What streams hold, in a real Redis and back, through everything that a Redis can do in between.

What Redis should have is read by the test itself, field by field, and compared with what the stream holds.
"""

import asyncio
import random
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import msgspec
import pytest
from msgspec import structs
from prometheus_client import CollectorRegistry
from redis.exceptions import TimeoutError as RedisTimeoutError

from indexer.config.settings import Settings
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.names import StreamKey, Trust
from indexer.core.snapshot import Snapshot
from indexer.core.store import StreamPosition
from indexer.core.stream_state import StreamState
from indexer.engines.spec import EngineSpec
from indexer.errors import StoreError
from indexer.metrics import IndexerMetrics
from indexer.store import flusher, full_write
from indexer.store.flusher import Loss, Ownership
from indexer.store.full_write import GENERATIONS_MAX, Pace, write_generation
from indexer.store.keyspace import PARTS, Keyspace
from indexer.store.leases import Claim
from indexer.store.pending import SEAL_OPERATIONS, PendingWrites
from indexer.store.records import encode_field
from indexer.store.redis import RedisStore
from indexer.store.renewal import OwnedStatus
from indexer.store.scripts import Call
from tests.events import offloaded, removed, sparse, stored
from tests.proxy import Proxy
from tests.redis_server import RedisServer
from tests.waiting import wait_until_async

KEY = StreamKey("my/{odd} model:", "10.0.0.7:8000", 0)


class Owned:
    """A stream without an engine: the test applies events to it."""

    def __init__(self, store: RedisStore, key: StreamKey = KEY) -> None:
        self.key = key
        self.state = StreamState(key.model, "", with_records=True)
        self.is_connected = True
        self.sequence: int | None = None
        self.trust = Trust.LIVE
        self.resumed: Any = None
        self._store = store

    @property
    def position(self) -> StreamPosition:
        return StreamPosition(self.sequence, b"fingerprint", True, self.trust, False)

    def resume(self, head: Any) -> None:
        self.resumed = head
        self.sequence = head.sequence

    def apply(self, *events: Event) -> None:
        change = self.state.apply(events, time.monotonic())
        self.sequence = 0 if self.sequence is None else self.sequence + 1
        self._store.append(self.key, self.state.shape, change, self.position)

    def forget(self) -> None:
        self.state.forget()
        self._store.drop(self.key, self.position)


def settings_of(server: RedisServer, **more: Any) -> Settings:
    return Settings(**{"redis": server.url, "redis_timeout_s": 0.5, "pod_expiry_s": 60.0, "lease_s": 30.0, **more})  # nobody renews leases here


@asynccontextmanager
async def opened(settings: Settings, member: str = "me") -> AsyncIterator[RedisStore]:
    async with RedisStore(settings, IndexerMetrics(CollectorRegistry()), member) as store:
        yield store


async def owned(store: RedisStore, key: StreamKey = KEY) -> Owned:
    """A stream of this store's, loaded if Redis has it."""
    claim = await store.claim(key, "free")
    assert isinstance(claim, Claim), claim
    stream = Owned(store, key)
    head = await store.load(claim, key, stream.state)
    if head is not None:
        stream.resume(head)
    store.own(key, claim, Snapshot(stream.state), stream.position, is_loaded=head is not None)
    return stream


async def settled(store: RedisStore, key: StreamKey = KEY) -> None:
    await wait_until_async(lambda: store._flusher.streams[key].is_settled)  # what is waiting has no public face: nobody else has to know


Fields = dict[tuple[int, int], bytes]
"""Engine hash and slot of the group → value. Waiting and removed blocks have no slot: theirs is 0."""


def in_redis(server: RedisServer, key: StreamKey = KEY) -> dict[str, Fields]:
    """What lies in each part of the stream's generation, read by the test."""
    client = server.client()
    keys = Keyspace("kvi").model(key.model)
    generation = client.hget(keys.state(key), "gen")
    assert generation is not None, "no state"
    found = {}
    for part, name in zip(PARTS, keys.parts(key, int(generation)), strict=True):
        fields: Any = client.hgetall(name)
        found[part] = {(int.from_bytes(field[:8], "little"), field[8] if len(field) > 8 else 0): value for field, value in fields.items()}
        assert all(len(field) == 8 or (len(field) == 9 and field[8]) for field in fields)
    return found


def as_held(state: StreamState) -> dict[str, Fields]:
    """The same as the stream has it, written down here byte for byte."""
    found: dict[str, Fields] = {part: {} for part in PARTS}
    for place in state.table.places():
        slot, tier = place // 8, Tier(place % 8)
        for engine_hash in state.table.hashes(place):
            record = state.table.record(place, engine_hash)
            assert record is not None
            distance = 4 * record.span if record.span > 1 else 0
            parent = struct.pack("<BQ", (record.parent is not None) + distance, record.parent or 0)
            found[tier.word][engine_hash, slot] = bytes([record.copies]) + parent + struct.pack(f"<{len(record.keys)}Q", *record.keys)
    for engine_hash in state.orphans:
        found["parked"][engine_hash, 0] = b"parked"
    for engine_hash in state.table.removed_hashes():
        found["removed"][engine_hash, 0] = b"removed"
    return found


def shown(state: StreamState) -> dict[tuple[int, Tier], set[int]]:
    """The block keys by slot and tier."""
    slots = range(1 if state.shape is None else len(state.shape.groups))
    return {(slot, tier): state.held(tier, slot) for slot in slots for tier in Tier}


def assert_written(server: RedisServer, stream: Owned) -> None:
    written = in_redis(server, stream.key)
    written |= {part: dict.fromkeys(written[part], part.encode()) for part in ("parked", "removed")}
    assert written == as_held(stream.state)
    state = server.client().hgetall(Keyspace("kvi").model(stream.key.model).state(stream.key))
    assert msgspec.msgpack.decode(state[b"head"])[0] == stream.sequence
    assert state[b"lengths"] == ",".join(str(len(written[part])) for part in PARTS).encode()


class Load:
    """Random events of an engine that stores, evicts, offloads, clears and sends children before their parents. `groups`: how many it has."""

    def __init__(self, seed: int, groups: int = 1) -> None:
        self.random = random.Random(seed)
        self.groups = groups
        self.next_hash = 1
        self.gpu: list[int] = []
        self.gone: list[int] = []
        self.cpu: list[int] = []
        self.held_back: list[Stored] = []

    def events(self) -> list[Event]:
        return [event for _ in range(self.random.randint(1, 4)) for event in self._in_groups(self._event())]

    def _in_groups(self, event: Event) -> list[Event]:
        """What is stored is announced by all groups in any order, some of it by hash alone; what goes, goes from some of them."""
        if self.groups == 1 or isinstance(event, Cleared):
            return [event]
        others = range(1, self.groups)
        if isinstance(event, Removed):
            return [event, *(structs.replace(event, group=group) for group in others if self.random.random() < 0.5)]
        found: list[Event] = [event]
        for group in others:
            is_sparse = bool(event.tokens) and self.random.random() < 0.3
            blocks = [sparse(event.hashes[-1:], len(event.hashes), event.parent, group=group, window=16)] if is_sparse else []
            found += blocks or [structs.replace(event, group=group, kind=event.kind and "sliding_window", window=16)]
        self.random.shuffle(found)
        return found

    def _event(self) -> Event:
        kind = self.random.random()
        if kind < 0.45 or not self.gpu:
            return self._store()
        if kind < 0.55:
            again = self.random.choice(self.gpu)
            self.gpu.append(again)
            return offloaded([again], Tier.GPU, announces_extra_keys=False)
        if kind < 0.8:
            self.gone += (going := [self.gpu.pop(self.random.randrange(len(self.gpu))) for _ in range(min(len(self.gpu), self.random.randint(1, 6)))])
            return removed(going)
        if kind < 0.83 and self.gone:  # announced below after its removal
            self.cpu.append(late := self.gone.pop(self.random.randrange(len(self.gone))))
            return offloaded([late], Tier.CPU, announces_extra_keys=False)
        if kind < 0.9:
            self.cpu += (moving := self.random.sample(self.gpu, min(3, len(self.gpu))))
            return offloaded(moving, Tier.CPU, announces_extra_keys=False)
        if kind < 0.94 and self.cpu:
            return removed([self.cpu.pop()], Tier.CPU)
        if kind < 0.99 or not self.held_back:
            first = self._store(is_held_back=True)
            child = self.next_hash
            self.next_hash += 1
            self.held_back.append(first)
            return stored([child], parent=first.hashes[-1])
        if self.random.random() < 0.3:
            self.gpu.clear()
            return Cleared()
        return self.held_back.pop(0)

    def _store(self, *, is_held_back: bool = False) -> Stored:
        hashes = list(range(self.next_hash, self.next_hash + self.random.randint(1, 8)))
        self.next_hash += len(hashes)
        parent = self.random.choice(self.gpu) if self.gpu and self.random.random() < 0.5 else None
        if not is_held_back:
            self.gpu += hashes
        return stored(hashes, parent=parent)


async def test_what_a_stream_holds_lies_in_redis_after_each_change(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        await settled(store)
        assert_written(server, stream)
        for events in (
            [stored([1, 2, 3])],
            [stored([2], parent=1)],  # a second copy
            [offloaded([3], Tier.CPU, announces_extra_keys=False), removed([3])],
            [stored([9], parent=8)],  # an orphan
            [stored([8])],  # its parent
            [removed([2])],
            [Cleared(), stored([4])],
        ):
            stream.apply(*events)
            await settled(store)
            assert_written(server, stream)


async def test_what_each_group_holds_lies_in_redis_after_each_change(server: RedisServer) -> None:
    window = {"group": 1, "kind": "sliding_window", "window": 8}
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        for events in (
            [stored([1, 2, 3], **window)],
            [stored([1, 2, 3])],
            [removed([1], group=1), stored([2], parent=1)],
            [offloaded([3], Tier.CPU, group=1), removed([3], group=1), removed([3])],
            [sparse([4, 5], 5, group=1), sparse([4], 5, group=2, kind="mamba")],  # before the tokens
            [stored([4, 5], parent=3)],
            [removed([4], group=2)],
            [Cleared(), stored([6], **window), Cleared()],
            [stored([7, 8], block_size=8)],  # all that came before had another block size
        ):
            stream.apply(*events)
            await settled(store)
            assert_written(server, stream)
        assert len(in_redis(server)["gpu"]) == 2


def test_a_field_names_the_slot_of_its_group() -> None:
    """The lead group's fields are as short as those of a model without groups."""
    assert [encode_field(1, slot) for slot in (0, 1, 255)] == [b"\1" + bytes(7), b"\1" + bytes(7) + b"\1", b"\1" + bytes(7) + b"\xff"]


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("seed", range(8))
async def test_a_new_owner_goes_on_exactly_where_the_former_one_was(server: RedisServer, seed: int, groups: int) -> None:
    load = Load(seed, groups)
    async with opened(settings_of(server), "first") as first:
        stream = await owned(first)
        for _ in range(60):
            stream.apply(*load.events())
            if load.random.random() < 0.3:
                await settled(first)
        await settled(first)
        assert_written(server, stream)
        await first.release(KEY)
    async with opened(settings_of(server), "second") as second:
        heir = await owned(second)
        assert heir.resumed is not None
        assert as_held(heir.state) == as_held(stream.state)
        assert shown(heir.state) == shown(stream.state)
        assert heir.state.traits() == stream.state.traits()
        for _ in range(40):
            events = load.events()
            heir.apply(*events)
            stream.state.apply(events, time.monotonic())
        assert as_held(heir.state) == as_held(stream.state)
        assert shown(heir.state) == shown(stream.state)
        assert heir.state.traits() == stream.state.traits()
        await settled(second)
        assert_written(server, heir)


async def test_a_stream_has_one_owner(server: RedisServer) -> None:
    settings = settings_of(server, lease_s=0.4)
    async with opened(settings, "a") as a, opened(settings, "b") as b:
        stream = await owned(a)
        assert await b.claim(KEY, "free") == "a"
        assert await b.claim(KEY, "want") == "a"
        renewed = await a.renew({KEY: OwnedStatus(b"{}", is_connected=True)})
        assert (renewed[KEY].ownership, renewed[KEY].wanted_by) == (Ownership.OURS, "b")
        await settled(a)
        await asyncio.sleep(0.6)  # longer than the lease: nobody renews it
        heir = await owned(b)
        stream.apply(stored([1]))
        assert await asyncio.wait_for(a.losses.get(), 10) == Loss(KEY, Ownership.LOST)
        assert a.losses.empty()
        await settled(b)
        assert_written(server, heir)
        assert not in_redis(server)["gpu"]


async def test_a_redis_that_comes_back_empty_gets_everything_again(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored(range(1, 3001)))
        await settled(store)
        server.kill()
        stream.apply(removed([1]), stored([5000], parent=3000))
        await wait_until_async(lambda: store.failure == "unreachable")
        server.start(with_data=False)
        await settled(store)
        assert_written(server, stream)
        assert store.failure is None


async def test_an_idle_stream_is_written_again_where_redis_lost_it(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1, 2]))
        await settled(store)
        server.client().flushall()
        await store.renew({KEY: OwnedStatus(b"{}", is_connected=True)})
        await settled(store)
        assert_written(server, stream)


async def test_an_older_snapshot_is_noticed_by_its_number(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1, 2]))
        await settled(store)
        snapshot = server.save()
        stream.apply(removed([1]))
        await settled(store)
        server.kill()
        server.put_back(snapshot)
        server.start()
        while True:
            try:
                await store.renew({KEY: OwnedStatus(b"{}", is_connected=True)})
                break
            except StoreError:
                await asyncio.sleep(0.05)
        await settled(store)
        assert_written(server, stream)


async def test_a_hash_that_lost_fields_is_written_again(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1, 2]))
        await settled(store)
        keys = Keyspace("kvi").model(KEY.model)
        generation = server.client().hget(keys.state(KEY), "gen")
        assert generation is not None
        server.client().delete(keys.parts(KEY, int(generation))[0])
        await store.renew({KEY: OwnedStatus(b"{}", is_connected=True)})
        await settled(store)
        assert_written(server, stream)


async def test_an_append_whose_answer_never_came_is_not_applied_twice_and_not_lost(server: RedisServer) -> None:
    async with opened(settings_of(server, redis_timeout_s=0.3)) as store:
        stream = await owned(store)
        stream.apply(stored([1]))
        await settled(store)
        generation = store._flusher.streams[KEY].generation
        for _ in range(3):
            server.freeze()
            stream.apply(stored([1]))
            await wait_until_async(lambda: store.failure == "unreachable")
            stream.apply(stored([2]))
            server.thaw()
            await settled(store)
            assert_written(server, stream)
        assert in_redis(server)["gpu"][1, 0][0] == 4
        assert store._flusher.streams[KEY].generation == generation


async def test_no_number_is_used_twice_also_where_its_call_was_never_carried_out(server: RedisServer) -> None:
    """Somebody may have read it from a Redis that is not ours any more: what has the same generation, fence and number is the same."""

    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1]))
        await settled(store)
        number = store._flusher.streams[KEY].number
        server.save()
        server.kill()
        stream.apply(stored([2], parent=1))
        await wait_until_async(lambda: store.failure == "unreachable" and not store._flusher.streams[KEY].in_flight)
        server.start()
        await settled(store)
        assert_written(server, stream)
        assert store._flusher.streams[KEY].number > number + 1


async def test_a_state_that_is_older_than_what_was_written_is_not_trusted(server: RedisServer) -> None:
    """Not even by the round that finds it out."""

    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1]))
        await settled(store)
        await store.renew({KEY: OwnedStatus(b"null", is_connected=True)})
        keys, client = store._session.keyspace.model(KEY.model), server.client()
        client.hincrby(keys.state(KEY), "number", -1)
        client.delete(keys.streams)
        await store.renew({KEY: OwnedStatus(b"null", is_connected=True)})
        assert client.exists(keys.streams) == 0
        await settled(store)
        await store.renew({KEY: OwnedStatus(b"null", is_connected=True)})
        assert client.exists(keys.streams) == 1


@pytest.mark.parametrize("jump_ms", [3_600_000, 1_000])
async def test_nothing_is_trusted_by_a_clock_that_was_set_back(server: RedisServer, jump_ms: int) -> None:
    """The owner's estimate of the clock is as far ahead as the clock was set back."""
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1]))
        await settled(store)
        keys, client, session = store._session.keyspace.model(KEY.model), server.client(), store._session
        await store.renew({KEY: OwnedStatus(b"null", is_connected=True)})

        def trusted_for_ms() -> float:
            (_, until_ms), (seconds, microseconds) = client.zrange(keys.streams, 0, -1, withscores=True)[0], client.time()
            return float(until_ms) - seconds * 1000 - microseconds / 1000

        session.slot(keys.streams).clock._ahead_ms += jump_ms
        if jump_ms > sum(store._flusher.streams[KEY].ttl_ms):
            stream.apply(stored([2], parent=1))
            await settled(store)
            assert trusted_for_ms() <= session.lease_ms, "a change says it, too"
        await store.renew({KEY: OwnedStatus(b"null", is_connected=True)})
        assert trusted_for_ms() <= session.lease_ms


async def test_a_full_redis_refuses_and_takes_everything_later(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1, 2, 3]))
        await settled(store)
        client = server.client()
        client.config_set("maxmemory", 1)
        stream.apply(stored([4, 5]))
        await wait_until_async(lambda: store.failure == "full")
        renewed = await store.renew({KEY: OwnedStatus(b"{}", is_connected=True)})
        assert renewed[KEY].ownership is Ownership.OURS
        assert store.failure == "full", "a renewal says nothing of what grows"
        assert set(in_redis(server)["gpu"]) == {(1, 0), (2, 0), (3, 0)}
        client.config_set("maxmemory", 0)
        await settled(store)
        assert_written(server, stream)
        assert store.failure is None


async def test_a_full_redis_lets_through_what_shrinks(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1, 2, 3]))
        await settled(store)
        client = server.client()
        client.config_set("maxmemory", 1)
        try:
            stream.apply(removed([2, 3]))
            await settled(store)
            assert set(in_redis(server)["gpu"]) == {(1, 0)}
            stream.forget()
            await settled(store)
            assert not in_redis(server)["gpu"]
        finally:
            client.config_set("maxmemory", 0)


async def test_a_full_redis_is_seen_to_be_well_again_by_who_has_nothing_to_write(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1]))
        await settled(store)
        incarnation = (await store.heartbeat(["m"])).incarnation
        client = server.client()
        client.config_set("maxmemory", 1)
        try:
            with pytest.raises(StoreError, match="full"):
                await store.registry.register((EngineSpec("pod", "m", events="tcp://127.0.0.1:9"),))
            await store.renew({KEY: OwnedStatus(b"{}", is_connected=True)})
            await store.heartbeat(["m"])
            assert store.failure == "full"
        finally:
            client.config_set("maxmemory", 0)
        heartbeat = await store.heartbeat(["m"])
        assert store.failure is None
        assert (heartbeat.incarnation, heartbeat.pods) == (incarnation, {})


async def commands_of_a_restart(server: RedisServer, blocks: int) -> dict[str, int]:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        for start in range(1, blocks + 1, 500):
            stream.apply(stored(range(start, start + 500)))
            await settled(store)
        assert len(in_redis(server)["gpu"]) == blocks
        with server.counting() as calls:
            stream.forget()
            await settled(store)
        assert not in_redis(server)["gpu"]
        names = server.keys("kvi:")
        assert not [name for name in names if b":gpu:" in name], "the old generation is gone"
    return calls


async def test_dropping_a_stream_costs_the_same_whatever_it_held(server: RedisServer) -> None:
    few = await commands_of_a_restart(server, 500)
    server.client().flushall()
    assert await commands_of_a_restart(server, 20_000) == few


async def test_changes_that_come_while_everything_is_written_are_in_it(server: RedisServer) -> None:
    load = Load(7)
    async with opened(settings_of(server, redis_timeout_s=10.0)) as store:  # else a busy machine begins anew again and again
        stream = await owned(store)
        stream.apply(stored(range(1_000_001, 1_030_001)))
        store._flusher.streams[KEY].require_full_write()
        stream.apply(stored([2_000_000]))
        for _ in range(200):
            stream.apply(*load.events())
            await asyncio.sleep(0)
        await settled(store)
        assert_written(server, stream)


async def test_a_stream_is_written_to_a_redis_that_takes_longer_than_the_timeout_for_a_round(server: RedisServer) -> None:
    """A block takes 41 bytes: all of them take 1.5 s on this way, and those of one command 0.5 s."""
    with Proxy(server.port) as proxy:
        async with opened(settings_of(server, redis=f"redis://127.0.0.1:{proxy.port}/0", redis_timeout_s=0.4)) as store:
            stream = await owned(store)
            await settled(store)
            proxy.bytes_per_s = 40_000
            stream.apply(stored(range(1_000_001, 1_001_501)))
            store._flusher.streams[KEY].require_full_write()
            await settled(store)
            proxy.bytes_per_s = None
            assert_written(server, stream)


async def test_what_is_written_first_lasts_until_the_rest_is_written(server: RedisServer) -> None:
    """Blocks expire after 1.5 s. Those of the second part, of 45 bytes each, take 2 s on this way, in eleven rounds."""
    with Proxy(server.port) as proxy:
        settings = settings_of(server, redis=f"redis://127.0.0.1:{proxy.port}/0", redis_timeout_s=20.0, pod_expiry_s=1.0, lease_s=0.5)
        async with opened(settings) as store:
            stream = await owned(store)
            stream.apply(stored(range(1_000_001, 1_000_101)))
            stream.apply(stored(range(1_000_001, 1_000_101), tier=Tier.CPU))
            await settled(store)
            stream.apply(stored(range(2_000_001, 2_001_301), tier=Tier.CPU))
            pending = store._flusher.streams[KEY]
            proxy.bytes_per_s = 30_000
            pace = Pace(0.1)  # no round is quick
            pace.note_timeout(250)
            generation = await write_generation(store._session.client, pending, pace, lambda: True)
            proxy.bytes_per_s = None
            assert generation is not None
            gpu, *_ = pending.keys.parts(KEY, generation)
            assert server.client().hlen(gpu) == 100


async def test_writes_that_are_given_up_leave_few_generations(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1, 2]))
        await settled(store)
        pending = store._flusher.streams[KEY]
        pending.is_writing_in_full = True  # by this test
        for _ in range(50):
            await write_generation(store._session.client, pending, Pace(0.5), lambda: True)
        assert len(pending.old_generations) <= GENERATIONS_MAX + 1
        written = {name.rpartition(b":")[2] for name in server.keys("kvi:") if b":gpu:" in name}
        assert len(written) <= GENERATIONS_MAX + 2
        pending.is_writing_in_full = False
        pending.require_full_write()
        store._flusher.mark(pending)
        await settled(store)
        assert_written(server, stream)
        assert len([name for name in server.keys("kvi:") if b":gpu:" in name]) == 1


class Interrupted:
    """Wraps what the store awaits of Redis: runs `meanwhile` at one of the awaits, before or after what is awaited, and raises `error`
    there."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, at: int, meanwhile: Callable[[], None], error: Exception | None = None, *, is_carried_out: bool = True
    ) -> None:
        self.count = 0
        self._at, self._meanwhile, self._error, self._is_carried_out = at, meanwhile, error, is_carried_out
        for module, name in ((full_write, "answer_of"), (flusher, "call")):
            monkeypatch.setattr(module, name, partial(self._do, getattr(module, name)))
        monkeypatch.setattr(flusher, "RETRY_S", 0.001)
        monkeypatch.setattr(flusher, "RETRY_MAX_S", 0.002)

    async def _do(self, do: Callable[..., Awaitable[Any]], *words: Any) -> Any:
        self.count += 1
        if self.count != self._at:
            return await do(*words)
        answer = None
        if self._is_carried_out:
            answer = await do(*words)
        elif asyncio.iscoroutine(words[0]):
            words[0].close()
        self._meanwhile()
        await asyncio.sleep(0)
        if self._error is not None:
            raise self._error
        return answer


# One round for each of two tiers, and the switch.
AWAITS_OF_A_FULL_WRITE = 3


@pytest.mark.parametrize("at", range(1, AWAITS_OF_A_FULL_WRITE + 1))
@pytest.mark.parametrize("is_new", [True, False])
@pytest.mark.parametrize("is_carried_out", [True, False])
@pytest.mark.parametrize("error", [RedisTimeoutError("late"), RuntimeError("a bug")], ids=["timeout", "bug"])
async def test_what_comes_while_a_full_write_fails_is_written(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch, at: int, is_new: bool, is_carried_out: bool, error: Exception
) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1, 2, 3]), offloaded([1], Tier.CPU))
        if not is_new:
            await settled(store)
            store._flusher.streams[KEY].require_full_write()
            stream.apply(stored([4], parent=3))

        def meanwhile() -> None:
            stream.apply(removed([2]))
            stream.apply(stored(range(1_000, 1_000 + SEAL_OPERATIONS)))

        interrupted = Interrupted(monkeypatch, at, meanwhile, error, is_carried_out=is_carried_out)
        await settled(store)
        assert interrupted.count > at, "it was done again"
        assert_written(server, stream)
        stream.apply(removed([3]))
        await settled(store)
        assert_written(server, stream)


@pytest.mark.parametrize("at", range(1, AWAITS_OF_A_FULL_WRITE + 1))
async def test_a_stream_that_expires_while_it_is_written_in_full_leaves_no_key(server: RedisServer, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1, 2, 3]), offloaded([1], Tier.CPU))

        def expire() -> None:
            stream.trust = Trust.EXPIRED
            store.set_trust(KEY, Trust.EXPIRED, stream.position)

        interrupted = Interrupted(monkeypatch, at, expire)
        await wait_until_async(lambda: interrupted.count == at and not [name for name in server.keys("kvi:") if b":state:" in name])
        pending = store._flusher.streams[KEY]
        await wait_until_async(lambda: not pending.is_writing_in_full and pending.generation is None)
        assert not [name for name in server.keys("kvi:") if b":state:" in name]
        stream.trust = Trust.STALE
        store.set_trust(KEY, Trust.STALE, stream.position)
        stream.apply(stored(range(1_000, 1_000 + SEAL_OPERATIONS)))
        await settled(store)
        assert_written(server, stream)


async def test_a_stream_that_comes_back_while_it_is_deleted_is_written_in_full(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    call_all = flusher.call_all

    async def while_deleted(client: Any, calls: Sequence[Call]) -> list[Any]:
        answers = await call_all(client, calls)
        if any(each.script == "delete" for each in calls):
            stream.trust = Trust.STALE
            store.set_trust(KEY, Trust.STALE, stream.position)
            stream.apply(stored([7]))
        return answers

    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1, 2]))
        await settled(store)
        monkeypatch.setattr(flusher, "call_all", while_deleted)
        store.set_trust(KEY, Trust.EXPIRED, stream.position)
        await wait_until_async(lambda: stream.trust is Trust.STALE)
        await settled(store)
        assert_written(server, stream)


async def two_streams(store: RedisStore) -> list[Owned]:
    """Of one slot, with nothing to write."""
    streams = [await owned(store), await owned(store, StreamKey(KEY.model, "other", 0))]
    for stream in streams:
        await settled(store, stream.key)
    return streams


async def write_to_both(store: RedisStore, server: RedisServer, streams: list[Owned]) -> None:
    first, other = streams
    first.apply(stored([1, 2]))
    other.apply(stored([3]))
    for stream in streams:
        await settled(store, stream.key)
        assert_written(server, stream)


async def test_an_error_of_ours_with_one_stream_costs_the_others_nothing(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(settings_of(server)) as store:
        streams = await two_streams(store)
        fails = iter([True])
        seal = PendingWrites.seal

        def fail_once(pending: PendingWrites) -> None:
            if pending.key == KEY and next(fails, False):
                raise RuntimeError("a bug")
            seal(pending)

        monkeypatch.setattr(PendingWrites, "seal", fail_once)
        await write_to_both(store, server, streams)
        assert next(fails, None) is None


async def test_a_round_that_fails_amid_its_answers_is_done_again(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(settings_of(server)) as store:
        streams = await two_streams(store)
        monkeypatch.setattr(flusher, "RETRY_S", 0.001)
        check, fails = store._flusher.check_missing, iter([True])

        async def fail_once(pending: PendingWrites) -> Ownership:
            if next(fails, False):
                raise StoreError("redis does not answer")
            return await check(pending)

        monkeypatch.setattr(store._flusher, "check_missing", fail_once)
        server.client().delete(store._session.keyspace.model(KEY.model).state(KEY))
        await write_to_both(store, server, streams)
        assert next(fails, None) is None


async def test_an_expired_stream_leaves_no_key_and_starts_anew_when_it_returns(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1, 2]))
        await settled(store)
        stream.trust = Trust.EXPIRED
        stream.forget()
        store.set_trust(KEY, Trust.EXPIRED, stream.position)
        await wait_until_async(lambda: not [name for name in server.keys("kvi:") if b":state:" in name or b":gpu:" in name])
        stream.trust = Trust.LIVE
        store.set_trust(KEY, Trust.STALE, stream.position)
        stream.apply(stored([7]))
        await settled(store)
        assert_written(server, stream)


async def test_nothing_is_left_of_a_stream_that_nobody_keeps(server: RedisServer) -> None:
    async with opened(settings_of(server, pod_expiry_s=1.0, lease_s=0.5)) as store:
        await store.heartbeat(["m"])
        stream = await owned(store)
        stream.apply(stored([1, 2]), stored([9], parent=8))
        await settled(store)
        await store.renew({KEY: OwnedStatus(b"{}", is_connected=True)})
    server.wait_empty()


async def test_an_indexer_with_nothing_to_own_is_no_member(server: RedisServer) -> None:
    async with opened(settings_of(server), "a") as a, opened(settings_of(server), "b") as b:
        assert (await a.heartbeat([])).members == ("a",)
        assert (await b.heartbeat([])).members == ("a", "b")
        assert (await a.heartbeat([], is_candidate=False)).members == ("b",)
        assert (await b.heartbeat([])).members == ("b",)


async def test_a_forgotten_pod_is_let_go(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1]))
        await settled(store)
        await store.registry.unregister(KEY.pod)
        await store.registry.delete(KEY)
        renewed = await store.renew({KEY: OwnedStatus(b"{}", is_connected=True)})
        assert renewed[KEY].ownership is Ownership.GONE
        assert not [name for name in server.keys("kvi:") if b":state:" in name or b":gpu:" in name]
        assert (await store.heartbeat([])).forgotten == {KEY.pod}


async def test_a_stream_of_other_ways_of_counting_starts_anew(server: RedisServer) -> None:
    async with opened(settings_of(server)) as store:
        stream = await owned(store)
        stream.apply(stored([1]))
        await settled(store)
        await store.release(KEY)
    async with opened(settings_of(server, hash_seed="another")) as store:
        stream = await owned(store)
        assert stream.resumed is None
        await settled(store)
        assert_written(server, stream)
        assert not in_redis(server)["gpu"]


async def test_a_redis_that_was_never_there_is_told_of(server: RedisServer) -> None:
    server.kill()

    async with opened(settings_of(server)) as store:
        with pytest.raises(StoreError, match="unreachable"):
            await store.claim(KEY, "free")
        assert store.failure is not None

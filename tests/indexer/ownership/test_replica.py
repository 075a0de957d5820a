"""Replicas that share streams, with a real Redis and real engines; several of them in one event loop."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.events import Tier
from indexer.core.names import StreamKey, Trust
from indexer.core.places import PARKED
from indexer.engines.spec import EngineSpec
from indexer.errors import SettingError, StoreError
from indexer.metrics import IndexerMetrics
from indexer.ownership.assignment import ranking
from indexer.ownership.replica import ReplicaService
from indexer.store.keyspace import Keyspace
from indexer.streams.stream import Stream
from tests.engine import BLOCK_SIZE, Engine, removed, stored
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.settings import QUICK, settings_of
from tests.waiting import wait_until_async

KEYS = Keyspace("kvi")
ENGINES = 8


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as running:
        yield running


@pytest.fixture
def unasked() -> Iterator[Engine]:
    """One that offers no replay."""
    with Engine(with_replay=False) as running:
        yield running


class Replica:
    """One indexer, and what a test wants to know of it."""

    def __init__(self, redis_url: str, *engines: str, **flags: str) -> None:
        self.registry = CollectorRegistry()
        self.settings = settings_of({**QUICK, "redis": redis_url, **flags}, engines)
        self.service = ReplicaService(self.settings, IndexerMetrics(self.registry))

    @property
    def owned(self) -> dict[StreamKey, Stream]:
        return {key: running.stream for key, running in self.service._streams.running.items()}

    def stream(self, pod: str = "pod", rank: int = 0) -> Stream | None:
        return self.owned.get(StreamKey("m", pod, rank))

    def shows(self, pod: str = "pod", **expected: Any) -> bool:
        """Whether it owns the stream, and its status is this."""
        stream = self.stream(pod)
        return stream is not None and all(getattr(stream.status(), name) == value for name, value in expected.items())

    def stands_by(self, pod: str = "pod") -> bool:
        """Whether it is subscribed to a stream that another one owns."""
        known = self.service._known.by_key.get(StreamKey("m", pod, 0))
        return known is not None and known.stream is not None and known.stream.inbox.connected and self.stream(pod) is None

    def metric(self, name: str) -> float:
        return self.registry.get_sample_value(name) or 0.0

    async def freeze(self) -> None:
        """Neither beats nor keeps nor applies anything from now on: what the others see of a process that died."""
        for task in (*self.service._loops, *(running.task for running in self.service._streams.running.values())):
            task.cancel()
        await asyncio.wait(self.service._loops)


@asynccontextmanager
async def replica(redis_url: str, *engines: str, **flags: str) -> AsyncIterator[Replica]:
    made = Replica(redis_url, *engines, **flags)
    async with made.service:
        yield made


def held(*streams: Stream | None) -> set[int]:
    return set().union(*(stream.state.held(Tier.GPU) for stream in streams if stream is not None))


def in_redis(server: RedisServer, pod: str = "pod", part: int = Tier.GPU, model: str = "m") -> int | None:
    """How many fields a part of the stream has there; None where there is no state."""
    keys, stream = KEYS.model(model), StreamKey(model, pod, 0)
    generation = server.client().hget(keys.state(stream), "gen")
    return None if generation is None else int(server.client().hlen(keys.parts(stream, int(generation))[part]))


def owner_in_redis(server: RedisServer, pod: str = "pod") -> bytes | None:
    owner: bytes | None = server.client().hget(KEYS.model("m").lease(StreamKey("m", pod, 0)), "owner")
    return owner


def publish_chain(engine: Engine, count: int, start: int = 1) -> None:
    """So many batches, each of a block that follows the one before it."""
    for number in range(start, start + count):
        engine.publish(stored([number], [number] * BLOCK_SIZE, number - 1 or None))


# Sharing


async def test_a_lone_indexer_follows_everything_and_writes_it(server: RedisServer, engine: Engine) -> None:
    publish_chain(engine, 3)

    async with replica(server.url, engine.spec()) as one:
        await wait_until_async(lambda: one.shows(sequence=2, trust=Trust.LIVE, owner=one.service.member))
        await wait_until_async(lambda: in_redis(server) == 3)
        await wait_until_async(lambda: one.service.readiness().status == "ready")
        assert one.service.readiness().reasons == []
        assert one.metric("kv_indexer_owned_streams") == 1
        assert one.service.pod_names() == ["pod"]
    assert owner_in_redis(server) is None
    assert server.client().zcard(KEYS.directory.members) == 0


async def test_half_the_streams_move_to_a_second_indexer_and_nothing_is_applied_twice(server: RedisServer) -> None:
    async with AsyncExitStack() as stack:
        engines = [stack.enter_context(Engine()) for _ in range(ENGINES)]
        specs = [engine.spec(f"pod-{number}") for number, engine in enumerate(engines)]
        for engine in engines:
            publish_chain(engine, 5)
        one = await stack.enter_async_context(replica(server.url, *specs))
        await wait_until_async(lambda: len(one.owned) == ENGINES and all(one.shows(f"pod-{n}", sequence=4) for n in range(ENGINES)))
        two = await stack.enter_async_context(replica(server.url, *specs))

        def is_settled() -> bool:
            for engine in engines:  # events flow all the time
                engine.publish(stored([engine.next_number + 1], [engine.next_number + 1] * BLOCK_SIZE, engine.next_number))
            return len(one.owned) == len(two.owned) == ENGINES // 2 and one.owned.keys().isdisjoint(two.owned)

        await wait_until_async(is_settled)
        won = set(two.owned)
        for number, engine in enumerate(engines):
            last = engine.next_number - 1
            await wait_until_async(lambda pod=f"pod-{number}", last=last: one.shows(pod, sequence=last) or two.shows(pod, sequence=last))
            assert len(held(one.stream(f"pod-{number}"), two.stream(f"pod-{number}"))) == engine.next_number
        assert two.metric("kv_indexer_takeovers_total") == len(won)
        # Each of them is asked for the recorded batch and what follows it, never for everything again.
        for key in won:
            assert engines[int(key.pod.removeprefix("pod-"))].asked.count(0) == 1
        # A replay may end after the last event has arrived live.
        await wait_until_async(lambda: all(stream.trust is Trust.LIVE for stream in (*one.owned.values(), *two.owned.values())))


async def test_what_an_indexer_leaves_is_taken_at_once(server: RedisServer, engine: Engine) -> None:
    async with AsyncExitStack() as first, AsyncExitStack() as second:
        publish_chain(engine, 3)
        # Longer than the test may take: a lease that is given back need not run out.
        one = await first.enter_async_context(replica(server.url, engine.spec(), lease_s="300"))
        await wait_until_async(lambda: one.shows(sequence=2))
        two = await second.enter_async_context(replica(server.url, engine.spec(), lease_s="300"))
        await wait_until_async(lambda: len(one.service._rounds.members) == len(two.service._rounds.members) == 2)
        await asyncio.sleep(1.5)  # for a move that may be due
        leaving, staying = (first, two) if one.owned else (second, one)
        await leaving.aclose()
        await wait_until_async(lambda: staying.shows(sequence=2, trust=Trust.LIVE))


async def test_the_streams_of_an_indexer_that_died_are_taken_within_seconds(server: RedisServer, engine: Engine) -> None:
    async with replica(server.url, engine.spec()) as one, replica(server.url, engine.spec()) as two:
        publish_chain(engine, 3)
        await wait_until_async(lambda: len(one.service._rounds.members) == len(two.service._rounds.members) == 2)
        await wait_until_async(lambda: one.shows(sequence=2) or two.shows(sequence=2))
        await asyncio.sleep(1.5)  # a move under way would look like a takeover
        dying, heir = (one, two) if one.owned else (two, one)
        await wait_until_async(lambda: in_redis(server) == 3)
        await dying.freeze()
        publish_chain(engine, 3, start=4)
        started_s = time.monotonic()
        await wait_until_async(lambda: heir.shows(sequence=5, trust=Trust.LIVE), 20)
        assert time.monotonic() - started_s < 20  # five are promised
        assert len(held(heir.stream())) == 6
        assert heir.metric("kv_indexer_takeovers_total") == 1
        assert engine.asked.count(0) == 1


async def test_one_that_comes_back_is_fenced_out_and_becomes_a_candidate_again(server: RedisServer, engine: Engine) -> None:
    async with replica(server.url, engine.spec()) as one, replica(server.url, engine.spec()) as two:
        publish_chain(engine, 3)
        await wait_until_async(lambda: len(one.service._rounds.members) == len(two.service._rounds.members) == 2)
        await asyncio.sleep(1.5)
        late, heir = (one, two) if one.owned else (two, one)
        await wait_until_async(lambda: late.shows(sequence=2))
        thawed, real, keep = asyncio.Event(), late.service._rounds._round, late.service._rounds._begin_renewals

        async def hang() -> None:
            await thawed.wait()
            await real()

        late.service._rounds._round = hang  # type: ignore[method-assign]
        late.service._rounds._begin_renewals = lambda: None  # type: ignore[method-assign]
        await wait_until_async(lambda: heir.owned, 20)
        assert late.owned  # it knows nothing of that yet
        engine.publish(stored([9], [9] * BLOCK_SIZE))  # it applies that, and its write is refused
        await wait_until_async(lambda: not late.owned)
        assert late.metric("kv_indexer_fenced_total") == 1
        await wait_until_async(lambda: heir.shows(sequence=3) and in_redis(server) == 4)
        late.service._rounds._round = real  # type: ignore[method-assign]
        late.service._rounds._begin_renewals = keep  # type: ignore[method-assign]
        thawed.set()
        winner = ranking(StreamKey("m", "pod", 0), late.service._rounds.members)[0]
        await wait_until_async(lambda: late.shows(sequence=3) if winner == late.service.member else heir.shows(sequence=3))
        await asyncio.sleep(2.5)
        assert len([each for each in (one, two) if each.owned]) == 1
        assert late.metric("kv_indexer_fenced_total") == 1


async def test_an_engine_that_only_one_knows_is_followed_by_that_one(server: RedisServer, engine: Engine, unasked: Engine) -> None:
    async with replica(server.url, engine.spec("a")) as one, replica(server.url, unasked.spec("b")) as two:
        await wait_until_async(lambda: one.stream("a") and two.stream("b"), 30)
        await asyncio.sleep(2.5)
        assert (set(one.owned), set(two.owned)) == ({StreamKey("m", "a", 0)}, {StreamKey("m", "b", 0)})


# Nobody to ask


async def test_the_next_in_line_keeps_the_frames_and_a_takeover_finds_no_gap(server: RedisServer, unasked: Engine) -> None:
    async with replica(server.url, unasked.spec()) as one, replica(server.url, unasked.spec(), ring_frames_max="10") as two:
        await wait_until_async(lambda: len(one.service._rounds.members) == len(two.service._rounds.members) == 2)
        await asyncio.sleep(1.5)
        dying, heir = (one, two) if one.owned else (two, one)
        await wait_until_async(lambda: heir.stands_by() and dying.shows(connected=True))
        publish_chain(unasked, 5)
        await wait_until_async(lambda: dying.shows(sequence=4, trust=Trust.LIVE))
        await wait_until_async(lambda: in_redis(server) == 5)
        await dying.freeze()
        publish_chain(unasked, 5, start=6)
        unasked.publish(removed([2]))
        await wait_until_async(lambda: heir.shows(sequence=10), 20)
        assert heir.shows(trust=Trust.LIVE, gaps=0)
        assert len(held(heir.stream())) == 9


async def test_an_orphan_that_was_parked_before_a_takeover_is_adopted_after_it(server: RedisServer, engine: Engine) -> None:
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(replica(server.url, engine.spec()))
        engine.publish(stored([1], [1] * BLOCK_SIZE))
        engine.publish(stored([3], [3] * BLOCK_SIZE, 2))
        await wait_until_async(lambda: one.shows(sequence=1))
        await wait_until_async(lambda: in_redis(server, part=PARKED) == 1)
        await one.freeze()
        two = await stack.enter_async_context(replica(server.url, engine.spec()))
        await wait_until_async(lambda: two.shows(sequence=1), 20)
        assert len(held(two.stream())) == 1
        engine.publish(stored([2], [2] * BLOCK_SIZE, 1))
        await wait_until_async(lambda: two.shows(sequence=2))
        assert len(held(two.stream())) == 3


async def test_copies_under_foreign_hashes_that_wait_before_a_takeover_count_after_it(server: RedisServer, engine: Engine) -> None:
    """A cache connector's chunks of two blocks, offloaded before the gpu announces what is in them."""
    chunk = {"block_size": 2 * BLOCK_SIZE, "medium": "CPU", "extra_keys": None, "group_idx": None, "kv_cache_spec_kind": None}
    contents = {number: [number] * BLOCK_SIZE for number in range(1, 7)}

    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(replica(server.url, engine.spec()))
        engine.publish(stored([901], [*contents[1], *contents[2]], None, **chunk))  # its keys cannot be made yet
        await wait_until_async(lambda: one.shows(sequence=0))
        await wait_until_async(lambda: in_redis(server, part=PARKED) == 1)
        engine.publish(stored([1], contents[1]), stored([902], [*contents[3], *contents[4]], 901, **chunk))
        engine.publish(stored([903], [*contents[5], *contents[6]], 902, **chunk), removed([903], medium="CPU", group_idx=None))
        await wait_until_async(lambda: one.shows(sequence=2))
        await wait_until_async(lambda: in_redis(server, part=PARKED) == 2)
        await one.freeze()
        two = await stack.enter_async_context(replica(server.url, engine.spec()))
        await wait_until_async(lambda: two.shows(sequence=2, blocks={"gpu": 1}), 20)
        engine.publish(stored([2], contents[2], 1))
        await wait_until_async(lambda: two.shows(sequence=3, blocks={"gpu": 2, "cpu": 2}))
        engine.publish(stored([3, 4, 5, 6], [*contents[3], *contents[4], *contents[5], *contents[6]], 2))
        await wait_until_async(lambda: two.shows(sequence=4, blocks={"gpu": 6, "cpu": 4}))
        await wait_until_async(lambda: (in_redis(server, part=PARKED), in_redis(server, part=Tier.CPU)) == (0, 2))


async def test_a_ring_that_is_too_short_leaves_a_gap_and_what_is_held_is_purged(server: RedisServer, unasked: Engine) -> None:
    async with replica(server.url, unasked.spec(), ring_frames_max="3") as one, replica(server.url, unasked.spec(), ring_frames_max="3") as two:
        await wait_until_async(lambda: len(one.service._rounds.members) == len(two.service._rounds.members) == 2)
        await asyncio.sleep(1.5)
        dying, heir = (one, two) if one.owned else (two, one)
        await wait_until_async(lambda: heir.stands_by() and dying.shows(connected=True))
        publish_chain(unasked, 3)
        await wait_until_async(lambda: dying.shows(sequence=2) and in_redis(server) == 3)
        await dying.freeze()
        unasked.publish(removed([2]))  # nobody hears of this in time
        for number in range(4):
            unasked.publish(stored([10 + number], [10 + number] * BLOCK_SIZE))
        await wait_until_async(lambda: heir.shows(sequence=7, trust=Trust.PARTIAL, gaps=1), 20)
        assert len(held(heir.stream())) == 3
        await wait_until_async(lambda: in_redis(server) == 3)


async def test_an_engine_restarted_between_owners_is_noticed_by_what_was_kept(server: RedisServer, unasked: Engine) -> None:
    async with replica(server.url, unasked.spec()) as one, replica(server.url, unasked.spec()) as two:
        await wait_until_async(lambda: len(one.service._rounds.members) == len(two.service._rounds.members) == 2)
        await asyncio.sleep(1.5)
        dying, heir = (one, two) if one.owned else (two, one)
        await wait_until_async(lambda: heir.stands_by() and dying.shows(connected=True))
        publish_chain(unasked, 2)
        await wait_until_async(lambda: dying.shows(sequence=1) and in_redis(server) == 2)
        await dying.freeze()
        unasked.kill()
        unasked.start()
        await wait_until_async(lambda: unasked.subscriptions() >= 2)
        for number in range(5):
            unasked.publish(stored([100 + number], [100 + number] * BLOCK_SIZE))
        await wait_until_async(lambda: heir.shows(sequence=4, restarts=1), 20)
        assert len(held(heir.stream())) == 5
        await wait_until_async(lambda: in_redis(server) == 5)


@pytest.mark.parametrize(
    ("lives", "expected"),
    [
        (1, {"sequence": 2, "trust": Trust.PARTIAL, "restarts": 0, "gaps": 0}),  # exactly the next one: accepted, and proves nothing
        (2, {"sequence": 0, "trust": Trust.LIVE, "restarts": 1, "gaps": 0}),  # a number below the recorded one, which never comes
    ],
)
async def test_all_start_again_with_nobody_to_ask(server: RedisServer, unasked: Engine, lives: int, expected: dict[str, Any]) -> None:
    async with replica(server.url, unasked.spec()) as one:
        await wait_until_async(lambda: one.shows(connected=True) and unasked.subscriptions())
        publish_chain(unasked, 2)
        await wait_until_async(lambda: one.shows(sequence=1, trust=Trust.LIVE) and in_redis(server) == 2)
    if lives == 2:
        unasked.kill()
        unasked.start()
    before = unasked.subscriptions()
    async with replica(server.url, unasked.spec()) as two:
        await wait_until_async(lambda: two.shows(sequence=1, connected=True, trust=Trust.STALE) and unasked.subscriptions() > before)
        unasked.publish(stored([7], [7] * BLOCK_SIZE))
        await wait_until_async(lambda: two.shows(**expected))
        assert len(held(two.stream())) == (3 if lives == 1 else 1)
        await wait_until_async(lambda: in_redis(server) == len(held(two.stream())))


# Starting and restarting


async def test_all_start_again_and_go_on_from_what_was_recorded(server: RedisServer, engine: Engine) -> None:
    publish_chain(engine, 5)
    async with replica(server.url, engine.spec()) as one:
        await wait_until_async(lambda: one.shows(sequence=4) and in_redis(server) == 5)
    publish_chain(engine, 2, start=6)
    async with replica(server.url, engine.spec()) as two:
        await wait_until_async(lambda: two.shows(sequence=6, trust=Trust.LIVE, replayed=2, restarts=0))
        assert len(held(two.stream())) == 7
    assert engine.asked.count(0) == 1


async def test_an_engine_that_was_restarted_meanwhile_is_noticed(server: RedisServer, engine: Engine) -> None:
    publish_chain(engine, 3)
    async with replica(server.url, engine.spec()) as one:
        await wait_until_async(lambda: one.shows(sequence=2) and in_redis(server) == 3)
    engine.kill()
    engine.start()
    for number in range(4):
        engine.publish(stored([100 + number], [100 + number] * BLOCK_SIZE))
    async with replica(server.url, engine.spec()) as two:
        await wait_until_async(lambda: two.shows(sequence=3, trust=Trust.LIVE, restarts=1))
        assert len(held(two.stream())) == 4
        await wait_until_async(lambda: in_redis(server) == 4)


async def test_without_redis_it_starts_says_why_it_is_not_ready_and_goes_on_when_redis_comes(engine: Engine) -> None:
    with RedisServer() as late:
        late.kill()
        async with replica(late.url, engine.spec(), ready_after_s="1.5") as one:
            await wait_until_async(lambda: one.service.readiness().status == "starting" and "Redis is unreachable" in one.service.readiness().reasons)
            await wait_until_async(lambda: one.service.readiness().status == "degraded")
            assert "Redis is unreachable" in one.service.readiness().reasons
            with pytest.raises(StoreError, match="unreachable"):
                await one.service.register((EngineSpec("new", "m", events="tcp://127.0.0.1:1"),))
            with pytest.raises(StoreError, match="unreachable"):
                await one.service.forget("pod")
            assert one.service.pod_names() == ["pod"]
            late.start()
            publish_chain(engine, 1)
            await wait_until_async(lambda: one.shows(sequence=0) and in_redis(late) == 1)
            await wait_until_async(lambda: one.service.readiness().status == "ready")


async def test_an_outage_is_bridged_in_memory_by_the_same_owner(server: RedisServer, engine: Engine) -> None:
    async with replica(server.url, engine.spec()) as one, replica(server.url, engine.spec()) as two:
        publish_chain(engine, 2)
        await wait_until_async(lambda: len(one.service._rounds.members) == len(two.service._rounds.members) == 2)
        await asyncio.sleep(1.5)
        owner, other = (one, two) if one.owned else (two, one)
        await wait_until_async(lambda: owner.shows(sequence=1) and in_redis(server) == 2)
        stream = owner.stream()
        server.kill()
        publish_chain(engine, 2, start=3)
        await wait_until_async(lambda: owner.shows(sequence=3, trust=Trust.LIVE))
        await wait_until_async(lambda: other.service.store.failure is not None)
        server.start(with_data=False)
        await wait_until_async(lambda: in_redis(server) == 4)
        await asyncio.sleep(4)  # longer than a lease
        assert owner.stream() is stream
        assert not other.owned
        assert engine.asked.count(0) == 1


async def test_after_an_outage_nobody_takes_what_its_owner_had_no_time_to_renew(server: RedisServer, engine: Engine) -> None:
    async with replica(server.url, engine.spec()) as one, replica(server.url, engine.spec()) as two:
        publish_chain(engine, 2)
        await wait_until_async(lambda: len(one.service._rounds.members) == len(two.service._rounds.members) == 2)
        await asyncio.sleep(1.5)
        owner, other = (one, two) if one.owned else (two, one)
        await wait_until_async(lambda: owner.shows(sequence=1) and in_redis(server) == 2)
        stream = owner.stream()
        goes_on, real_round, real_claim = asyncio.Event(), owner.service._rounds._round, owner.service.store.claim

        async def late_round() -> None:
            await goes_on.wait()
            await real_round()

        async def late_claim(*arguments: Any) -> Any:
            await goes_on.wait()
            return await real_claim(*arguments)

        owner.service._rounds._round = late_round  # type: ignore[method-assign]
        owner.service.store.claim = late_claim  # type: ignore[method-assign]
        server.kill()
        await wait_until_async(lambda: other.service.store.failure is not None)
        server.start(with_data=False)
        await wait_until_async(lambda: other.service._rounds.members == (other.service.member,))  # it sees nobody else, and a stream that is free
        await asyncio.sleep(1.2)
        assert not other.owned
        goes_on.set()
        await wait_until_async(lambda: in_redis(server) == 2)
        assert owner.stream() is stream
        assert engine.asked.count(0) == 1


# Pods


async def test_a_pod_that_is_registered_anywhere_is_known_everywhere_and_survives_all_indexers(server: RedisServer, engine: Engine) -> None:
    publish_chain(engine, 2)
    spec = EngineSpec.from_text(engine.spec())
    async with replica(server.url) as one, replica(server.url) as two:
        assert await one.service.register((spec,))
        assert one.service.pod_names() == ["pod"]
        await wait_until_async(lambda: two.service.pod_names() == ["pod"])
        await wait_until_async(lambda: one.shows(sequence=1) or two.shows(sequence=1))
        assert not await two.service.register((spec,))
    async with replica(server.url) as three:
        await wait_until_async(lambda: three.shows(sequence=1, trust=Trust.LIVE))


async def test_a_pod_that_is_forgotten_anywhere_is_gone_everywhere(server: RedisServer, engine: Engine) -> None:
    publish_chain(engine, 2)
    async with replica(server.url, engine.spec()) as one, replica(server.url, engine.spec()) as two:
        await wait_until_async(lambda: len(one.service._rounds.members) == len(two.service._rounds.members) == 2)
        await wait_until_async(lambda: (one.shows(sequence=1) or two.shows(sequence=1)) and in_redis(server) == 2)
        assert not await one.service.forget("other")
        assert await one.service.forget("pod")
        await wait_until_async(lambda: not one.owned and not two.owned and not two.service.pod_names())
        assert in_redis(server) is None
        assert not one.service.pod_names()
        await asyncio.sleep(4)  # nobody takes up again what its flag names
        assert in_redis(server) is None
        assert not one.owned
        assert not two.owned
        assert await two.service.register((EngineSpec.from_text(engine.spec()),))
        await wait_until_async(lambda: (one.shows(sequence=1) or two.shows(sequence=1)) and in_redis(server) == 2)


async def test_a_registered_pod_is_registered_again_where_redis_lost_everything(server: RedisServer, engine: Engine) -> None:
    publish_chain(engine, 2)
    async with replica(server.url) as one:
        await one.service.register((EngineSpec.from_text(engine.spec()),))
        await wait_until_async(lambda: one.shows(sequence=1) and in_redis(server) == 2)
        stream = one.stream()
        server.kill()
        server.start(with_data=False)
        await wait_until_async(lambda: server.client().hexists(KEYS.directory.pods, "pod") and in_redis(server) == 2)
        assert one.stream() is stream
    assert engine.asked.count(0) == 1


async def test_a_pod_that_is_away_for_good_leaves_nothing_and_starts_anew_when_it_returns(server: RedisServer, engine: Engine) -> None:
    publish_chain(engine, 2)
    async with replica(server.url, engine.spec(), pod_expiry_s="2") as one:
        await wait_until_async(lambda: one.shows(sequence=1) and in_redis(server) == 2)
        engine.kill()
        await wait_until_async(lambda: one.shows(trust=Trust.EXPIRED))
        await wait_until_async(lambda: in_redis(server) is None)
        assert owner_in_redis(server) == one.service.member.encode()
        engine.start()
        publish_chain(engine, 3)
        await wait_until_async(lambda: one.shows(sequence=2, trust=Trust.LIVE) and in_redis(server) == 3)


async def test_flags_that_are_read_again_change_what_is_followed(server: RedisServer, engine: Engine, unasked: Engine) -> None:
    async with replica(server.url, engine.spec("a")) as one:
        await wait_until_async(lambda: one.stream("a"))
        after: Settings = msgspec.structs.replace(one.settings, engines=(EngineSpec.from_text(unasked.spec("b")),))
        assert await one.service.reconfigure(one.settings, after) is after
        await wait_until_async(lambda: set(one.owned) == {StreamKey("m", "b", 0)})
        await wait_until_async(lambda: owner_in_redis(server, "a") is None)
        assert in_redis(server, "a") is not None  # another replica may have the flag still: what nobody follows runs out


async def test_too_many_streams_are_refused(server: RedisServer) -> None:
    async with replica(server.url, streams_max="2") as one:
        with pytest.raises(SettingError, match="at most 2 are followed"):
            await one.service.register((EngineSpec("pod", "m", events="tcp://127.0.0.1:7000", ranks=3),))
    with pytest.raises(SettingError, match="at most 2 are followed"):
        async with replica(server.url, "pod=p,model=m,events=tcp://127.0.0.1:7000,ranks=3", streams_max="2"):
            pass


# Dial-in pods


async def test_whoever_is_dialled_owns_the_stream(server: RedisServer) -> None:
    ports = free_port(), free_port()
    async with replica(server.url, listen=f"tcp://127.0.0.1:{ports[0]}") as one, replica(server.url, listen=f"tcp://127.0.0.1:{ports[1]}") as two:
        with Engine(with_replay=False, dials=ports[0], topic=b"kv@pod@m") as engine:
            await wait_until_async(engine.subscriptions)
            engine.publish(stored([1], [1] * BLOCK_SIZE))
            await wait_until_async(lambda: one.shows(sequence=0, trust=Trust.LIVE) and in_redis(server) == 1)
        with Engine(with_replay=False, dials=ports[1], topic=b"kv@pod@m") as engine:
            await wait_until_async(engine.subscriptions)
            engine.publish(stored([2], [2] * BLOCK_SIZE))
            engine.publish(stored([3], [3] * BLOCK_SIZE, 2))
            await wait_until_async(lambda: two.shows(sequence=1) and in_redis(server) == 2)
            await wait_until_async(lambda: not one.owned and not one.service.pod_names())
            assert len(held(two.stream())) == 2


async def test_a_dial_in_pod_that_stays_away_leaves_nothing(server: RedisServer) -> None:
    port = free_port()
    async with replica(server.url, listen=f"tcp://127.0.0.1:{port}", pod_expiry_s="1") as one:
        with Engine(with_replay=False, dials=port, topic=b"kv@pod@m") as engine:
            await wait_until_async(engine.subscriptions)
            engine.publish(stored([1], [1] * BLOCK_SIZE))
            await wait_until_async(lambda: one.shows(sequence=0) and in_redis(server) == 1)
        await wait_until_async(lambda: not one.service.pod_names() and in_redis(server) is None and owner_in_redis(server) is None)

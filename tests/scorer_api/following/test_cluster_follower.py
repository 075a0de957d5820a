"""Owners write to a real Cluster, and scorers follow it. Its nodes' clocks differ as far as the test says."""

import asyncio
import hashlib
import time
from collections.abc import Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from indexer.core.events import Cleared
from indexer.core.names import StreamKey, Trust
from indexer.engines.load import Load
from indexer.engines.spec import EngineSpec
from indexer.store import scripts
from indexer.store.client.cluster import slot_of_key
from indexer.store.keyspace import Keyspace
from indexer.store.scripts import SCRIPTS, Call
from tests.events import removed, stored
from tests.owner import owner_of, settings_of
from tests.redis_cluster import Member, RedisCluster
from tests.scorer_api.following.test_follower import Scorer, scorer_of
from tests.waiting import wait_until_async

AHEAD_MS = 60_000
LEASE_S = 1.0
KEYS = Keyspace("kvi")


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as running:
        yield running


def log_of(model: str) -> str:
    return KEYS.model(model).log


def model_on(cluster: RedisCluster, member: Member, more: str) -> str:
    """A model that lies on this node."""
    return next(model for number in range(1000) if cluster.owner_of(log_of(model := f"{more} {number}")) is member)


async def test_every_script_keeps_to_one_slot(cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the keys that it is called with, and by the servers, which refuse it otherwise."""
    seen: list[Call] = []
    send = scripts._send

    async def remember(client: Any, calls: Sequence[Call], *words: Any) -> list[Any]:
        seen.extend(calls)
        return await send(client, calls, *words)

    monkeypatch.setattr(scripts, "_send", remember)
    settings = settings_of(cluster)
    one, other = (StreamKey(model_on(cluster, member, "every"), "pod", 0) for member in cluster.masters[:2])

    async with owner_of(settings) as owner:
        registry = owner.store.registry
        for key in (one, other):
            await registry.register((EngineSpec(pod=key.pod, model=key.model, events="tcp://127.0.0.1:1"),))
        first, second = await owner.own(one), await owner.own(other)
        async with scorer_of(settings) as scorer:
            for stream in (first, second):
                stream.apply(stored([1, 2, 3], [1, 2, 3]))
                stream.apply(removed([3]))
                await scorer.holds(stream.key, [1, 2, 3], 2)
                stream.apply(Cleared())
                await scorer.holds(stream.key, [1, 2, 3], 0)
                stream.apply(stored([4], [4]))
                stream.forget()
                stream.apply(stored([5], [5]))
                await scorer.holds(stream.key, [5], 1)
            for key in (one, other):
                owner.store.loads.note(key.model, key.pod, Load(1, 2), time.monotonic())
            async with scorer_of(settings) as late:
                await late.holds(one, [5], 1)
                await late.holds(other, [5], 1)
            assert set((await owner.store.owners([one, other])).values()) == {"owner"}
            second.set_trust(Trust.EXPIRED)
            await wait_until_async(lambda: owner.store._flusher.streams[other].generation is None)
            await owner.store.release(one)
            await registry.delete(one)
            await registry.unregister("pod")
            await wait_until_async(lambda: scorer.trust(one) is None and scorer.trust(other) is None)
    assert {call.script for call in seen} == SCRIPTS.keys()
    assert [call.script for call in seen if len({slot_of_key(key) for key in call.keys}) > 1] == []


# Clocks


def clocks(patch: pytest.MonkeyPatch, fast: Member) -> None:
    """This node's clock is ahead of the others', for all scripts."""
    for name, source in list(SCRIPTS.items()):
        before = "local time = redis.call('TIME')"
        assert before in source
        port = "string.match(redis.call('INFO', 'server'), 'tcp_port:(%d+)')"
        source = source.replace(before, f"{before} if {port} == '{fast.port}' then time[1] = time[1] + {AHEAD_MS // 1000} end")
        patch.setitem(scripts.SCRIPTS, name, source)
        patch.setitem(scripts._DIGESTS, name, hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest())


@asynccontextmanager
async def never_trusted_for_too_long(scorer: Scorer) -> Any:
    """No stream is believed for longer than a lease."""
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            for followed in scorer.follower.streams():
                longest_s = max(longest_s, followed.trusted_until_s - time.monotonic())
            await asyncio.sleep(0.01)

    task = asyncio.create_task(watch())
    yield
    task.cancel()
    assert 0 < longest_s < LEASE_S + 0.1


@pytest.mark.parametrize("direction", ["to a clock that is behind", "to a clock that is ahead"])
async def test_a_stream_that_moves_to_a_node_with_another_clock_is_trusted_by_that(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch, direction: str
) -> None:
    source, target = cluster.masters[:2]
    clocks(monkeypatch, source if direction == "to a clock that is behind" else target)
    key = StreamKey(model_on(cluster, source, direction), "pod", 0)
    settings = settings_of(cluster)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer, never_trusted_for_too_long(scorer):
        stream = await owner.own(key)
        stream.apply(stored([1], [1]))
        await scorer.holds(key, [1], 1)
        await asyncio.to_thread(cluster.migrate, log_of(key.model), target)
        stream.apply(stored([2], [2], 1))
        await scorer.holds(key, [1, 2], 2)
        async with scorer_of(settings) as late:
            await late.holds(key, [1, 2], 2)
            owner.is_keeping = False
            stopped_s = time.monotonic()
            for each in (scorer, late):
                await wait_until_async(lambda each=each: each.trust(key) is Trust.STALE, 20)
            assert time.monotonic() - stopped_s < 10
        await owner.store.release(key)
        await owner.store.registry.delete(key)


async def test_what_a_dead_owner_confirmed_by_another_clock_is_not_believed(cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The slot went to a node whose clock is a minute behind: by that the dead owner's word would hold for another minute."""
    source, target = cluster.masters[:2]
    clocks(monkeypatch, source)
    key = StreamKey(model_on(cluster, source, "dead"), "pod", 0)
    settings = settings_of(cluster)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer, never_trusted_for_too_long(scorer):
        stream = await owner.own(key)
        stream.apply(stored([1], [1]))
        await scorer.holds(key, [1], 1)
        owner.is_keeping = False
        await asyncio.sleep(0.3)
        await asyncio.to_thread(cluster.migrate, log_of(key.model), target)
        client = target.client()
        (until_ms,) = (score for _, score in client.zrange(KEYS.model(key.model).streams, 0, -1, withscores=True))
        assert until_ms - time.time() * 1000 > AHEAD_MS / 2
        async with scorer_of(settings) as late:
            await wait_until_async(lambda: scorer.trust(key) is Trust.STALE, 20)
            await wait_until_async(lambda: late.matched(key, [1]) == 1, 20)
            for _ in range(300):
                assert scorer.trust(key) is late.trust(key) is Trust.STALE
                await asyncio.sleep(0.01)
            owner.is_keeping = True  # it was not dead
            await scorer.holds(key, [1], 1)
            await late.holds(key, [1], 1)
        await owner.store.release(key)
        await owner.store.registry.delete(key)


async def test_a_change_that_is_written_before_the_new_nodes_time_is_known_confirms_nothing(
    cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = cluster.masters[:2]
    clocks(monkeypatch, source)
    key = StreamKey(model_on(cluster, source, "before"), "pod", 0)

    lease_s = 10.0  # long enough for the move

    async with owner_of(settings_of(cluster, lease_s=lease_s)) as owner:
        stream = await owner.own(key)
        owner.is_keeping = False
        await asyncio.sleep(0.3)
        await asyncio.to_thread(cluster.migrate, log_of(key.model), target)

        def trusted_until_ms() -> float:
            ((_, until_ms),) = target.client().zrange(KEYS.model(key.model).streams, 0, -1, withscores=True)
            return float(until_ms)

        before_ms = trusted_until_ms()
        assert await owner.store.owners([key]) == {key: "owner"}  # from now on it is known where the slot lies
        stream.apply(stored([1], [1]))
        await stream.flushed()
        assert trusted_until_ms() == before_ms
        await owner.keep()
        assert abs(trusted_until_ms() - time.time() * 1000 - lease_s * 1000) < lease_s * 1000
        await owner.store.release(key)
        await owner.store.registry.delete(key)

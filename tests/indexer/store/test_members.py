"""The indexers that share a real Redis, as each of them announces itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.engines.spec import EngineSpec
from indexer.errors import StoreError
from indexer.metrics import IndexerMetrics
from indexer.store.keyspace import Keyspace
from indexer.store.members import Members
from indexer.store.registry import Registry
from indexer.store.session import StoreSession
from tests.redis_server import RedisServer
from tests.waiting import wait_until_async

DIRECTORY = Keyspace("kvi").directory
SPECS = (EngineSpec("pod", "m", events="tcp://127.0.0.1:9"),)


@asynccontextmanager
async def member_of(server: RedisServer, name: str, lease_s: float = 30.0) -> AsyncIterator[tuple[Members, StoreSession]]:
    settings = Settings(redis=server.url, redis_timeout_s=0.5, lease_s=lease_s, pod_expiry_s=60.0)
    session = StoreSession(settings, IndexerMetrics(CollectorRegistry()), name)
    async with session.client:
        yield Members(session), session


async def test_members_know_one_another_until_they_leave(server: RedisServer) -> None:
    async with member_of(server, "one") as (one, _), member_of(server, "two") as (two, _):
        assert (await one.heartbeat(["m"])).members == ("one",)
        assert set((await two.heartbeat(["n"])).members) == {"one", "two"}
        assert set(server.client().zrange(DIRECTORY.models, 0, -1)) == {b"m", b"n"}
        await two.leave()
        assert (await one.heartbeat(["m"])).members == ("one",)


async def test_who_may_own_nothing_is_no_member(server: RedisServer) -> None:
    async with member_of(server, "one") as (one, _), member_of(server, "two") as (two, _):
        await one.heartbeat(["m"])
        assert (await two.heartbeat(["m"], is_candidate=False)).members == ("one",)


async def test_who_says_nothing_for_a_lease_is_gone(server: RedisServer) -> None:
    async with member_of(server, "one") as (one, _), member_of(server, "two", lease_s=0.5) as (two, _):
        await one.heartbeat([])
        assert set((await two.heartbeat([])).members) == {"one", "two"}
        client = server.client()
        await wait_until_async(lambda: (client.zscore(DIRECTORY.members, "two") or 0.0) < 1000 * float(client.time()[0]))
        assert (await one.heartbeat([])).members == ("one",)


async def test_a_heartbeat_brings_the_registered_and_the_forgotten_pods(server: RedisServer) -> None:
    async with member_of(server, "one") as (one, session):
        registry = Registry(session.client, session.keyspace, session.settings)
        await registry.register(SPECS)
        first = await one.heartbeat([])
        assert (first.pods, first.forgotten) == ({"pod": SPECS}, frozenset())
        await registry.unregister("pod")
        second = await one.heartbeat([])
        assert (second.pods, second.forgotten) == ({}, frozenset({"pod"}))
        assert second.incarnation == first.incarnation, "it is the same data"
        server.client().flushall()
        assert (await one.heartbeat([])).incarnation != first.incarnation


async def test_what_redis_does_not_do(server: RedisServer) -> None:
    async with member_of(server, "one") as (one, session):
        await one.heartbeat([])
        server.kill()
        with pytest.raises(StoreError, match="unreachable"):
            await one.heartbeat([])
        await one.leave()  # says so in the log alone
        assert session.health.failure is not None

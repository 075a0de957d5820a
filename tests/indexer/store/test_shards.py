"""Models that are split into shards: whoever splits them into another number than those who came first takes part in nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.errors import SettingError, ShardsError
from indexer.metrics import IndexerMetrics
from indexer.ownership.replica import ReplicaService
from indexer.store.inspection import inspect
from indexer.store.keyspace import Keyspace
from indexer.store.members import Members
from indexer.store.session import StoreSession
from tests.engine import Engine, stored
from tests.redis_server import RedisServer
from tests.settings import QUICK
from tests.settings import settings_of as settings_of_flags
from tests.waiting import wait_until_async

DIRECTORY = Keyspace("kvi").directory
OTHERWISE = r"--shards=3: models in Redis are split into 2: give all indexers the same number"


@asynccontextmanager
async def member_of(server: RedisServer, name: str, shards: int, pod_expiry_s: float = 60.0) -> AsyncIterator[Members]:
    settings = Settings(redis=server.url, redis_timeout_s=0.5, lease_s=30.0, pod_expiry_s=pod_expiry_s, shards=shards)
    session = StoreSession(settings, IndexerMetrics(CollectorRegistry()), name)
    async with session.client:
        yield Members(session)


@pytest.mark.parametrize(("first", "second"), [(2, 3), (1, 2), (2, 1)])
async def test_who_splits_models_otherwise_is_no_member(server: RedisServer, first: int, second: int) -> None:
    async with member_of(server, "one", first) as one, member_of(server, "two", second) as two:
        await one.check_shards()
        await one.heartbeat(["m"])
        for refused in (two.check_shards(), two.heartbeat(["n"])):
            with pytest.raises(ShardsError) as caught:
                await refused
            assert (caught.value.ours, caught.value.in_redis) == (second, first)
        assert (await one.heartbeat(["m"])).members == ("one",)
        assert server.client().zrange(DIRECTORY.models, 0, -1) == [b"m"]


async def test_one_shard_leaves_the_layout_as_it_was(server: RedisServer) -> None:
    async with member_of(server, "one", 1) as one:
        await one.heartbeat(["m"])
        assert not server.client().exists(DIRECTORY.shards)


async def test_another_number_of_shards_is_free_once_no_indexer_has_run_for_the_expiry(server: RedisServer) -> None:
    async with member_of(server, "one", 2, pod_expiry_s=0.5) as one, member_of(server, "two", 3) as two:
        await one.heartbeat(["m"])
        with pytest.raises(ShardsError, match=OTHERWISE):
            await two.heartbeat(["m"])
        await wait_until_async(lambda: not server.client().exists(DIRECTORY.shards))
        await one.leave()
        await two.check_shards()
        assert (await two.heartbeat(["m"])).members == ("two",)
        assert server.client().get(DIRECTORY.shards) == b"3"


async def test_an_indexer_with_another_number_does_not_start(server: RedisServer) -> None:
    async with member_of(server, "one", 2) as one:
        await one.heartbeat(["m"])
        settings = settings_of_flags({**QUICK, "redis": server.url, "shards": "3"}, [])
        with pytest.raises(SettingError, match=OTHERWISE):
            async with ReplicaService(settings, IndexerMetrics(CollectorRegistry())):
                pass
    assert (await inspect(server.url, "kvi", 1.0)).shards == 2


async def test_an_indexer_that_finds_out_later_gives_up_what_it_has_and_says_why(server: RedisServer) -> None:
    """Redis lost its data, and another indexer was faster."""
    with Engine() as engine:
        engine.publish(stored([1], [1, 1, 1, 1]))
        settings = settings_of_flags({**QUICK, "redis": server.url, "shards": "3"}, [engine.spec("pod", "m")])
        async with ReplicaService(settings, IndexerMetrics(CollectorRegistry())) as service, member_of(server, "other", 2) as other:
            await wait_until_async(lambda: len(service._streams.running) == 1)
            server.client().flushall()
            while True:
                try:
                    await other.heartbeat(["m"])
                    break
                except ShardsError:  # it was not the first after all
                    server.client().flushall()
            await wait_until_async(lambda: not service._streams.running)
            assert "--shards=3: models in Redis are split into 2" in " ".join(service.readiness().reasons)
            server.client().flushall()
            await wait_until_async(lambda: len(service._streams.running) == 1)
            assert "--shards" not in " ".join(service.readiness().reasons)

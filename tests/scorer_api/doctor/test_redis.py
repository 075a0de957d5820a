"""The doctor and Redis, with real servers that are set up wrongly, and real replicas that die."""

from collections.abc import Iterator

import pytest

from indexer.store.condition import ModelCondition, RedisCondition
from scorer_api.doctor.checks.redis import check_redis
from tests.engine import Engine, stored
from tests.engine_server import EngineServer
from tests.ports import free_port
from tests.processes import api, ingest, serve
from tests.redis_server import RedisServer, User
from tests.running import Command
from tests.scorer_api.doctor.examined import Examined
from tests.waiting import wait_until

# Long, so that no owner loses its word on a machine that is busy with other tests.
LEASE = {"lease_s": "10"}


def wait_followed(service: Command) -> None:
    wait_until(lambda: any(pod["streams"] for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]))


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def replica(redis: RedisServer) -> Iterator[Command]:
    """A service over this Redis, with an engine that it follows."""
    with Engine() as engine, EngineServer(engine) as engine_api, serve(redis.url, engine.spec(http=engine_api.url), **LEASE) as service:
        service.wait_url()
        engine.publish(stored([1], range(1, 5)))
        wait_followed(service)
        service.wait_for(sequence=0, trust="live")
        yield service


def test_a_redis_as_it_should_be(redis: RedisServer, replica: Command) -> None:
    redis.client().config_set("maxmemory-policy", "noeviction")
    found = Examined(replica.url, redis=redis.url)
    assert "1 indexers, 1 streams" in found.the("redis_well").detail
    assert (found.bad(), found.exit_code) == (set(), 0)


def test_it_only_reads_and_never_walks_the_keys(redis: RedisServer, replica: Command) -> None:
    with redis.monitoring() as seen:
        Examined(replica.url, redis=redis.url)
    commands = {command.split()[0].lower() for command in seen}
    assert "zcount" in commands
    assert commands & {"keys", "scan", "config"} == set()


def test_a_redis_that_evicts(redis: RedisServer, replica: Command) -> None:
    redis.client().config_set("maxmemory-policy", "allkeys-lru")
    found = Examined(replica.url, redis=redis.url)
    assert found.the("redis_evicts").detail == "maxmemory-policy is allkeys-lru"
    assert (found.bad(), found.exit_code) == ({"redis_evicts"}, 3)


def test_a_redis_that_is_nearly_full_and_one_that_is_full(redis: RedisServer, replica: Command) -> None:
    client = redis.client()
    used = int(client.info("memory")["used_memory"])
    client.config_set("maxmemory", used * 10 // 9)
    nearly = Examined(replica.url, redis=redis.url)
    client.config_set("maxmemory", used // 2)
    full = Examined(replica.url, redis=redis.url)
    assert (nearly.bad(), nearly.exit_code) == ({"redis_full"}, 1)
    assert "redis_full" in full.bad()
    assert full.exit_code == 3


def test_no_redis(replica: Command) -> None:
    found = Examined(replica.url, redis=f"redis://127.0.0.1:{free_port()}/0")
    assert (found.bad(), found.exit_code) == ({"redis_unreachable"}, 3)


def test_a_redis_that_hangs(redis: RedisServer) -> None:
    redis.freeze()
    found = Examined(f"http://127.0.0.1:{free_port()}", redis=redis.url)
    redis.thaw()
    assert found.bad() == {"service_unreachable", "redis_unreachable"}


def test_a_wrong_password_is_told_of_and_never_shown() -> None:
    with RedisServer(users=[User("doctor", "right")]) as server:
        found = Examined(f"http://127.0.0.1:{free_port()}", redis=server.url.replace("right", "wr0ng"))
    assert "redis_refuses" in found.bad()
    assert "wr0ng" not in str(found.findings)
    assert found.exit_code == 3


def test_a_replica_of_a_redis(redis: RedisServer, replica: Command) -> None:
    with RedisServer(replicaof=f"127.0.0.1 {redis.port}") as other:
        wait_until(lambda: other.client().info("replication")["master_link_status"] == "up")
        found = Examined(replica.url, redis=other.url)
    assert (found.bad(), found.exit_code) == ({"redis_read_only"}, 3)


def test_another_namespace_or_database(redis: RedisServer, replica: Command) -> None:
    namespace = Examined(replica.url, redis=redis.url, namespace="other")
    database = Examined(replica.url, redis=redis.url_of(None, 5))
    assert "under namespace 'other'" in namespace.the("no_indexer").detail
    assert (namespace.bad(), namespace.exit_code) == ({"no_indexer"}, 3)
    assert (database.bad(), database.exit_code) == ({"no_indexer"}, 3)


def test_replicas_of_another_layout(redis: RedisServer, replica: Command) -> None:
    redis.client().zadd("kvi:3:{directory}:members", {"one": 2e12})
    found = Examined(replica.url, redis=redis.url)
    assert found.the("redis_other_layout").detail == "namespace 'kvi' has keys of layout 3 too"
    assert (found.bad(), found.exit_code) == ({"redis_other_layout"}, 1)


def test_indexers_that_died(redis: RedisServer) -> None:
    def examined() -> Examined:
        return Examined(scorer.url, redis=redis.url)

    def examined_without_indexers() -> Examined | None:
        found = examined()
        return found if {"no_indexer", "not_followed", "stream_stale"} <= found.bad() else None

    with (
        Engine() as engine,
        EngineServer(engine) as engine_api,
        ingest(redis.url, engine.spec(http=engine_api.url), lease_s="5") as indexer,
        api(redis.url) as scorer,
    ):
        indexer.wait_url()
        engine.publish(stored([1], range(1, 5)))
        wait_followed(scorer.wait_url())
        scorer.wait_for(sequence=0, trust="live")
        well = examined()
        indexer.kill()
        # A scorer knows by its own clock, and its membership in Redis ends a little later.
        dead = wait_until(examined_without_indexers)
    assert (well.bad(), well.exit_code) == (set(), 0)
    assert dead is not None
    assert dead.exit_code == 3


# What no server here can be brought to


@pytest.mark.parametrize(
    ("condition", "code"),
    [
        (RedisCondition(version="6.0.9", members=1), "redis_old"),
        (RedisCondition(version="5", members=1), "redis_old"),
        (RedisCondition(failure="loading", error="LOADING"), "redis_loading"),
        (RedisCondition(version="7.0.1", members=1, is_loading=True), "redis_loading"),
        (RedisCondition(version="7.0.1", members=1, ping_s=0.2), "redis_slow"),
        (RedisCondition(version="7.0.1", members=1, has_write_error=True), "redis_write_errors"),
        (RedisCondition(version="7.0.1", members=1, role="sentinel"), "redis_read_only"),
        (RedisCondition(version="7.0.1"), "no_indexer"),
        (RedisCondition(version="7.0.1", members=1, models=[ModelCondition("m", 2, ["pod rank 0"])]), "not_followed"),
    ],
)
def test_what_is_wrong_with_a_redis_by_its_words(condition: RedisCondition, code: str) -> None:
    assert [found.code for found in check_redis(condition, "kvi")] == [code]


@pytest.mark.parametrize("version", ["6.2.0", "7.4.1", "10.0.0"])
def test_versions_that_are_new_enough(version: str) -> None:
    assert [found.code for found in check_redis(RedisCondition(version=version, members=1), "kvi")] == ["redis_well"]


def test_a_valkey_is_no_old_redis() -> None:
    assert [found.code for found in check_redis(RedisCondition(version="1.0.0", server="valkey", members=1), "kvi")] == ["redis_well"]

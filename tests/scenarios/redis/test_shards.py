"""A model in several shards: real processes that die, and a Cluster with a shard on each node. What is answered is what the engines said."""

import re
from collections.abc import Callable

import pytest

from indexer.store.keyspace import Keyspace, shard_of
from tests import command
from tests.redis_cluster import RedisCluster
from tests.scenarios.redis.test_outages import LIVE_S
from tests.scenarios.redis.test_owners import TAKEOVER_S, settle_to_the_last_copy
from tests.scenarios.redis.world import NAMESPACE, Explained, World, owners, wait_owned, wait_ready
from tests.waiting import wait_until

MakeWorld = Callable[..., World]


def prefix_of(shards: int, pods: int) -> str:
    """A prefix with which the names of so many pods lie in all shards."""
    prefixes = [f"{number}-" for number in range(1_000)]
    return next(prefix for prefix in prefixes if {shard_of(f"{prefix}{pod}", shards) for pod in range(pods)} == set(range(shards)))


def test_shards_outlive_an_indexer_and_a_scorer(world: World) -> None:
    """Two indexers share the streams of two shards, one of them dies, and so does a scorer. An indexer with another number does not start."""
    fleet = world.fleet(streams=6, pod_prefix=prefix_of(2, 5))
    first, second = world.sharing_indexers(fleet, shards="2")
    scorers = world.scorers(2)
    wait_owned(scorers[0], 6, by=2)
    wait_ready(first, second, *scorers)
    fleet.resume()
    explained = Explained(fleet, LIVE_S)
    wait_until(lambda: fleet.batches > 100)
    explained.once(*scorers)

    code, _, said = command.run("ingest", "--redis", world.redis.url, "--port", "0", "--shards", "3", "--engine", fleet.specs[0])
    assert code == 2
    assert re.fullmatch(r"(?s)(.*\n)?kv-indexer: --shards=3: models in Redis are split into 2: give all indexers the same number\..*\n", said), said

    scorers[1].kill()
    first.kill()
    (late,) = world.scorers(1)
    wait_owned(late, 6, by=1, timeout_s=TAKEOVER_S)
    wait_until(lambda before=fleet.batches: fleet.batches > before + 100)
    explained.once(scorers[0], late)
    assert not explained.wrong
    settle_to_the_last_copy(fleet, scorers[0], late)
    assert world.redis.keys(f"{NAMESPACE}:2:{{directory}}:shards")


@pytest.mark.failovers
@pytest.mark.timeout(300)
def test_the_shards_of_a_model_lie_on_all_nodes_of_a_cluster(make_world: MakeWorld) -> None:
    """A node dies with its shard: the streams of the other shards are always live, and all are right in the end."""
    world = make_world(pod_expiry_s=30, make_redis=RedisCluster, cluster_require_full_coverage="no")
    cluster: RedisCluster = world.redis
    keyspace = Keyspace(NAMESPACE, 3)
    fleet = world.fleet(streams=6, pod_prefix=prefix_of(3, 5))
    logs = [keyspace.model(fleet.model, shard).log for shard in range(3)]
    nodes = [cluster.owner_of(log) for log in logs]
    assert len(set(nodes)) == 3
    indexers = world.sharing_indexers(fleet, shards="3")
    scorers = world.scorers(2)
    wait_owned(scorers[0], 6, by=2)
    wait_ready(*indexers, *scorers)
    fleet.play(150)
    fleet.settle(*scorers)
    for member, log in zip(nodes, logs, strict=True):
        assert member.client().xlen(log) > 0

    fleet.resume()
    # Not the node of the directory: without that no indexer sees the others.
    number = next(number for number, member in enumerate(nodes) if member is not cluster.owner_of(keyspace.directory.pods))
    explained, doubts = Explained(fleet, LIVE_S), set[str]()

    def ask_until(condition: Callable[[], bool], timeout_s: float) -> None:
        def is_met() -> bool:
            explained.once(*scorers)
            answers = [fleet.ask(scorer, fleet.texts[0]).answer["pods"] for scorer in scorers]
            doubts.update(pod["pod"] for pods in answers for pod in pods if pod["trust"] != "live")
            return condition()

        wait_until(is_met, timeout_s)

    ask_until(lambda: fleet.batches > 200, 30)
    assert not doubts
    nodes[number].kill()
    ask_until(lambda: bool(doubts), 30)
    ask_until(lambda: cluster.owner_of(logs[number]) is not nodes[number], 60)
    ask_until(lambda: all(owner is not None for owner in owners(scorers[0]).values()), TAKEOVER_S)
    assert {shard_of(pod, 3) for pod in doubts} == {number}
    assert not explained.wrong
    fleet.pause()
    wait_ready(*indexers, *scorers)
    (late,) = world.scorers(1)
    fleet.settle(*scorers, late)
    settle_to_the_last_copy(fleet, *scorers, late)

"""A model in one shard and in three, in a Cluster of three masters with a replica each: what the busiest node has to do for a block.

Pods are chosen so that each shard has as many: how evenly a hash spreads them is no question of cost.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack

from msgspec import Struct

from bench.cost import redis_cpu_s
from bench.publisher import Publisher
from bench.server import APPLIED_TIMEOUT_S, Server
from bench.workload import Plan
from indexer.store.keyspace import shard_of
from tests.redis_cluster import RedisCluster

SHARDS = (1, 3)
PODS_PER_SHARD = 3
BLOCKS = 1_500 * 64
# Looking costs the scorer CPU too.
LOOK_S = 0.25


class ShardCost(Struct, frozen=True):
    """CPU time of masters, of an indexer and of a scorer, for each block that was announced. `share`: of the busiest master in that of all."""

    shards: int
    pods: int
    blocks: int
    busiest_us_per_block: float
    share: float
    redis_us_per_block: float
    indexer_us_per_block: float
    scorer_us_per_block: float
    scorer_descriptors: int


def measure() -> list[ShardCost]:
    return [_measured(shards) for shards in SHARDS]


def _pods() -> list[str]:
    """As many for each shard."""
    most = max(SHARDS)
    names = [f"pod-{number}" for number in range(100 * PODS_PER_SHARD * most)]
    return [pod for shard in range(most) for pod in [name for name in names if shard_of(name, most) == shard][:PODS_PER_SHARD]]


def _measured(shards: int) -> ShardCost:
    with ExitStack() as stack:
        cluster = stack.enter_context(RedisCluster())
        pods = _pods()
        publishers = [stack.enter_context(Publisher(pod, Plan(seed=400 + number, blocks=BLOCKS))) for number, pod in enumerate(pods)]
        specs = [publisher.wait_prepared() for publisher in publishers]
        indexer = stack.enter_context(Server(specs, "ingest", cluster.url, env={"KV_INDEXER_SHARDS": str(shards)}))
        scorer = stack.enter_context(Server([], "api", cluster.url))
        _wait(lambda: indexer.series("kv_indexer_owned_streams") == len(pods))
        clients = [master.client() for master in cluster.masters]
        before = [redis_cpu_s(client) for client in clients]
        indexer_before_s, scorer_before_s = indexer.cpu_s(), scorer.cpu_s()
        for publisher in publishers:
            publisher.start()
        blocks = sum(publisher.finish().blocks for publisher in publishers)
        _wait(lambda: scorer.blocks() == blocks)
        spent = [redis_cpu_s(client) - seconds for client, seconds in zip(clients, before, strict=True)]
        per_block = [
            1e6 * seconds / blocks for seconds in (max(spent), sum(spent), indexer.cpu_s() - indexer_before_s, scorer.cpu_s() - scorer_before_s)
        ]
        busiest, of_all, of_indexer, of_scorer = (round(each, 2) for each in per_block)
        share = round(max(spent) / sum(spent), 2)
        return ShardCost(shards, len(pods), blocks, busiest, share, of_all, of_indexer, of_scorer, scorer.descriptors())


def _wait(is_so: Callable[[], bool]) -> None:
    """Raises RuntimeError."""
    deadline_s = time.monotonic() + APPLIED_TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise RuntimeError("the service did not become what is measured")
        time.sleep(LOOK_S)

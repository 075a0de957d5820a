"""How busy pods are is measured by one indexer for all replicas, and by another one when that dies."""

from contextlib import ExitStack

from indexer.store.keyspace import Keyspace
from tests.engine import Engine
from tests.engine_server import EngineServer
from tests.processes import ingest
from tests.redis_server import RedisServer
from tests.running import Client
from tests.waiting import wait_until

METRICS = b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_waiting{engine="0"} 1.0\n'


def asked(indexer: Client) -> float:
    """How often this indexer was told a load."""
    return indexer.metric("kv_indexer_load_requests_total", outcome="load")


def test_a_pod_is_asked_by_the_owner_of_its_first_rank_alone() -> None:
    with ExitStack() as stack:
        redis, engine, second_rank = (stack.enter_context(each) for each in (RedisServer(), Engine(), Engine()))
        http = stack.enter_context(EngineServer(routes={"/metrics": lambda _: (200, METRICS)}))
        specs = [engine.spec(rank=0, http=http.url), second_rank.spec(rank=1, http=http.url)]
        indexers = [stack.enter_context(ingest(redis.url, *specs, load_interval_s="0.1")) for _ in range(2)]
        for indexer in indexers:
            indexer.wait_url()
        key = Keyspace("kvi").model("m").load("pod")
        wait_until(lambda: redis.client().exists(key))

        def owned() -> list[list[int]]:
            """The ranks that each indexer has."""
            return [
                [stream["rank"] for pod in indexer.http.get(f"{indexer.url}/v1/pods").json()["pods"] for stream in pod["streams"]]
                for indexer in indexers
            ]

        # Two ranks and two indexers: each has one.
        wait_until(lambda: sorted(owned()) == [[0], [1]], 60)
        owner, other = indexers if owned()[0] == [0] else reversed(indexers)
        before = asked(other)
        first = asked(owner)
        wait_until(lambda: asked(owner) >= first + 10)
        assert asked(other) <= before + 1, "one answer may have been on its way when the stream was handed over"
        owner.kill()
        wait_until(lambda: asked(other) >= before + 5, 60)
        redis.client().delete(key)
        wait_until(lambda: redis.client().exists(key))

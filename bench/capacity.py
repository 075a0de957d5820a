"""What many pods cost, each connected and holding a few blocks: memory, descriptors, threads, Redis keys, and the answers about all of them."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from msgspec import Struct

from bench.publisher import Socket, spec
from bench.server import Server
from bench.workload import Plan, payloads
from tests.engine_server import EngineServer
from tests.redis_server import RedisServer

EMBEDDED_PODS = (200, 2_000, 4_000)
SHARED_PODS = (200, 2_000)
BLOCKS = 64
START_TIMEOUT_S = 300.0
ASKED = 10
# Looking costs the service CPU too.
LOOK_S = 0.5
IDLE_SHARE = 0.4
PAGE_PODS = 100
SETTINGS = {"KV_INDEXER_LOAD_INTERVAL_S": "0"}
MIB = 2**20


class Capacity(Struct, frozen=True):
    """`start_s`: from the start of the process until all pods are connected and what they published is held. What an answer takes is CPU of the
    service: `page` is one of 100 pods. `lag_ms`: by how much the event loop was late meanwhile, the bound of its metric's highest bucket.
    """

    role: str
    pods: int
    start_s: float
    memory_mib: int
    descriptors: int
    threads: int
    metrics_cpu_ms: float
    pods_cpu_ms: float
    page_cpu_ms: float
    readyz_cpu_ms: float
    lag_ms: float
    redis_keys: int | None = None


def measure() -> list[Capacity]:
    """One process."""
    return [_embedded(pods) for pods in EMBEDDED_PODS]


def measure_shared() -> list[Capacity]:
    """An indexer and a scorer with Redis between them."""
    return [row for pods in SHARED_PODS for row in _shared(pods)]


def _embedded(pods: int) -> Capacity:
    with ExitStack() as stack:
        engine = Engines()
        stack.callback(engine.close)
        began_s = time.monotonic()
        server = stack.enter_context(Server(engine.specs(pods), start_timeout_s=START_TIMEOUT_S, env=SETTINGS))
        wait_for(lambda: server.series("kv_indexer_streams", trust="stale") == 0)
        engine.publish(pods)
        wait_for(lambda: server.series("kv_indexer_blocks_stored_total", tier="gpu") == pods * BLOCKS)
        return _measured("serve", pods, time.monotonic() - began_s, server)


def _shared(pods: int) -> Sequence[Capacity]:
    with ExitStack() as stack:
        engine = Engines()
        stack.callback(engine.close)
        redis = stack.enter_context(RedisServer())
        began_s = time.monotonic()
        indexer = stack.enter_context(Server(engine.specs(pods), "ingest", redis.url, start_timeout_s=START_TIMEOUT_S, env=SETTINGS))
        scorer = stack.enter_context(Server([], "api", redis.url, start_timeout_s=START_TIMEOUT_S, env=SETTINGS))
        wait_for(lambda: indexer.series("kv_indexer_owned_streams") == pods and indexer.series("kv_indexer_streams", trust="stale") == 0)
        engine.publish(pods)
        wait_for(lambda: indexer.series("kv_indexer_blocks_stored_total", tier="gpu") == pods * BLOCKS)
        wait_for(lambda: scorer.series("kv_indexer_follower_streams", trust="live") == pods)
        start_s, keys = time.monotonic() - began_s, int(redis.client().dbsize())
        return [_measured(role, pods, start_s, server, keys) for role, server in (("ingest", indexer), ("api", scorer))]


def _measured(role: str, pods: int, start_s: float, server: Server, redis_keys: int | None = None) -> Capacity:
    wait_for(lambda: _is_idle(server))
    before = server.lags()
    metrics, listed, page, ready = (_cpu_ms(server, path) for path in ("/metrics", "/v1/pods", f"/v1/pods?limit={PAGE_PODS}", "/readyz"))
    after = server.lags()
    lag_s = min(bound for bound, count in after.items() if count - before[bound] == after[math.inf] - before[math.inf])
    threads, descriptors = server.threads(), server.descriptors()
    return Capacity(
        role, pods, round(start_s, 1), server.rss_bytes() // MIB, descriptors, threads, metrics, listed, page, ready, 1_000 * lag_s, redis_keys
    )


def _is_idle(server: Server) -> bool:
    """At first all pods are asked for the names of their models."""
    began_ns = server.cpu_ns()
    time.sleep(LOOK_S)
    return server.cpu_ns() - began_ns < IDLE_SHARE * LOOK_S * 1e9


def _cpu_ms(server: Server, path: str) -> float:
    began_ns = server.cpu_ns()
    for _ in range(ASKED):
        server.asked(path)
    return round((server.cpu_ns() - began_ns) / ASKED / 1e6, 1)


def wait_for(is_so: Callable[[], bool]) -> None:
    """Raises TimeoutError."""
    deadline_s = time.monotonic() + START_TIMEOUT_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise TimeoutError("the service did not become what is measured")
        time.sleep(LOOK_S)


class Engines:
    """One publishing socket that all pods are connected to: each holds the same blocks."""

    def __init__(self) -> None:
        self._socket = Socket()
        self._api = EngineServer(routes={"/v1/models": lambda _: (200, b'{"data": []}')})
        self._api.__enter__()

    def specs(self, pods: int) -> list[str]:
        return [f"{spec(f'pod-{number}', self._socket.port)},http={self._api.url}" for number in range(pods)]

    def publish(self, pods: int, plan: Plan = Plan(seed=7, blocks=BLOCKS)) -> None:  # noqa: B008 - frozen
        self._socket.wait_subscribed(pods)
        for payload in payloads(plan):
            self._socket.publish(payload)

    def close(self) -> None:
        self._api.__exit__(None, None, None)
        self._socket.close()

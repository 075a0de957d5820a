"""What a second worker brings: the same questions to `kv-indexer api` with one and with two, over the same Redis.

The load is on the same cores. So the questions are long ones, which cost the client little and the service much; what the load takes is told, too.
"""

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from bench import load, process
from bench.child import spawning
from bench.connection import prepare
from bench.publisher import Publisher
from bench.scoring import DECODE, POOL, Prompt, pool_prompt, verified_answers
from bench.server import Server
from bench.workload import Plan, prompt_tokens
from tests.redis_server import RedisServer

PODS = tuple(f"pod-{number}" for number in range(8))
BLOCKS = 2_048
WORKERS = (1, 2)
CONNECTIONS = 8
REPEATS = 3
DURATION_S = 2.0
WARM_UP_S = 0.5
MIB = 2**20


class Workers(Struct, frozen=True):
    """Medians of the repeats. `load_cores`: CPU that the load took meanwhile, of the same cores. `mib`: resident memory of all processes,
    shared pages counted once for each."""

    workers: int
    body: str
    blocks: int
    requests_per_s: int
    p50_ms: float
    p99_ms: float
    cpu_us_per_request: int
    load_cores: float
    mib: float


def measure() -> list[Workers]:
    pool = [pool_prompt(BLOCKS, number) for number in range(POOL)]
    requests = [prepare("json", prompt_tokens(prompt.seed, prompt.blocks)) for prompt in pool]
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        publishers = [stack.enter_context(Publisher(pod, _plan(number, pod, pool))) for number, pod in enumerate(PODS)]
        stack.enter_context(Server([publisher.wait_prepared() for publisher in publishers], "ingest", redis.url))
        for publisher in publishers:
            publisher.start()
        blocks = sum(publisher.finish().blocks for publisher in publishers)
        loader = stack.enter_context(ProcessPoolExecutor(1, mp_context=spawning))
        return [_measure(count, redis.url, blocks, pool, requests, loader) for count in WORKERS]


def _plan(number: int, pod: str, pool: list[Prompt]) -> Plan:
    return Plan(seed=100 + number, blocks=0, prefixes=tuple((prompt.seed, prompt.held[pod]) for prompt in pool if prompt.held[pod]))


@contextmanager
def _scorer(count: int, redis_url: str, blocks: int) -> Iterator[Server]:
    """With all blocks, in each worker."""
    with Server([], "api", redis_url, flags=("--workers", str(count))) as server:
        server.wait_held(blocks * count)
        yield server


def _measure(count: int, redis_url: str, blocks: int, pool: list[Prompt], requests: list[bytes], loader: ProcessPoolExecutor) -> Workers:
    with _scorer(count, redis_url, blocks) as server:
        verified_answers(server, pool, requests, DECODE["json"])
        job = load.Job(server.host, server.port, requests, None, CONNECTIONS, DURATION_S)
        loader.submit(load.run, replace(job, duration_s=WARM_UP_S)).result()
        pids = [server.pid, *process.children(server.pid)]
        (load_pid,) = loader._processes
        cpu_s, load_s = sum(map(process.cpu_s, pids)), process.cpu_s(load_pid)
        outcomes = [loader.submit(load.run, job).result() for _ in range(REPEATS)]
        cpu_s, load_s = sum(map(process.cpu_s, pids)) - cpu_s, process.cpu_s(load_pid) - load_s
        latencies_ms = sorted(latency_s * 1000 for outcome in outcomes for latency_s in outcome.latencies_s)
        return Workers(
            workers=count,
            body="json",
            blocks=BLOCKS,
            requests_per_s=round(median(len(outcome.latencies_s) / outcome.elapsed_s for outcome in outcomes)),
            p50_ms=round(median(latencies_ms), 2),
            p99_ms=round(latencies_ms[len(latencies_ms) * 99 // 100], 2),
            cpu_us_per_request=round(cpu_s / len(latencies_ms) * 1e6),
            load_cores=round(load_s / sum(outcome.elapsed_s for outcome in outcomes), 2),
            mib=round(sum(map(process.rss_bytes, pids)) / MIB, 1),
        )

"""The same through Redis: an indexer, a redis-server and a scorer, each a process of its own, on this machine.

What is ingested counts once Redis has it: the last batch's number in the stream's state, and a field for every block.
"""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import msgspec
from msgspec import Struct

from bench.cost import redis_cpu_s
from bench.publisher import Published, Publisher
from bench.server import APPLIED_TIMEOUT_S, POLL_S, Server
from bench.visibility import Visibility, measure_with
from bench.workload import MODEL, Plan
from indexer.core.names import StreamKey
from indexer.store.keyspace import Keyspace
from tests.redis_server import RedisServer

REPEATS = 3
WARM_UP_SHARE = 0.1
INGEST = Plan(seed=1, blocks=9_000 * 64)
PODS = 8
COPIES = 1_000_000
PARTS = 10


class SharedIngest(Struct, frozen=True):
    """`redis_us_per_block`: CPU time of the redis-server. `batches_per_append`: under load several batches go in one append."""

    blocks: int
    blocks_per_s: int
    slowest: int
    fastest: int
    indexer_us_per_block: float
    redis_us_per_block: float
    batches_per_append: float
    commands_per_append: float
    script_us_per_append: int


class SharedCopies(Struct, frozen=True):
    """What block copies cost Redis: its used memory without the log, and the log. And a scorer that starts against all of them: from the
    start of its process to ready. `longest_command_ms`: what Redis was busy with at a stretch meanwhile.
    """

    copies: int
    pods: int
    bytes_per_copy: float
    log_bytes_per_copy: float
    load_s: float
    loaded_blocks_per_s: int
    longest_command_ms: float


def measure_ingest() -> list[SharedIngest]:
    """The median of the repeats, and the costs of the last one."""
    runs = [_ingest() for _ in range(REPEATS)]
    rates = sorted(run.blocks_per_s for run in runs)
    return [msgspec.structs.replace(runs[-1], blocks_per_s=round(median(rates)), slowest=rates[0], fastest=rates[-1])]


def measure_visibility() -> list[Visibility]:
    """Of an answer of a scorer in another process than the indexer's."""

    @contextmanager
    def start(engine: str) -> Iterator[Server]:
        with RedisServer() as redis, Server([engine], "ingest", redis.url), Server([], "api", redis.url) as scorer:
            deadline_s = time.monotonic() + APPLIED_TIMEOUT_S
            while MODEL not in str(scorer.models()) and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
            yield scorer

    return [measure_with(start)]


def measure_copies() -> list[SharedCopies]:
    """A million block copies, no block held twice: the dearest case."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        plans = [Plan(seed=200 + number, blocks=COPIES // PODS // 64 * 64) for number in range(PODS)]
        publishers = [stack.enter_context(Publisher(f"pod-{number}", plan)) for number, plan in enumerate(plans)]
        stack.enter_context(Server([publisher.wait_prepared() for publisher in publishers], "ingest", redis.url))
        before = _used_bytes(redis)
        copies = sum(_publish(publisher, redis) for publisher in publishers)
        log = int(redis.client().memory_usage(Keyspace("kvi").model(MODEL).log, samples=0) or 0)
        stored = _used_bytes(redis) - before - log
        with _watched(redis, over_ms=0.2) as slow:
            started_s = time.monotonic()
            with Server([], "api", redis.url) as scorer:
                while not scorer.is_ready() or scorer.blocks() != copies:
                    if time.monotonic() > started_s + APPLIED_TIMEOUT_S:
                        raise RuntimeError(f"the scorer holds {scorer.blocks()} of {copies} blocks")
                    time.sleep(POLL_S)
                seconds = time.monotonic() - started_s
        longest_ms = max(slow, default=0.2)
        loaded = round(seconds, 2), round(copies / seconds), round(longest_ms, 2)
        return [SharedCopies(copies, PODS, round(stored / copies, 1), round(log / copies, 1), *loaded)]


def _ingest() -> SharedIngest:
    with RedisServer() as redis, Publisher("pod", INGEST) as publisher, Server([publisher.wait_prepared()], "ingest", redis.url) as server:
        publisher.start(WARM_UP_SHARE)
        warmed_up = publisher.finish()
        _wait_written(redis, "pod", warmed_up)
        client = redis.client()
        client.config_resetstat()
        cpu_before_s, redis_before_s = server.cpu_s(), redis_cpu_s(client)
        publisher.start(1 - WARM_UP_SHARE)
        published = publisher.finish()
        seen_s = _wait_written(redis, "pod", published)
        stats: dict[str, Any] = client.info("commandstats")
        scripts, entries = stats["cmdstat_evalsha"], stats["cmdstat_xadd"]["calls"]
        inside = sum(stat["calls"] for name, stat in stats.items() if name not in ("cmdstat_evalsha", "cmdstat_hlen", "cmdstat_info"))
        blocks = published.blocks - warmed_up.blocks
        rate = round(blocks / (seen_s - published.started_s))
        return SharedIngest(
            blocks=blocks,
            blocks_per_s=rate,
            slowest=rate,
            fastest=rate,
            indexer_us_per_block=round((server.cpu_s() - cpu_before_s) / blocks * 1e6, 2),
            redis_us_per_block=round((redis_cpu_s(client) - redis_before_s) / blocks * 1e6, 2),
            batches_per_append=round((published.sequence - warmed_up.sequence) / entries, 1),
            commands_per_append=round(inside / entries, 1),
            script_us_per_append=round(scripts["usec"] / entries),
        )


def _publish(publisher: Publisher, redis: RedisServer) -> int:
    for _ in range(PARTS):
        publisher.start(1 / PARTS)
        published = publisher.finish()
        _wait_written(redis, publisher.pod, published)
    return published.blocks


@contextmanager
def _watched(redis: RedisServer, over_ms: float) -> Iterator[list[float]]:
    """How long each command took that held Redis up for longer, in milliseconds; known at the end."""
    slow: list[float] = []
    client = redis.client()
    client.config_set("slowlog-max-len", 10_000)
    client.config_set("slowlog-log-slower-than", int(over_ms * 1_000))
    client.slowlog_reset()
    yield slow
    slow += [entry["duration"] / 1_000 for entry in client.slowlog_get(10_000)]


def _wait_written(redis: RedisServer, pod: str, published: Published) -> float:
    """Wait until Redis has all that was published. Returns when that was seen, by time.monotonic. Raises RuntimeError where anything differs."""
    key, client = StreamKey(MODEL, pod, 0), redis.client()
    names = Keyspace("kvi").model(MODEL)
    deadline_s = time.monotonic() + APPLIED_TIMEOUT_S
    while True:
        generation, head = (value if isinstance(value, bytes) else None for value in client.hmget(names.state(key), "gen", "head"))
        if head is not None and msgspec.msgpack.decode(head)[0] == published.sequence:
            break
        if time.monotonic() > deadline_s:
            raise RuntimeError(f"{published} was not written: {head!r}")
        time.sleep(POLL_S)
    seen_s = time.monotonic()
    written = client.hlen(names.parts(key, int(generation or 0))[0])
    if written != published.blocks:
        raise RuntimeError(f"{published} was not written as published: {written} blocks")
    return seen_s


def _used_bytes(redis: RedisServer) -> int:
    return int(redis.client().info("memory")["used_memory"])

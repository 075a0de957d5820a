"""What is measured along each axis. Every answer is compared with what was stored before anything is timed."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from statistics import median

import uvloop
from msgspec import Struct

from bench import ingest, process
from bench.child import spawning
from bench.connection import Connection, prepare
from bench.cost import redis_used_bytes
from bench.direct import Indexer
from bench.growth.filled import BODIES, indexer_of, query_us, scorer_of
from bench.server import Server
from bench.workload import BLOCK_SIZE, Plan, encoded, payloads, prompt_tokens, stored
from tests.redis_server import RedisServer

LENGTHS = (16, 64, 256, 1_024, 4_096, 8_192)
POD_COUNTS = (1, 4, 16, 64, 256, 1_024)
COPIES = (10_000, 100_000, 1_000_000, 10_000_000, 30_000_000)
COPIES_MAX = 10_000_000
EVENT_BLOCKS = {1: 24_000, 4: 64_000, 16: 128_000, 64: 320_000, 256: 320_000, 1_024: 320_512}
PODS = 8
PROMPT_BLOCKS = 512
PROBES = 40
VISIBLE = f'"matched_tokens":{BLOCK_SIZE},'.encode()
SEED, PROBE_SEED = 900, 3_000_000


class ByLength(Struct, frozen=True):
    """A query of a prompt that each of 8 pods holds all of: CPU of the service."""

    body: str
    blocks: int
    cpu_us: float


class ByPods(Struct, frozen=True):
    """A query of 512 blocks, of which pod p of n holds p / n."""

    body: str
    pods: int
    cpu_us: float


class ByCopies(Struct, frozen=True):
    """8 pods, no block held twice but those of the prompt. `load_s`: of a scorer, from its start. `lag`: from applying a block to an answer that
    shows it. `indexer_bytes`: what the indexer takes for a copy."""

    copies: int
    cpu_us: float
    bytes_per_copy: float
    indexer_bytes: float
    redis_bytes: float
    load_s: float
    lag_p50_ms: float
    lag_max_ms: float


class ByEvent(Struct, frozen=True):
    """Ingest of one engine by `serve`, one event to a message."""

    event_blocks: int
    cpu_us_per_block: float
    blocks_per_s: int


def by_length() -> list[ByLength]:
    return uvloop.run(_by_length())


def by_pods() -> list[ByPods]:
    return [row for count in POD_COUNTS for row in uvloop.run(_by_pods(count))]


def by_copies(most: int = COPIES_MAX, least: int = 0) -> list[ByCopies]:
    """Each in a process of its own, whose memory is the indexer's."""
    rows = []
    for copies in COPIES:
        if least <= copies <= most:
            with ProcessPoolExecutor(1, mp_context=spawning) as pool:
                rows.append(pool.submit(_of_copies, copies).result())
    return rows


def by_event() -> list[ByEvent]:
    rows = []
    for size, blocks in EVENT_BLOCKS.items():
        published, elapsed_s, cpu_s = min((ingest.run(Plan(seed=1, blocks=blocks, blocks_per_event=size)) for _ in range(2)), key=lambda run: run[2])
        rows.append(ByEvent(size, round(cpu_s / published * 1e6, 2), round(published / elapsed_s)))
    return rows


def _of_copies(copies: int) -> ByCopies:
    return uvloop.run(_by_copies(copies))


async def _by_length() -> list[ByLength]:
    pods = _pods(PODS)
    async with indexer_of(pods) as (redis, indexer):
        for pod in pods:
            await indexer.apply(pod, _data(Plan(seed=1, blocks=0, prefixes=tuple((blocks, blocks) for blocks in LENGTHS))))
        async with scorer_of(redis, sum(LENGTHS) * PODS) as filled:
            return [
                ByLength(body, blocks, round(query_us(filled.server, body, blocks, blocks, dict.fromkeys(pods, blocks)), 1))
                for body in BODIES
                for blocks in LENGTHS
            ]


async def _by_pods(count: int) -> list[ByPods]:
    held = {pod: max(1, PROMPT_BLOCKS * (number + 1) // count) for number, pod in enumerate(_pods(count))}
    async with indexer_of(held) as (redis, indexer):
        for pod, blocks in held.items():
            await indexer.apply(pod, _data(Plan(seed=1, blocks=0, prefixes=((SEED, blocks),))))
        async with scorer_of(redis, sum(held.values())) as filled:
            return [ByPods(body, count, round(query_us(filled.server, body, SEED, PROMPT_BLOCKS, held), 1)) for body in BODIES]


async def _by_copies(copies: int) -> ByCopies:
    pods = _pods(PODS)
    own_blocks = (copies // PODS - PROMPT_BLOCKS) // 64 * 64
    with RedisServer() as redis, Server([], "api", redis.url) as empty:
        empty_bytes = empty.rss_bytes()
    async with indexer_of(pods) as (redis, indexer):
        redis_before, indexer_before = redis_used_bytes(redis), process.rss_bytes(os.getpid())
        for number, pod in enumerate(pods):
            await indexer.apply(pod, _data(Plan(seed=1_000 + number, blocks=own_blocks, prefixes=((SEED, PROMPT_BLOCKS),))))
        total = (own_blocks + PROMPT_BLOCKS) * PODS
        redis_bytes, indexer_bytes = redis_used_bytes(redis) - redis_before, process.rss_bytes(os.getpid()) - indexer_before
        async with scorer_of(redis, total) as filled:
            server = filled.server
            cost_us = query_us(server, "json", SEED, PROMPT_BLOCKS, dict.fromkeys(pods, PROMPT_BLOCKS))
            lags_ms = [1000 * await _lag_s(server, indexer, pods[0], number) for number in range(PROBES)]
            return ByCopies(
                total,
                round(cost_us, 1),
                round((server.rss_bytes() - empty_bytes) / total, 1),
                round(indexer_bytes / total, 1),
                round(redis_bytes / total, 1),
                round(filled.load_s, 2),
                round(median(lags_ms), 2),
                round(max(lags_ms), 2),
            )


async def _lag_s(server: Server, indexer: Indexer, pod: str, number: int) -> float:
    tokens = prompt_tokens(PROBE_SEED + number, 1)
    payload, request = encoded([stored([number + 1], None, tokens[:BLOCK_SIZE])]), prepare("json", tokens)
    started_s = time.perf_counter()
    await indexer.apply(pod, [payload.data])
    with Connection(server.host, server.port) as connection:
        while VISIBLE not in connection.ask(request):
            pass
    return time.perf_counter() - started_s


def _pods(count: int) -> list[str]:
    return [f"pod-{number:04}" for number in range(count)]


def _data(plan: Plan) -> Iterator[bytes]:
    return (payload.data for payload in payloads(plan))

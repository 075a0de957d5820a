"""A scorer over a Redis that was filled without engines, and what a query costs it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from msgspec import Struct

from bench import direct
from bench.connection import Connection, prepare
from bench.direct import Indexer
from bench.scoring import DECODE
from bench.server import POLL_S, Server
from bench.workload import BLOCK_SIZE, prompt_tokens
from tests.redis_server import RedisServer

BODIES = tuple(DECODE)
ROUNDS = 5
ROUND_S = 0.3
LOAD_TIMEOUT_S = 200.0


class Filled(Struct, frozen=True):
    """`load_s`: from the start of the scorer's process until it had everything."""

    server: Server
    load_s: float


@asynccontextmanager
async def indexer_of(pods: Iterable[str]) -> AsyncIterator[tuple[RedisServer, Indexer]]:
    """A Redis, and an indexer in this process that owns these pods' streams."""
    with RedisServer() as redis:
        async with direct.indexer_of(redis) as indexer:
            for pod in pods:
                await indexer.own(pod)
            yield redis, indexer


@asynccontextmanager
async def scorer_of(redis: RedisServer, holders: int) -> AsyncIterator[Filled]:
    """A scorer of this Redis once it has loaded so many holders of blocks. Raises RuntimeError."""
    started_s = time.monotonic()
    with Server([], "api", redis.url) as server:
        while not server.is_ready() or server.held() < holders:
            if time.monotonic() - started_s > LOAD_TIMEOUT_S:
                raise RuntimeError(f"the scorer has loaded {server.held()} of {holders}")
            await asyncio.sleep(POLL_S)
        yield Filled(server, time.monotonic() - started_s)


def query_us(server: Server, body: str, seed: int, blocks: int, held: dict[str, int]) -> float:
    """CPU of the service for a query, in the round that cost least. Raises RuntimeError where the answer is not that the pods hold so many blocks."""
    request = prepare(body, prompt_tokens(seed, blocks))
    with Connection(server.host, server.port) as connection:
        answer = DECODE[body](connection.ask(request))
        matched = {shown["pod"]: shown["matched_tokens"] for shown in answer["pods"]}
        if matched != {pod: count * BLOCK_SIZE for pod, count in held.items()}:
            raise RuntimeError(f"{held} of {blocks} blocks were stored, the service answered {answer}")
        return min(_round_us(server, connection, request) for _ in range(ROUNDS))


def _round_us(server: Server, connection: Connection, request: bytes) -> float:
    count, until_s, before_ns = 0, time.monotonic() + ROUND_S, server.cpu_ns()
    while time.monotonic() < until_s:
        connection.ask(request)
        count += 1
    return (server.cpu_ns() - before_ns) / 1000 / count

"""What events cost: CPU of the server for each block, its memory for each block copy, and how soon an answer shows a block."""

import time
from statistics import median

from msgspec import Struct

from bench.connection import Connection
from bench.peers.questions import last_of, sockets, wait_applied
from bench.peers.sides import SIDES
from bench.workload import Payload, Plan, encoded, payloads, prompt_tokens, stored

ROUNDS = 3
WARM_UP_SHARE = 0.1
SETTLE_S = 0.5
SHAPES = {
    "64-block events, with extra keys": Plan(seed=1, blocks=6_000 * 64),
    "64-block events, older dialect": Plan(seed=1, blocks=6_000 * 64, is_older=True),
    "64-block events, as many removed": Plan(seed=1, blocks=4_500 * 64, held_max=30_000),
    "1-block events, 8 a batch": Plan(seed=2, blocks=15_000 * 8, blocks_per_event=1, events_per_batch=8),
    "1-block events, 1 a batch": Plan(seed=3, blocks=60_000, blocks_per_event=1),
}
PROBES = 200
TIMEOUT_S = 30.0


class Cost(Struct, frozen=True):
    """Medians of the rounds; bytes for each block that is held in the end."""

    shape: str
    cpu_us_per_block: float
    peer_cpu_us: float
    ratio: float
    bytes_per_block: int
    peer_bytes: int


class Visible(Struct, frozen=True):
    """From publishing a block to an answer that shows it, while one client asks all the time."""

    service: str
    p50_ms: float
    p99_ms: float


def measure() -> list[Cost]:
    """Each shape, one service after the other, in rounds."""
    rows = []
    for shape, plan in SHAPES.items():
        batches = list(payloads(plan))
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in SIDES}
        for _ in range(ROUNDS):
            for name in SIDES:
                found[name].append(_run(name, batches))
        (ours, our_bytes), (theirs, their_bytes) = (
            (median(cpu for cpu, _ in found[name]), median(size for _, size in found[name])) for name in ("this service", "dynamo")
        )
        rows.append(Cost(shape, round(ours, 2), round(theirs, 2), round(ours / theirs, 2), round(our_bytes), round(their_bytes)))
    return rows


def _run(name: str, batches: list[Payload]) -> tuple[float, float]:
    """Microseconds of CPU for a block, and bytes for each that is held."""
    first = round(len(batches) * WARM_UP_SHARE)
    with sockets(1) as (engine,), SIDES[name]([engine.port]) as side:
        engine.wait_subscribed()
        before_bytes = side.rss_bytes()
        for payload in (*batches[:first], last_of(0)):
            engine.publish(payload)
        wait_applied(side, 0)
        blocks, before_ns = engine.blocks, side.cpu_ns()
        for payload in (*batches[first:], last_of(1)):
            engine.publish(payload)
        wait_applied(side, 0, 1)
        cpu_us = (side.cpu_ns() - before_ns) / 1000 / (engine.blocks - blocks)
        time.sleep(SETTLE_S)
        return cpu_us, (side.rss_bytes() - before_bytes) / engine.held


def measure_visible() -> list[Visible]:
    latencies_s: dict[str, list[float]] = {name: [] for name in SIDES}
    for number in range(ROUNDS):
        for name in SIDES:
            latencies_s[name] += _probe(name, number)
    return [
        Visible(name, round(median(found) * 1000, 2), round(sorted(found)[len(found) * 99 // 100] * 1000, 2)) for name, found in latencies_s.items()
    ]


def _probe(name: str, round_number: int) -> list[float]:
    found = []
    with sockets(1) as (engine,), SIDES[name]([engine.port]) as side, Connection(side.host, side.port) as connection:
        engine.wait_subscribed()
        for number in range(PROBES):
            tokens = prompt_tokens(2_000_000 + round_number * PROBES + number, 1)
            payload, request = encoded([stored([number + 1], None, tokens[:-1])]), side.request("json", tokens)
            connection.ask(request)
            began_s = time.perf_counter()
            engine.publish(payload)
            while side.matched("json", connection.ask(request)) != {0: 1}:
                if time.perf_counter() - began_s > TIMEOUT_S:
                    raise RuntimeError(f"{name} never shows a block")
            found.append(time.perf_counter() - began_s)
    return found

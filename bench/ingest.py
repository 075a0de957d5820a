"""How many blocks a second are taken in, from the first publish until all of them are held."""

from statistics import median

from msgspec import Struct

from bench.publisher import Publisher
from bench.server import Server
from bench.workload import Plan

REPEATS = 3
# The first tenth warms up: the interpreter specialises the hot loops, the dicts leave their smallest sizes.
WARM_UP_SHARE = 0.1
LARGE_EVENTS = "64-block events, 1 a batch"
SHAPES = {
    LARGE_EVENTS: Plan(seed=1, blocks=9_000 * 64),
    "64-block events, older dialect": Plan(seed=1, blocks=9_000 * 64, is_older=True),
    "64-block events, as many removed": Plan(seed=1, blocks=4_500 * 64, held_max=30_000),
    "1-block events, 8 a batch": Plan(seed=2, blocks=12_000 * 8, blocks_per_event=1, events_per_batch=8),
    "1-block events, 1 a batch": Plan(seed=3, blocks=40_000, blocks_per_event=1),
}


class Ingest(Struct, frozen=True):
    """`cpu_us_per_block`: of the whole server process, receiving included; the median, and the best of the repeats."""

    shape: str
    blocks: int
    blocks_per_s: int
    slowest: int
    fastest: int
    cpu_us_per_block: float
    cpu_us_best: float


def measure() -> list[Ingest]:
    return [_measure_shape(shape, plan) for shape, plan in SHAPES.items()]


def _measure_shape(shape: str, plan: Plan) -> Ingest:
    runs = [run(plan) for _ in range(REPEATS)]
    rates = sorted(blocks / elapsed_s for blocks, elapsed_s, _ in runs)
    costs = sorted(cpu_s / blocks * 1e6 for blocks, _, cpu_s in runs)
    return Ingest(shape, runs[0][0], round(median(rates)), round(rates[0]), round(rates[-1]), round(median(costs), 2), round(costs[0], 2))


def run(plan: Plan) -> tuple[int, float, float]:
    """One repeat with a service of its own: blocks, seconds, and seconds of the server's CPU time."""
    with Publisher("pod", plan) as publisher, Server([publisher.wait_prepared()]) as server:
        publisher.start(WARM_UP_SHARE)
        warmed_up = publisher.finish()
        server.wait_applied("pod", warmed_up)
        cpu_before_s = server.cpu_s()
        publisher.start(1 - WARM_UP_SHARE)
        published = publisher.finish()
        seen_s = server.wait_applied("pod", published)
        return published.blocks - warmed_up.blocks, seen_s - published.started_s, server.cpu_s() - cpu_before_s

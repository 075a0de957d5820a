"""What a question costs: CPU of the server for each, with 1,000,000 block copies of 8 and of 64 engines, and requests a second beside events."""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from random import Random
from statistics import median

from msgspec import Struct
from msgspec.structs import replace

from bench import load
from bench.child import spawning
from bench.connection import Connection
from bench.peers.sides import SIDES, SIDES_BESIDE, Side
from bench.publisher import Socket
from bench.workload import Payload, Plan, encoded, payloads, prompt_tokens, stored

COPIES = 1_000_000
SIZES = (128, 512, 2_048)
POOL = 16
CONNECTIONS = 8
ROUNDS = 3
DURATION_S = 0.8
WARM_UP_S = 0.3
BESIDE_BLOCKS, BESIDE_BLOCKS_PER_S, BESIDE_S = 512, 20_000, 3.0
APPLIED_TIMEOUT_S = 120.0
SETTLE_S = 0.5
POLL_S = 0.02
LAST = 10**6
"""Seed of the prompt that each engine announces last."""


class Cost(Struct, frozen=True):
    """Medians of the rounds. `ratio`: to the peer's, asked in JSON."""

    engines: int
    body: str
    blocks: int
    cpu_us: float
    peer_cpu_us: float
    ratio: float


class Beside(Struct, frozen=True):
    """Questions of 512 blocks while 20,000 blocks a second come in: the median round."""

    service: str
    body: str
    requests_per_s: int
    p50_ms: float
    p99_ms: float


class Prompt(Struct, frozen=True):
    """A prompt's seed, its blocks, and how many of them each engine holds."""

    seed: int
    blocks: int
    held: dict[int, int]


class Fill:
    """What so many engines publish, and the prompts that are asked."""

    def __init__(self, engines: int) -> None:
        self.engines = engines
        self.pools = {blocks: [_prompt(blocks, number, engines) for number in range(POOL)] for blocks in SIZES}
        prompts = [prompt for pool in self.pools.values() for prompt in pool]
        self.payloads = [self._payloads(engine, prompts) for engine in range(engines)]

    def _payloads(self, engine: int, prompts: list[Prompt]) -> list[Payload]:
        prefixes = tuple((prompt.seed, prompt.held[engine]) for prompt in prompts if prompt.held.get(engine))
        blocks = max(64, COPIES // self.engines - sum(held for _, held in prefixes))
        return [*payloads(Plan(seed=100 + engine, blocks=blocks, prefixes=prefixes)), last_of(engine)]


def last_of(number: int) -> Payload:
    """One block that only one engine has."""
    return encoded([stored([LAST + number], None, prompt_tokens(LAST + number, 1)[:-1])])


def _prompt(blocks: int, number: int, engines: int) -> Prompt:
    rng = Random(f"prompt {blocks} {number} {engines}")
    most = blocks * (number + 1) // POOL
    held = {engine: rng.randrange(1, most + 1) for engine in range(engines)}
    held[number % engines] = most
    return Prompt(blocks * POOL + number, blocks, held)


@contextmanager
def sockets(count: int) -> Iterator[list[Socket]]:
    """Engines that publish."""
    made = [Socket() for _ in range(count)]
    try:
        yield made
    finally:
        for socket in made:
            socket.close()


def wait_applied(side: Side, engine: int, number: int | None = None) -> None:
    """Wait until what the engine announces last, or this one of such blocks, is shown. Raises RuntimeError where it never is."""
    deadline_s = time.monotonic() + APPLIED_TIMEOUT_S
    request = side.request("json", prompt_tokens(LAST + (engine if number is None else number), 1))
    with Connection(side.host, side.port) as connection:
        while side.matched("json", connection.ask(request)) != {engine: 1}:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{type(side).__name__} does not show what engine {engine} published")
            time.sleep(POLL_S)


def verify(side: Side, pools: dict[int, list[Prompt]]) -> None:
    """Raises RuntimeError where an answer is not what was published."""
    with Connection(side.host, side.port) as connection:
        for prompt in (prompt for pool in pools.values() for prompt in pool):
            for body in side.bodies:
                found = side.matched(body, connection.ask(side.request(body, prompt_tokens(prompt.seed, prompt.blocks))))
                if found != prompt.held:
                    raise RuntimeError(f"{prompt} was published, {type(side).__name__} answers {found}")


@contextmanager
def filled(fill: Fill, names: Sequence[str]) -> Iterator[tuple[list[Socket], dict[str, Side]]]:
    """These services with all that the engines hold, which is verified."""
    with ExitStack() as stack:
        engines = stack.enter_context(sockets(fill.engines))
        sides: dict[str, Side] = {name: stack.enter_context(SIDES_BESIDE[name]([engine.port for engine in engines])) for name in names}
        for engine in engines:
            engine.wait_subscribed(len(sides))
        for engine, batches in zip(engines, fill.payloads, strict=True):
            for payload in batches:
                engine.publish(payload)
        for side in sides.values():
            for number in range(fill.engines):
                wait_applied(side, number)
        time.sleep(SETTLE_S)  # one worker may show it before another does
        for side in sides.values():
            verify(side, fill.pools)
        yield engines, sides


def measure(engines: int) -> list[Cost]:
    """All sizes and bodies, each round of one service after the same of the other."""
    fill = Fill(engines)
    with filled(fill, list(SIDES)) as (_, sides), ProcessPoolExecutor(1, mp_context=spawning) as loader:
        costs: dict[tuple[str, str, int], list[float]] = {}
        for _ in range(ROUNDS):
            for blocks in SIZES:
                for name, side in sides.items():
                    for body in side.bodies:
                        costs.setdefault((name, body, blocks), []).append(_cost_us(side, loader, _job(side, body, fill.pools[blocks])))
    rows = []
    for body in sides["this service"].bodies:
        for blocks in SIZES:
            ours, theirs = median(costs["this service", body, blocks]), median(costs["dynamo", "json", blocks])
            rows.append(Cost(engines, body, blocks, round(ours, 1), round(theirs, 1), round(ours / theirs, 2)))
    return rows


def _job(side: Side, body: str, pool: list[Prompt], duration_s: float = DURATION_S) -> load.Job:
    requests = [side.request(body, prompt_tokens(prompt.seed, prompt.blocks)) for prompt in pool]
    # One server's answers list engines in any order: that they are right was verified.
    return load.Job(side.host, side.port, requests, None, CONNECTIONS, duration_s)


def _cost_us(side: Side, loader: Executor, job: load.Job) -> float:
    loader.submit(load.run, replace(job, duration_s=WARM_UP_S)).result()
    before_ns = side.cpu_ns()
    outcome = loader.submit(load.run, job).result()
    return (side.cpu_ns() - before_ns) / len(outcome.latencies_s) / 1000


def measure_beside() -> list[Beside]:
    """Each service by itself, since both would follow the events."""
    fill = Fill(8)
    rounds: dict[tuple[str, str], list[Beside]] = {}
    with ProcessPoolExecutor(1, mp_context=spawning) as loader:
        for _ in range(ROUNDS):
            for name in SIDES_BESIDE:
                with filled(fill, [name]) as (engines, sides):
                    for body in sides[name].bodies:
                        job = _job(sides[name], body, fill.pools[BESIDE_BLOCKS], BESIDE_S)
                        with _events(engines[0], seed=len(rounds)):
                            rounds.setdefault((name, body), []).append(_beside(name, body, loader.submit(load.run, job).result()))
    return [sorted(found, key=lambda row: row.requests_per_s)[len(found) // 2] for found in rounds.values()]


def _beside(service: str, body: str, outcome: load.Outcome) -> Beside:
    latencies_ms = sorted(latency_s * 1000 for latency_s in outcome.latencies_s)
    p99_ms = latencies_ms[len(latencies_ms) * 99 // 100]
    return Beside(service, body, round(len(latencies_ms) / outcome.elapsed_s), round(median(latencies_ms), 2), round(p99_ms, 2))


@contextmanager
def _events(engine: Socket, seed: int) -> Iterator[None]:
    """While this lasts, the engine publishes at the pace."""
    batches = list(payloads(Plan(seed=1000 + seed, blocks=int(BESIDE_S * 1.5 * BESIDE_BLOCKS_PER_S) // 64 * 64)))
    is_over = threading.Event()

    def publish() -> None:
        started_s = time.monotonic()
        for number, payload in enumerate(batches):
            if is_over.wait(max(0.0, started_s + number * 64 / BESIDE_BLOCKS_PER_S - time.monotonic())):
                return
            engine.publish(payload)

    thread = threading.Thread(target=publish, name="events")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()

"""How fast scores are answered, with 8 pods and 1,000,000 block copies in the index. Every answer is compared with what was published.

Each size has its pool of prompts: of prompt p, one pod holds (p + 1) / 16 and the others less, so matches run from a sixteenth to all of it.
"""

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from statistics import median
from typing import Any

import msgspec
from msgspec import Struct

from bench import load
from bench.child import spawning
from bench.connection import Connection, prepare
from bench.publisher import Publisher
from bench.server import Server
from bench.workload import BLOCK_SIZE, Plan, prompt_tokens

PODS = tuple(f"pod-{number}" for number in range(8))
COPIES = 1_000_000
SIZES = (128, 512, 2_048)
DECODE: dict[str, Callable[[bytes], Any]] = {"json": msgspec.json.decode, "msgpack": msgspec.msgpack.decode}
CONNECTIONS = (1, 8)
POOL = 16
REPEATS = 3
DURATION_S = 0.8
WARM_UP_S = 0.3


class Scoring(Struct, frozen=True):
    """p50 and p99 of all repeats, the p50 of the best one; requests a second of the median repeat."""

    body: str
    blocks: int
    connections: int
    requests: int
    p50_ms: float
    p50_best_ms: float
    p99_ms: float
    requests_per_s: int
    cpu_us_per_request: int


class Prompt(Struct, frozen=True):
    """A prompt that can be made again from its seed, and how many of its blocks each pod holds."""

    seed: int
    blocks: int
    held: dict[str, int]


def measure() -> list[Scoring]:
    pools = {blocks: [pool_prompt(blocks, number) for number in range(POOL)] for blocks in SIZES}
    with ExitStack() as stack:
        server = stack.enter_context(filled(stack, [prompt for pool in pools.values() for prompt in pool]))
        loader = stack.enter_context(ProcessPoolExecutor(1, mp_context=spawning))
        rows = []
        for media_type, decode in DECODE.items():
            for blocks, pool in pools.items():
                requests = [prepare(media_type, prompt_tokens(prompt.seed, prompt.blocks)) for prompt in pool]
                answers = verified_answers(server, pool, requests, decode)
                for connections in CONNECTIONS:
                    job = load.Job(server.host, server.port, requests, answers, connections, DURATION_S)
                    rows.append(_measure_job(f"{media_type}{' bin' * (media_type == 'msgpack')}", blocks, server, loader, job))
        return rows


def pool_prompt(blocks: int, number: int) -> Prompt:
    """One of a size's pool."""
    rng = random.Random(f"prompt {blocks} {number}")
    most = blocks * (number + 1) // POOL
    held = {pod: rng.randrange(most) for pod in PODS}
    held[PODS[number % len(PODS)]] = most
    return Prompt(blocks * POOL + number, blocks, held)


def filled(stack: ExitStack, prompts: list[Prompt], flags: Sequence[str] = ()) -> Server:
    """The service with all that the pods hold. `flags`: more of its own."""
    publishers = [stack.enter_context(Publisher(pod, _plan(number, pod, prompts))) for number, pod in enumerate(PODS)]
    server = stack.enter_context(Server([publisher.wait_prepared() for publisher in publishers], flags=flags))
    for publisher in publishers:
        publisher.start()
        server.wait_applied(publisher.pod, publisher.finish())
    return server


def _plan(number: int, pod: str, prompts: list[Prompt]) -> Plan:
    prefixes = tuple((prompt.seed, prompt.held[pod]) for prompt in prompts if prompt.held[pod])
    shared = sum(blocks for _, blocks in prefixes)
    return Plan(seed=100 + number, blocks=COPIES // len(PODS) - shared, prefixes=prefixes)


def verified_answers(server: Server, pool: list[Prompt], requests: list[bytes], decode: Callable[[bytes], Any]) -> list[bytes]:
    """The service's answers. Raises RuntimeError where one is not what was published."""
    with Connection(server.host, server.port) as connection:
        answers = [connection.ask(request) for request in requests]
    for prompt, answer in zip(pool, answers, strict=True):
        matched = {shown["pod"]: shown["matched_tokens"] for shown in decode(answer)["pods"]}
        if matched != {pod: held * BLOCK_SIZE for pod, held in prompt.held.items()}:
            raise RuntimeError(f"{prompt} was published, the service answered {answer!r}")
    return answers


def _measure_job(body: str, blocks: int, server: Server, loader: Executor, job: load.Job) -> Scoring:
    loader.submit(load.run, msgspec.structs.replace(job, duration_s=WARM_UP_S)).result()
    cpu_before_s = server.cpu_s()
    outcomes = [loader.submit(load.run, job).result() for _ in range(REPEATS)]
    cpu_s = server.cpu_s() - cpu_before_s
    latencies_ms = sorted(latency_s * 1000 for outcome in outcomes for latency_s in outcome.latencies_s)
    return Scoring(
        body=body,
        blocks=blocks,
        connections=job.connections,
        requests=len(latencies_ms),
        p50_ms=round(median(latencies_ms), 3),
        p50_best_ms=round(min(median(outcome.latencies_s) for outcome in outcomes) * 1000, 3),
        p99_ms=round(latencies_ms[len(latencies_ms) * 99 // 100], 3),
        requests_per_s=round(median(len(outcome.latencies_s) / outcome.elapsed_s for outcome in outcomes)),
        cpu_us_per_request=round(cpu_s / len(latencies_ms) * 1e6),
    )

"""The same scores over gRPC and over HTTP: 8 pods, 1,000,000 block copies, every answer verified. Tokens are packed in both.

The load is a client with prepared messages in both cases. Over gRPC it is grpcio's, which takes some of the same cores and is part of the latency.
"""

from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from statistics import median

import msgspec
from msgspec import Struct

from bench import load
from bench.child import spawning
from bench.connection import prepare
from bench.grpc_connection import GrpcConnection
from bench.scoring import DECODE, POOL, Prompt, filled, pool_prompt, verified_answers
from bench.server import Server
from bench.workload import BLOCK_SIZE, MODEL, prompt_tokens
from tests.ports import free_port
from tests.scorer_stub import messages

SIZES = (128, 2_048)
CONNECTIONS = (1, 8)
REPEATS = 3
DURATION_S = 0.8
WARM_UP_S = 0.3


class GrpcScoring(Struct, frozen=True):
    """`over`: gRPC, or HTTP with msgpack. p50 and requests a second of the median repeat, CPU of the service for a request."""

    over: str
    blocks: int
    connections: int
    p50_ms: float
    requests_per_s: int
    cpu_us_per_request: int


def measure() -> list[GrpcScoring]:
    pools = {blocks: [pool_prompt(blocks, number) for number in range(POOL)] for blocks in SIZES}
    port = free_port()
    with ExitStack() as stack:
        flags = ("--gateway-listen", f"127.0.0.1:{port}")
        server = stack.enter_context(filled(stack, [prompt for pool in pools.values() for prompt in pool], flags))
        loader = stack.enter_context(ProcessPoolExecutor(1, mp_context=spawning))
        rows = []
        for blocks, pool in pools.items():
            tokens = [prompt_tokens(prompt.seed, prompt.blocks) for prompt in pool]
            bodies = [prepare("msgpack", each) for each in tokens]
            asked = [messages.ScoreRequest(model=MODEL, token_ids=each).SerializeToString() for each in tokens]
            over_http = load.Job(server.host, server.port, bodies, verified_answers(server, pool, bodies, DECODE["msgpack"]), 1, DURATION_S)
            over_grpc = load.Job(server.host, port, asked, _verified(port, pool, asked), 1, DURATION_S, over="grpc")
            for connections in CONNECTIONS:
                rows += [_measure(job, blocks, connections, server, loader) for job in (over_http, over_grpc)]
        return rows


def _verified(port: int, pool: list[Prompt], requests: list[bytes]) -> list[bytes]:
    """The service's answers. Raises RuntimeError where one is not what was published."""
    with GrpcConnection("127.0.0.1", port) as connection:
        answers = [connection.ask(request) for request in requests]
    for prompt, answer in zip(pool, answers, strict=True):
        matched = {pod.pod: pod.matched_tokens for pod in messages.ScoreAnswer.FromString(answer).pods}
        if matched != {pod: held * BLOCK_SIZE for pod, held in prompt.held.items()}:
            raise RuntimeError(f"{prompt} was published, the service answered {matched}")
    return answers


def _measure(job: load.Job, blocks: int, connections: int, server: Server, loader: ProcessPoolExecutor) -> GrpcScoring:
    job = msgspec.structs.replace(job, connections=connections)
    loader.submit(load.run, msgspec.structs.replace(job, duration_s=WARM_UP_S)).result()
    before_s = server.cpu_s()
    outcomes = [loader.submit(load.run, job).result() for _ in range(REPEATS)]
    cpu_s = server.cpu_s() - before_s
    return GrpcScoring(
        over="gRPC" if job.over == "grpc" else "HTTP, msgpack",
        blocks=blocks,
        connections=connections,
        p50_ms=round(median(median(outcome.latencies_s) for outcome in outcomes) * 1000, 3),
        requests_per_s=round(median(len(outcome.latencies_s) / outcome.elapsed_s for outcome in outcomes)),
        cpu_us_per_request=round(cpu_s / sum(len(outcome.latencies_s) for outcome in outcomes) * 1e6),
    )

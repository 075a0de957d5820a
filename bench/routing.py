"""What a pick costs beside a score, with 8 pods and 1,000,000 block copies in the index. The prompts are those that scores are measured with.

Scores and picks alternate, in rounds, and the round that cost least counts: what others do on the machine only ever adds. Before that every
pick is compared with the score of the same prompt: where each pod's match ends, and that what was picked is one of the pods. What is timed
is a service in use: what it has picked a moment before counts in every pick.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from msgspec import Struct

from bench.connection import Connection, prepare
from bench.scoring import DECODE, PODS, POOL, Prompt, filled, pool_prompt, verified_answers
from bench.server import Server
from bench.workload import BLOCK_SIZE, prompt_tokens

SIZES = (128, 512)
ROUNDS = 20
ROUND_REQUESTS = 20 * POOL


class Routing(Struct, frozen=True):
    """CPU of the service for a whole HTTP request, in µs; `ratio`: a pick's to a score's."""

    body: str
    blocks: int
    score_cpu_us: int
    route_cpu_us: int
    ratio: float


def measure() -> list[Routing]:
    pools = {blocks: [pool_prompt(blocks, number) for number in range(POOL)] for blocks in SIZES}
    with ExitStack() as stack:
        server = stack.enter_context(filled(stack, [prompt for pool in pools.values() for prompt in pool]))
        connection = stack.enter_context(Connection(server.host, server.port))
        return [_measure(media_type, blocks, pool, server, connection) for media_type in DECODE for blocks, pool in pools.items()]


def _measure(media_type: str, blocks: int, pool: list[Prompt], server: Server, connection: Connection) -> Routing:
    tokens = [prompt_tokens(prompt.seed, prompt.blocks) for prompt in pool]
    scores, routes = ([prepare(media_type, each, path) for each in tokens] for path in ("/v1/score", "/v1/route"))
    verified_answers(server, pool, scores, DECODE[media_type])
    _check(media_type, pool, tokens, connection, DECODE[media_type])
    score_us = route_us = float("inf")
    for _ in range(ROUNDS):
        score_us = min(score_us, _round_us(server, connection, scores))
        route_us = min(route_us, _round_us(server, connection, routes))
    name = f"{media_type}{' bin' * (media_type == 'msgpack')}"
    return Routing(name, blocks, round(score_us), round(route_us), round(route_us / score_us, 2))


def _check(media_type: str, pool: list[Prompt], tokens: list[list[int]], connection: Connection, decode: Callable[[bytes], Any]) -> None:
    """Raises RuntimeError where a pick says anything else than what was published."""
    for prompt, each in zip(pool, tokens, strict=True):
        answer = decode(connection.ask(prepare(media_type, each, "/v1/route", include_speculative=False)))
        matched = {pod: why["matched_tokens"] for pod, why in answer["reason"].items()}
        published = {pod: held * BLOCK_SIZE for pod, held in prompt.held.items()}
        if matched != published or sorted([answer["pod"], *answer["fallbacks"]]) != sorted(PODS):
            raise RuntimeError(f"{prompt} was published, the service answered {answer}")


def _round_us(server: Server, connection: Connection, requests: list[bytes]) -> float:
    before_ns = server.cpu_ns()
    for number in range(ROUND_REQUESTS):
        connection.ask(requests[number % len(requests)])
    return (server.cpu_ns() - before_ns) / ROUND_REQUESTS / 1000

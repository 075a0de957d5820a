"""How long from publishing a block until a score answer shows it, while 20,000 blocks a second come in on the same stream.

One process publishes and asks, so that both time stamps are of one clock; the answer's own duration is part of the figure.
"""

import random
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection as Pipe
from statistics import median

from msgspec import Struct

from bench.child import Child
from bench.connection import Connection, prepare
from bench.publisher import Socket, spec
from bench.server import Server
from bench.workload import BLOCK_SIZE, Payload, Plan, encoded, payloads, prompt_tokens, stored

BLOCKS_PER_S = 20_000
BLOCKS_PER_EVENT = 64
DURATION_S = 12.0
WARM_UP_S = 1.0
# Probes come at random, on average so far apart.
PROBE_INTERVAL_S = 0.015
TIMEOUT_S = 30.0
# Between looks at the clock: the background comes in single batches, 3.2 ms apart.
IDLE_S = 0.0002
VISIBLE = f'"matched_tokens":{BLOCK_SIZE},'.encode()


class Visibility(Struct, frozen=True):
    """`background_blocks_per_s`: what was really published."""

    background_blocks_per_s: int
    probes: int
    p50_ms: float
    p99_ms: float
    max_ms: float


class Probe(Struct, frozen=True):
    """A prompt of one block that nobody holds before `payload` is published."""

    payload: Payload
    request: bytes


def measure() -> list[Visibility]:
    return [measure_with(lambda engine: Server([engine]))]


def measure_with(start: Callable[[str], AbstractContextManager[Server]]) -> Visibility:
    """`start`: given the engine's spec, the service that is asked."""
    with Child("prober", _probe_when_told) as prober, start(spec("pod", prober.connection.recv())) as server:
        prober.connection.send((server.host, server.port))
        blocks_per_s, latencies_s = prober.connection.recv()
    latencies_ms = sorted(latency_s * 1000 for latency_s in latencies_s)
    p99_ms = latencies_ms[len(latencies_ms) * 99 // 100]
    return Visibility(round(blocks_per_s), len(latencies_ms), round(median(latencies_ms), 2), round(p99_ms, 2), round(latencies_ms[-1], 2))


def _probe_when_told(pipe: Pipe) -> None:
    batches = int((WARM_UP_S + DURATION_S) * BLOCKS_PER_S / BLOCKS_PER_EVENT)
    background = list(payloads(Plan(seed=4, blocks=batches * BLOCKS_PER_EVENT, blocks_per_event=BLOCKS_PER_EVENT)))
    probes = [probe(number) for number in range(int(2 * DURATION_S / PROBE_INTERVAL_S))]
    socket = Socket()
    pipe.send(socket.port)
    with Connection(*pipe.recv()) as connection:
        socket.wait_subscribed()
        pipe.send(_run(socket, connection, background, probes))
    socket.close()


def probe(number: int) -> Probe:
    tokens = prompt_tokens(1_000_000 + number, 1)
    return Probe(encoded([stored([number + 1], None, tokens[:BLOCK_SIZE])]), prepare("json", tokens))


def _run(socket: Socket, connection: Connection, background: list[Payload], probes: list[Probe]) -> tuple[float, list[float]]:
    """Publish at the pace; one probe after the other on top. Returns the background's blocks a second and the probes' latencies."""
    clock, rng = time.perf_counter, random.Random(5)
    latencies_s: list[float] = []
    sent = 0
    started_s = clock()
    probe_at_s = started_s + WARM_UP_S
    published_s = 0.0
    probe: Probe | None = None
    while sent < len(background):
        now_s = clock()
        due = min(len(background), int((now_s - started_s) * BLOCKS_PER_S / BLOCKS_PER_EVENT))
        for payload in background[sent:due]:
            socket.publish(payload)
        sent = due
        if probe is not None:
            if VISIBLE in connection.ask(probe.request):
                latencies_s.append(clock() - published_s)
                probe = None
                probe_at_s = clock() + rng.expovariate(1 / PROBE_INTERVAL_S)
            elif clock() - published_s > TIMEOUT_S:
                raise TimeoutError("a published block never showed in a score")
        elif now_s >= probe_at_s:
            probe = probes[len(latencies_s)]
            published_s = clock()
            socket.publish(probe.payload)
        else:
            time.sleep(IDLE_S)
    return sent * BLOCKS_PER_EVENT / (clock() - started_s), latencies_s

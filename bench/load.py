"""The load on the scorer, in a process of its own: each connection asks, waits for the answer, and asks the next."""

import threading
import time
from typing import Literal

from msgspec import Struct

from bench.connection import Connection
from bench.grpc_connection import GrpcConnection


class Job(Struct, frozen=True):
    """Ask these requests in turn over so many connections, for so long. `answers`: what has to come back, byte for byte; None where that is checked
    otherwise."""

    host: str
    port: int
    requests: list[bytes]
    answers: list[bytes] | None
    connections: int
    duration_s: float
    over: Literal["http", "grpc"] = "http"


class Outcome(Struct, frozen=True):
    """Seconds from the first byte out to the last one in, for every request, and how long it all took."""

    latencies_s: list[float]
    elapsed_s: float


def run(job: Job) -> Outcome:
    """Raises RuntimeError where an answer is not the one expected; comparing it is not part of its latency."""
    latencies: list[list[float]] = [[] for _ in range(job.connections)]
    errors: list[Exception] = []

    def ask_in_turn(offset: int) -> None:
        try:
            _ask_until(time.monotonic() + job.duration_s, job, offset, latencies[offset])
        except (RuntimeError, OSError) as error:
            errors.append(error)

    started_s = time.monotonic()
    threads = [threading.Thread(target=ask_in_turn, args=(offset,), name=f"connection {offset}") for offset in range(job.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return Outcome([latency for each in latencies for latency in each], time.monotonic() - started_s)


def _connect(job: Job) -> Connection | GrpcConnection:
    if job.over == "http":
        return Connection(job.host, job.port)
    return GrpcConnection(job.host, job.port)


def _ask_until(until_s: float, job: Job, offset: int, latencies_s: list[float]) -> None:
    clock = time.perf_counter
    number = offset
    with _connect(job) as connection:
        while time.monotonic() < until_s:
            position = number % len(job.requests)
            number += 1
            started_s = clock()
            answer = connection.ask(job.requests[position])
            latencies_s.append(clock() - started_s)
            if job.answers is not None and answer != job.answers[position]:
                raise RuntimeError(f"expected {job.answers[position]!r}, the service answered {answer!r}")

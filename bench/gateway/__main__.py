"""`python -m bench.gateway [--json FILE]`: requests through Envoy alone, with a picker that picks nothing, and with the service, each in two modes.

All of it shares the machine: load, Envoy, picker, pods. The index holds the prompts, whose tokens are remembered: what an engine takes to tell them
is left out. Rounds of all ways alternate, and the round that was quickest counts.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import msgspec
from msgspec import Struct

from bench import load, process, provenance, report
from bench.child import spawning
from bench.connection import Connection
from bench.gateway.backend import Backend, prompt_of
from bench.gateway.envoy import Envoy
from bench.publisher import Publisher
from bench.server import ROOT, Server
from bench.workload import BLOCK_SIZE, MODEL, Plan
from tests.ports import free_port

SIZES_KB = (1, 50, 300)
BYTES_PER_TOKEN = 4
POOL = 8
# How Envoy asks, and the file of deploy/envoy that has it so.
MODES = {"in full duplex": "override-host", "buffered": "buffered"}
ROUNDS = 3
WARM_UP_S = 0.5
DURATION_S = 1.5
CONNECTIONS = 16
FLAGS = {"KV_INDEXER_LOAD_INTERVAL_S": "0", "KV_INDEXER_GATEWAY_DRAIN_S": "0.001"}


class Cost(Struct, frozen=True):
    """One connection: latencies. Sixteen: requests a second, and CPU of the picker for each of them, None for Envoy alone."""

    way: str
    body_kb: int
    p50_ms: float
    p99_ms: float
    requests_per_s: int
    picker_cpu_us: int | None


class Picker(Struct):
    """What is asked for picks: where, and its process."""

    port: int
    pid: int

    def cpu_s(self) -> float:
        """The CPU time of all its threads so far."""
        return process.cpu_s(self.pid)


def requests_of(size: int) -> list[bytes]:
    """Requests of clients of so many bytes, each with another prompt."""
    blocks = blocks_of(size)
    bodies = [msgspec.json.encode({"model": MODEL, "prompt": prompt_of(seed_of(size, number), blocks, size)}) for number in range(POOL)]
    head = "POST /v1/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    return [f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body for body in bodies]


def blocks_of(size: int) -> int:
    return size // BYTES_PER_TOKEN // BLOCK_SIZE


def seed_of(size: int, number: int) -> int:
    return size * POOL + number


@contextmanager
def service(stack: ExitStack, pods: list[Backend]) -> Iterator[Picker]:
    """The service with the prompts in its index: half of them on each pod."""
    port = free_port()
    publishers = []
    for place, pod in enumerate(pods):
        prefixes = tuple((seed_of(kb * 1000, number), blocks_of(kb * 1000)) for kb in SIZES_KB for number in range(place, POOL, len(pods)))
        publishers.append(stack.enter_context(Publisher(f"127.0.0.1:{pod.port}", Plan(seed=place, blocks=0, prefixes=prefixes))))
    env = FLAGS | {"KV_INDEXER_GATEWAY_LISTEN": f"127.0.0.1:{port}"}
    with Server([publisher.wait_prepared() for publisher in publishers], env=env) as server:
        for publisher in publishers:
            publisher.start()
            server.wait_applied(publisher.pod, publisher.finish())
        yield Picker(port, server.pid)


@contextmanager
def noop_picker(pod: Backend) -> Iterator[Picker]:
    port = free_port()
    words = [sys.executable, "-m", "bench.gateway.noop_picker", str(port), f"127.0.0.1:{pod.port}"]
    process = subprocess.Popen(words, cwd=ROOT)  # noqa: S603 - our own command, no input from outside
    try:
        yield Picker(port, process.pid)
    finally:
        process.terminate()
        process.wait()


def measure() -> list[Cost]:
    with ExitStack() as stack:
        pods = [stack.enter_context(Backend()) for _ in range(2)]
        picker, noop = stack.enter_context(service(stack, pods)), stack.enter_context(noop_picker(pods[0]))
        ways: dict[str, tuple[str, Picker | None]] = {"Envoy alone": ("override-host", None)}
        for mode, config in MODES.items():
            ways |= {f"a picker that picks nothing, {mode}": (config, noop), f"kv-indexer, {mode}": (config, picker)}
        ports = [pod.port for pod in pods]
        envoys = {name: stack.enter_context(Envoy(config, ports, None if asked is None else asked.port)) for name, (config, asked) in ways.items()}
        loader = stack.enter_context(ProcessPoolExecutor(1, mp_context=spawning))
        rows = []
        for kb in SIZES_KB:
            requests = requests_of(kb * 1000)
            for envoy in envoys.values():
                with Connection("127.0.0.1", envoy.port) as connection:
                    for request in requests:
                        connection.ask(request)
            rounds: dict[str, list[Cost]] = {name: [] for name in ways}
            for _ in range(ROUNDS):
                for name, (_, asked) in ways.items():
                    rounds[name].append(_round(name, kb, requests, envoys[name].port, asked, loader))
            rows += [_best(found) for found in rounds.values()]
        return rows


def _round(way: str, kb: int, requests: list[bytes], port: int, picker: Picker | None, loader: ProcessPoolExecutor) -> Cost:
    answers = [b"{}"] * len(requests)

    def run(connections: int, duration_s: float) -> load.Outcome:
        return loader.submit(load.run, load.Job("127.0.0.1", port, requests, answers, connections, duration_s)).result()

    run(1, WARM_UP_S)
    latencies_ms = sorted(latency_s * 1000 for latency_s in run(1, DURATION_S).latencies_s)
    before_s = 0.0 if picker is None else picker.cpu_s()
    outcome = run(CONNECTIONS, DURATION_S)
    count = len(outcome.latencies_s)
    cpu_us = None if picker is None else round((picker.cpu_s() - before_s) / count * 1e6)
    p99_ms = latencies_ms[len(latencies_ms) * 99 // 100]
    return Cost(way, kb, round(median(latencies_ms), 2), round(p99_ms, 2), round(count / outcome.elapsed_s), cpu_us)


def _best(rounds: list[Cost]) -> Cost:
    """The best figure of all rounds, each by itself: what others do on the machine only ever adds."""
    cpus = [each.picker_cpu_us for each in rounds if each.picker_cpu_us is not None]
    return Cost(
        rounds[0].way,
        rounds[0].body_kb,
        min(each.p50_ms for each in rounds),
        min(each.p99_ms for each in rounds),
        max(each.requests_per_s for each in rounds),
        min(cpus) if cpus else None,
    )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.gateway", description="Measure the endpoint picker behind a real Envoy.")
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench-gateway.json"), metavar="FILE", help="where the figures go (default: %(default)s)"
    )
    asked = parser.parse_args()
    source = provenance.take()
    report.say_provenance(source)
    started_s = time.monotonic()
    rows = measure()
    report.say_table(f"Requests through Envoy with one worker, {time.monotonic() - started_s:.0f} s", rows)
    report.write(asked.json, source, {"gateway": rows})


if __name__ == "__main__":
    main()

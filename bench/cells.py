"""Thousands of pods in one scorer, and in cells behind another one: what a request costs each of them, and how long it takes.

Every pod holds the same 64 blocks, connected to one socket. All processes share this machine's cores: times are
longer than where each has its own.
"""

import http.client
import time
from collections.abc import Sequence
from contextlib import ExitStack
from statistics import median

import msgspec
from msgspec import Struct

from bench.capacity import BLOCKS, SETTINGS, START_TIMEOUT_S, Engines, wait_for
from bench.server import Server
from bench.workload import MODEL, Plan, prompt_tokens

PODS, CELLS = 2_000, 4
ASKED = 40
WARM_UP = 5
PROMPT_SEED = 11


class CellsCost(Struct, frozen=True):
    """CPU time a request: of the one that is asked, and of all cells together. `answer_kb`: what the client gets."""

    request: str
    cells: int
    pods: int
    asked_cpu_ms: float
    cells_cpu_ms: float
    p50_ms: float
    answer_kb: float


def measure() -> list[CellsCost]:
    return [*_measured(1), *_measured(CELLS)]


def _measured(cells: int) -> Sequence[CellsCost]:
    with ExitStack() as stack:
        engines = Engines()
        stack.callback(engines.close)
        specs = engines.specs(PODS)
        size = PODS // cells
        servers = [
            stack.enter_context(Server(specs[start : start + size], start_timeout_s=START_TIMEOUT_S, env=SETTINGS)) for start in range(0, PODS, size)
        ]
        for server in servers:
            wait_for(lambda server=server: server.series("kv_indexer_streams", trust="stale") == 0)  # type: ignore[misc]
        engines.publish(PODS, Plan(seed=7, blocks=0, prefixes=((PROMPT_SEED, BLOCKS),)))
        for server in servers:
            wait_for(lambda server=server: server.series("kv_indexer_blocks_stored_total", tier="gpu") == size * BLOCKS)  # type: ignore[misc]
        asked = servers[0] if cells == 1 else stack.enter_context(_front(servers))
        prompt = prompt_tokens(PROMPT_SEED, BLOCKS)
        return [
            _cost(name, path, {"model": MODEL, "token_ids": prompt, **more}, cells, asked, [] if cells == 1 else servers)
            for name, path, more in (
                ("score, all pods", "/v1/score", {}),
                ("score, limit 10", "/v1/score", {"limit": 10}),
                ("route, all pods", "/v1/route", {"policy": "prefix"}),
                ("route, limit 10", "/v1/route", {"policy": "prefix", "limit": 10}),
            )
        ]


def _front(servers: Sequence[Server]) -> Server:
    return Server([], "api", flags=[word for server in servers for word in ("--cells", f"http://{server.host}:{server.port}")])


def _cost(name: str, path: str, body: dict[str, object], cells: int, asked: Server, behind: Sequence[Server]) -> CellsCost:
    connection = http.client.HTTPConnection(asked.host, asked.port, timeout=START_TIMEOUT_S)
    content, headers = msgspec.json.encode(body), {"Content-Type": "application/json"}

    def ask(path: str, content: bytes) -> bytes:
        connection.request("POST", path, content, headers)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise RuntimeError(f"{path} answers {response.status}: {answer[:500]!r}")
        return answer

    times, size = [], 0
    asked_ns = behind_ns = 0
    for number in range(WARM_UP + ASKED):
        before, before_behind = asked.cpu_ns(), sum(server.cpu_ns() for server in behind)
        began_s = time.perf_counter()
        answer = ask(path, content)
        took_s = time.perf_counter() - began_s
        if number >= WARM_UP:
            times.append(took_s)
            asked_ns += asked.cpu_ns() - before
            behind_ns += sum(server.cpu_ns() for server in behind) - before_behind
            size = len(answer)
        if path == "/v1/route":
            ask("/v1/route/done", msgspec.json.encode({"id": msgspec.json.decode(answer)["id"]}))
    connection.close()
    costs = round(asked_ns / ASKED / 1e6, 1), round(behind_ns / ASKED / 1e6, 1)
    return CellsCost(name, cells, PODS, *costs, round(1e3 * median(times), 1), round(size / 1e3, 1))

"""Where the CPU of a score request goes, part by part: the whole in the service, 8 connections, 1,000,000 block copies; the parts in this process.

The parts are the service's own objects on the same blocks: its connection on a transport that goes nowhere, its handler, its index. What is left of
the whole is what needs a real socket and other requests in between: the event loop, and caches that the bodies of other requests have emptied.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import Any

import uvicorn
from msgspec import Struct
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from uvicorn.server import ServerState

from bench import load
from bench.child import spawning
from bench.connection import HEAD_END, prepare
from bench.peers.questions import CONNECTIONS, DURATION_S, WARM_UP_S, Fill, Prompt, sockets
from bench.publisher import spec
from bench.server import Server
from bench.workload import MODEL, prompt_tokens
from indexer.compiled import core
from indexer.config.settings import Settings
from indexer.core.block_keys import root_key
from indexer.core.names import StreamKey, Trust
from indexer.core.stream_state import StreamState
from indexer.http.access import Access
from indexer.http.at_once import AtOnce
from indexer.http.connection import Connection, ConnectionGroup
from indexer.http.negotiation import encoder
from indexer.metrics import HttpMetrics, IndexerMetrics
from indexer.ownership.embedded import Service
from indexer.wire.decoder import WireDecoder
from scorer_api.api.decode import decode_score
from scorer_api.api.handlers import Handlers, make_handlers
from scorer_api.api.picking import make_picking
from scorer_api.api.plain_answer import plain_answer
from scorer_api.api.schemas import ViewAnswer
from scorer_api.index.prompt import Prompt as Asked
from scorer_api.index.scoring import usable_blocks
from scorer_api.index.view import View
from scorer_api.metrics import TokenMetrics
from scorer_api.tokens.engine_tokenizer import EngineTokenizer
from scorer_api.tokens.resolver import TokenResolver

ENGINES = (8, 64)
BLOCK_SIZE = 16
REPEATS = 9
ROUNDS = 20
ROUND_REQUESTS = 3
DATE = [(b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")]


class Parts(Struct, frozen=True):
    """Microseconds of a request, the least of some repeats, medians for `whole` and `kernel`.

    `kernel`: sockets and waking up. `http`: reading the head, writing the response. `tokens`: out of the body, packed. `rest`: of the body, and
    checks. `keys`, `walk`: the look-up. `answer`: its encoding. `metrics`: histograms, counters and clocks. `loop`: what is left of the whole.
    """

    engines: int
    body: str
    blocks: int
    whole: float
    kernel: float
    http: float
    tokens: float
    rest: float
    keys: float
    walk: float
    answer: float
    metrics: float
    loop: float


class Nowhere(asyncio.Transport):
    """Takes what is written, and keeps none of it."""

    def write(self, data: Any) -> None:
        self.written = len(data)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def is_closing(self) -> bool:
        return False


def measure() -> list[Parts]:
    if core is None:
        raise RuntimeError("the parts are those of the compiled core, which is not in use")
    return [row for engines in ENGINES for row in asyncio.run(_measure(Fill(engines)))]


async def _measure(fill: Fill) -> list[Parts]:
    wholes = await asyncio.to_thread(lambda: dict(_wholes(fill)))
    settings = Settings()
    view = _filled(settings, fill)
    registry = CollectorRegistry()
    handlers = _handlers(settings, view, registry)
    access = Access(settings, HttpMetrics(CollectorRegistry()))
    rows = []
    for (body, blocks), (whole, kernel) in wholes.items():
        requests = _requests(body, fill.pools[blocks])
        parts = await _parts(settings, view, handlers, access, body, requests)
        rows.append(_row(fill.engines, body, blocks, whole, kernel, parts))
    return rows


def _row(engines: int, body: str, blocks: int, whole: float, kernel: float, parts: dict[str, float]) -> Parts:
    shown = {name: round(us, 1) for name, us in parts.items()}
    return Parts(engines, body, blocks, round(whole, 1), round(kernel, 1), **shown, loop=round(whole - kernel - sum(parts.values()), 1))


def _requests(body: str, pool: Sequence[Prompt]) -> list[bytes]:
    return [prepare(body, prompt_tokens(prompt.seed, prompt.blocks)) for prompt in pool]


def _wholes(fill: Fill) -> Iterator[tuple[tuple[str, int], tuple[float, float]]]:
    """CPU of a request in the service, and how much of it is the kernel's."""
    with ExitStack() as stack:
        engines = stack.enter_context(sockets(fill.engines))
        server = stack.enter_context(Server([spec(f"pod-{number}", engine.port) for number, engine in enumerate(engines)]))
        loader = stack.enter_context(ProcessPoolExecutor(1, mp_context=spawning))
        for engine, batches in zip(engines, fill.payloads, strict=True):
            engine.wait_subscribed()
            for payload in batches:
                engine.publish(payload)
        server.wait_held(sum(engine.held for engine in engines))
        for body in ("json", "msgpack"):
            for blocks, pool in fill.pools.items():
                job = load.Job(server.host, server.port, _requests(body, pool), None, CONNECTIONS, DURATION_S)
                found = sorted(_whole_us(server, loader, job) for _ in range(ROUND_REQUESTS))
                yield (body, blocks), found[len(found) // 2]


def _whole_us(server: Server, loader: ProcessPoolExecutor, job: load.Job) -> tuple[float, float]:
    loader.submit(load.run, replace(job, duration_s=WARM_UP_S)).result()
    cpu_ns, kernel_s = server.cpu_ns(), server.kernel_s()
    asked = len(loader.submit(load.run, job).result().latencies_s)
    return (server.cpu_ns() - cpu_ns) / asked / 1000, (server.kernel_s() - kernel_s) / asked * 1e6


def _filled(settings: Settings, fill: Fill) -> View:
    view = View(settings)
    for number, batches in enumerate(fill.payloads):
        key, decoder, state = StreamKey(MODEL, f"pod-{number}", 0), WireDecoder(settings.limits.wire), StreamState(MODEL, settings.hash_seed)
        view.open(key)
        view.set_trust(key, Trust.LIVE)
        for payload in batches:
            change = state.apply(decoder.decode(payload.data).events, 0.0)
            view.append(key, state.shape, change)
    return view


def _handlers(settings: Settings, view: View, registry: CollectorRegistry) -> Handlers:
    pods = Service(settings, view, IndexerMetrics(registry), view.loads.note, view.note_dropped, view.note_ready)
    metrics = TokenMetrics(registry)
    tokens = TokenResolver(settings, EngineTokenizer(settings, view, pods, metrics), {}, metrics)
    return make_handlers(settings, view, pods, make_picking(settings, view, pods, tokens, registry), registry)


async def _parts(settings: Settings, view: View, handlers: Handlers, access: Access, body: str, requests: list[bytes]) -> dict[str, float]:
    media_type = f"application/{body}"
    bodies = [request.partition(HEAD_END)[2] for request in requests]
    decoded = [decode_score(each, media_type) for each in bodies]
    resolved = [handlers.resolver.resolve_at_once(each) for each in decoded]
    prompts = [each.prompt for each in resolved if each is not None and isinstance(each.prompt, Asked)]
    scores = [(prompt.length, view.score_plain(prompt)) for prompt in prompts]
    shown, encode = ViewAnswer(view.source, view.age_s), encoder(media_type)
    root = root_key(MODEL, None, settings.hash_seed)

    def tokens(each: bytes) -> object:
        return core.take_json_tokens(each, b"token_ids") if body == "json" else None

    def keys(prompt: Asked) -> object:
        return core.chain_packed(root, prompt.tokens, BLOCK_SIZE, None, 0, usable_blocks(prompt.length, BLOCK_SIZE))

    def answer(of: tuple[int, Any]) -> object:
        return plain_answer(MODEL, of[0], of[1], None, shown, encode)

    whole = await _least_us(lambda each: handlers.scores.answer_at_once(each, media_type, media_type), bodies)
    found = {"tokens": await _least_us(tokens, bodies)}
    found["rest"] = await _least_us(lambda each: decode_score(each, media_type), bodies) - found["tokens"]
    found["rest"] += await _least_us(handlers.resolver.resolve_at_once, decoded)
    found["keys"] = await _least_us(keys, prompts)
    found["walk"] = await _least_us(view.score_plain, prompts) - found["keys"]
    found["answer"] = await _least_us(answer, scores)
    found["metrics"] = whole - sum(found.values())
    content = handlers.scores.answer_at_once(bodies[0], media_type, media_type)
    at_once = AtOnce({"/v1/score": lambda *_: content}, access, settings.body_bytes_max)
    found = {"http": await _least_us(_connection(settings, at_once).data_received, requests), **found}
    return found


def _connection(settings: Settings, at_once: AtOnce) -> Connection:
    group = ConnectionGroup(settings.limits.http, 1.0, at_once=at_once)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("all are answered at once")

    config = uvicorn.Config(app, http=Connection.of(group), ws="none", lifespan="off", log_config=None, access_log=False)
    config.load()
    state = ServerState()
    state.default_headers = DATE
    connection = Connection.of(group)(config=config, server_state=state, app_state={})
    connection.connection_made(Nowhere())
    return connection


async def _least_us(call: Callable[[Any], object], arguments: Sequence[Any]) -> float:
    """Microseconds of CPU of one call."""
    found = []
    for _ in range(REPEATS):
        cpu_s = 0.0
        for _ in range(ROUNDS):
            began_s = time.process_time()
            for argument in arguments:
                call(argument)
            cpu_s += time.process_time() - began_s
            await asyncio.sleep(0)  # timers that were cancelled go
        found.append(cpu_s / ROUNDS / len(arguments))
    return min(found) * 1e6

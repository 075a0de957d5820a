"""What the same work costs here and where the index in Redis is llm-d's, see `llmd`.

Both sides are given the same payloads, read them with the same decoder, make the same block keys of the tokens, and have a redis-server of their own.
One process is the client of both, in Python: what the other way costs a client in another language its Redis's share bounds from below, so that
stands by itself. Rounds of one side and the other alternate. Nothing is timed before both have answered what was published: prompts that pods hold
to different depths, evicted and cleared ones among them.
"""

import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from functools import partial
from statistics import median
from typing import Any

import msgspec
import uvloop
from msgspec import Struct

from bench import direct
from bench.connection import Connection, prepare
from bench.cost import Cost, costing, redis_used_bytes
from bench.direct import Indexer, Scorer
from bench.llmd import LlmdIndex
from bench.server import Server
from bench.workload import BLOCK_SIZE, Plan, cleared, encoded, payloads, prompt_tokens, removed
from indexer.core.events import Stored
from indexer.limits import WireLimits
from indexer.wire.decoder import WireDecoder
from tests.redis_server import RedisServer

PODS = tuple(f"pod-{number}" for number in range(8))
ROUNDS = 3
# 64-block events of one pod in a round; those removed again leave 100,000 blocks to clear.
ROUND_BATCHES = 543
REMOVED_BATCHES = 64
# Blocks of a prompt → prompts, and look-ups in a round: in the scorer's memory, over HTTP, in the other way.
SIZES = {450: (3, 400, 150, 40), 3_750: (1, 100, 30, 8)}
SHARED_BLOCKS = 64 * 64
CHECKED_BLOCKS = 200
TIMEOUT_S = 30.0
POLL_S = 0.01

INGEST = "ingest"
LOOK_UP = "look-up of {blocks:,} blocks x 8 pods"
LOOK_UP_450 = LOOK_UP.format(blocks=450)
BOTH = "CPU of client and Redis"
IN_REDIS = "64-block events: decoded, applied, in Redis"
IN_MEMORY = f"{BOTH}; here in the scorer's memory"


class Against(Struct, frozen=True):
    """`of`: what is compared, here and there. `ratio`: how many times better it is here."""

    what: str
    of: str
    unit: str
    here: float
    llmd: float
    ratio: float


class Sides(Struct, frozen=True):
    """Both ways, and their servers."""

    here: RedisServer
    there: RedisServer
    indexer: Indexer
    other: LlmdIndex

    async def apply(self, pod: str, batches: list[bytes]) -> tuple[Cost, Cost]:
        """On both sides. What it cost, here and there."""
        with costing(self.here) as here:
            await self.indexer.apply(pod, batches)
        with costing(self.there) as there:
            for batch in batches:
                self.other.apply(pod, batch)
        return here, there

    def used_bytes(self) -> tuple[int, int]:
        """Memory of Redis, here and there; here that of the log too."""
        return redis_used_bytes(self.here), redis_used_bytes(self.there)

    async def check(self, scorer: Scorer, prompts: "list[Held]") -> None:
        """Raises RuntimeError where an answer is not what was published. The follower comes to know it in its time, so here a while is given."""
        for prompt in prompts:
            there = dict.fromkeys(PODS, 0) | self.other.look_up(prompt.tokens, prompt.blocks)
            with suppress(TimeoutError):
                await direct.until(partial(_answers, scorer, prompt))
            here = scorer.look_up(prompt.tokens)
            if not here == there == prompt.held:
                raise RuntimeError(f"of {prompt.blocks} blocks {prompt.held} are held; answered here: {here}, there: {there}")


def _answers(scorer: Scorer, prompt: "Held") -> bool:
    return scorer.look_up(prompt.tokens) == prompt.held


class Held(Struct):
    """A prompt, and how many of its first blocks each pod holds."""

    seed: int
    blocks: int
    held: dict[str, int]

    @property
    def tokens(self) -> bytes:
        return array("I", prompt_tokens(self.seed, self.blocks)).tobytes()


def measure() -> list[Against]:
    return uvloop.run(_measure())


async def _measure() -> list[Against]:
    await _check_events()
    look_ups = [row for blocks in SIZES for row in await _measure_look_up(blocks)]
    return [*await _measure_stream(), await _measure_shared(), *look_ups]


# What is compared


async def _check_events() -> None:
    """Storing, removing and clearing lead to the same answers on both sides, and to the right ones."""
    depths = (CHECKED_BLOCKS, 0, 1, 64, 65, 130, CHECKED_BLOCKS, CHECKED_BLOCKS - 1)
    prompts = [Held(number, CHECKED_BLOCKS, dict(zip(PODS, depths[number:] + depths[:number], strict=True))) for number in range(4)]
    async with _sides() as sides, direct.scorer_of(sides.here) as scorer:
        for number, pod in enumerate(PODS):
            prefixes = tuple((prompt.seed, prompt.held[pod]) for prompt in prompts if prompt.held[pod])
            await sides.apply(pod, _payloads(Plan(seed=500 + number, blocks=0, prefixes=prefixes)))
        await sides.check(scorer, prompts)
        first = _payloads(Plan(seed=500, blocks=0, prefixes=((prompts[0].seed, CHECKED_BLOCKS),)))
        await sides.apply(PODS[0], [_removal(first[0], start=100)])
        prompts[0].held[PODS[0]] = 100
        await sides.check(scorer, prompts)
        await sides.apply(PODS[6], [encoded([cleared()]).data])
        for prompt in prompts:
            prompt.held[PODS[6]] = 0
        await sides.check(scorer, prompts)


async def _measure_look_up(blocks: int) -> list[Against]:
    """Every block is held by every pod, so nothing ends a match early."""
    count, *times = SIZES[blocks]
    prompts = [Held(blocks * 10 + number, blocks, dict.fromkeys(PODS, blocks)) for number in range(count)]
    async with _sides() as sides:
        for pod in PODS:
            await sides.apply(pod, _payloads(Plan(seed=600, blocks=0, prefixes=tuple((prompt.seed, blocks) for prompt in prompts))))
        async with direct.scorer_of(sides.here) as scorer:
            await sides.check(scorer, prompts)
        # The follower is gone, what it brought is here: nothing runs in this process but what is timed.
        with Server([], "api", sides.here.url) as server, Connection(server.host, server.port) as connection:
            _wait_followed(server, blocks * count * len(PODS))
            requests = [prepare("json", prompt_tokens(prompt.seed, blocks)) for prompt in prompts]
            for request in requests:
                _check_answer(connection.ask(request), blocks)
            tokens = [prompt.tokens for prompt in prompts]
            memory, http, other = _time_look_ups(
                (lambda: _each(scorer.look_up, tokens, times[0]), sides.here, None),
                (lambda: _each(connection.ask, requests, times[1]), sides.here, server),
                (lambda: _each(lambda packed: sides.other.look_up(packed, blocks), tokens, times[2]), sides.there, None),
            )
    what = LOOK_UP.format(blocks=blocks)
    return [
        _less(what, IN_MEMORY, "µs", memory.cpu_us, other.cpu_us),
        _less(what, "CPU in the scorer's memory, of Redis alone", "µs", memory.cpu_us, other.redis_us),
        _less(what, "CPU of a whole HTTP request, of client and Redis", "µs", http.cpu_us, other.cpu_us),
        _less(what, "p50 of a whole HTTP request, of the pipeline", "µs", http.p50_us, other.p50_us),
    ]


async def _measure_stream() -> list[Against]:
    """One pod, no block held twice: what it stores, removes and clears."""
    batches = _payloads(Plan(seed=700, blocks=ROUNDS * ROUND_BATCHES * 64))
    pod, blocks, round_blocks, gone = PODS[0], len(batches) * 64, ROUND_BATCHES * 64, REMOVED_BATCHES * 64
    removals = [_removal(batch) for batch in batches[:REMOVED_BATCHES]]
    async with _sides([pod]) as sides:
        used_before = sides.used_bytes()
        costs = [await sides.apply(pod, batches[start : start + ROUND_BATCHES]) for start in range(0, len(batches), ROUND_BATCHES)]
        used = [after - before for after, before in zip(sides.used_bytes(), used_before, strict=True)]
        _check_counts(sides, pod, blocks, blocks * 2)
        removal = await sides.apply(pod, removals)
        _check_counts(sides, pod, blocks - gone, (blocks - gone) * 2)
        clear = await sides.apply(pod, [encoded([cleared()]).data])
        _check_counts(sides, pod, 0, blocks - gone)
    elapsed, cpu, redis = ([median(getattr(cost[side], field) for cost in costs) for side in (0, 1)] for field in ("elapsed_s", "cpu_s", "redis_s"))
    cleared_blocks = f"clear of {blocks - gone:,} blocks"
    return [
        _more(INGEST, IN_REDIS, "blocks/s", *(round_blocks / seconds for seconds in elapsed)),
        _less(INGEST, BOTH, "µs/block", *(seconds / round_blocks * 1e6 for seconds in cpu)),
        _less(INGEST, "CPU of Redis alone", "µs/block", *(seconds / round_blocks * 1e6 for seconds in redis)),
        _more("removal", IN_REDIS, "blocks/s", *(gone / cost.elapsed_s for cost in removal)),
        _less(cleared_blocks, "until Redis has none of them", "ms", *(cost.elapsed_s * 1e3 for cost in clear)),
        _less(cleared_blocks, BOTH, "ms", *(cost.cpu_s * 1e3 for cost in clear)),
        _less("memory of Redis", "a block copy, no block on two pods", "bytes", *(bytes_ / blocks for bytes_ in used)),
    ]


async def _measure_shared() -> Against:
    """Every block is on every pod, under the same engine hash, which is there but once then."""
    async with _sides() as sides:
        used_before = sides.used_bytes()
        for pod in PODS:
            await sides.apply(pod, _payloads(Plan(seed=800, blocks=SHARED_BLOCKS)))
        _check_counts(sides, PODS[-1], SHARED_BLOCKS, SHARED_BLOCKS * 2)
        copies = SHARED_BLOCKS * len(PODS)
        used = [(after - before) / copies for after, before in zip(sides.used_bytes(), used_before, strict=True)]
    return _less("memory of Redis", "a block copy, each block on 8 pods", "bytes", *used)


# How it is measured


class LookUp(Struct, frozen=True):
    """One look-up. CPU: the median round's."""

    cpu_us: float
    redis_us: float
    p50_us: float


Timed = tuple[Callable[[], list[float]], RedisServer, Server | None]
"""Makes a round and returns its latencies; the Redis it uses; the process it asks, whose CPU counts then instead of this one's."""


def _time_look_ups(*kinds: Timed) -> list[LookUp]:
    rounds: list[list[LookUp]] = [[] for _ in kinds]
    for _ in range(ROUNDS):
        for kind, (run, redis, server) in enumerate(kinds):
            before_s = 0.0 if server is None else server.cpu_s()
            with costing(redis) as cost:
                latencies_s = run()
            client_s = cost.client_s if server is None else server.cpu_s() - before_s
            count = len(latencies_s) / 1e6
            rounds[kind].append(LookUp((client_s + cost.redis_s) / count, cost.redis_s / count, median(latencies_s) * 1e6))
    return [LookUp(*(median(getattr(each, field) for each in made) for field in LookUp.__struct_fields__)) for made in rounds]


def _each(ask: Callable[[Any], object], questions: list[Any], times: int) -> list[float]:
    """Ask these in turn, so many times in all. Returns how long each took."""
    clock = time.perf_counter
    latencies_s = []
    for number in range(times):
        question = questions[number % len(questions)]
        started_s = clock()
        ask(question)
        latencies_s.append(clock() - started_s)
    return latencies_s


@asynccontextmanager
async def _sides(pods: Iterable[str] = PODS) -> AsyncIterator[Sides]:
    with RedisServer() as here, RedisServer() as there:
        async with direct.indexer_of(here) as indexer:
            for pod in pods:
                await indexer.own(pod)
            yield Sides(here, there, indexer, LlmdIndex(there.client()))


def _payloads(plan: Plan) -> list[bytes]:
    return [payload.data for payload in payloads(plan)]


def _removal(payload: bytes, start: int = 0) -> bytes:
    """Removes the blocks that a payload stores, from this one on."""
    events = WireDecoder(WireLimits()).decode(payload).events
    return encoded([removed(event.hashes[start:]) for event in events if isinstance(event, Stored)]).data


def _check_counts(sides: Sides, pod: str, blocks: int, names: int) -> None:
    """Raises RuntimeError. `names`: of the other way's hashes, one for a block, and of its engine hashes."""
    found = sides.indexer.blocks(pod), int(sides.there.client().dbsize())
    if found != (blocks, names):
        raise RuntimeError(f"expected {blocks} blocks here and {names} names there, found {found}")


def _check_answer(answer: bytes, blocks: int) -> None:
    """Raises RuntimeError."""
    matched = {shown["pod"]: shown["matched_tokens"] for shown in msgspec.json.decode(answer)["pods"]}
    if matched != dict.fromkeys(PODS, blocks * BLOCK_SIZE):
        raise RuntimeError(f"every pod holds {blocks} blocks, the service answered {answer!r}")


def _wait_followed(server: Server, copies: int) -> None:
    """Raises TimeoutError."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not server.is_ready() or server.blocks() * len(PODS) != copies:
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"the scorer holds {server.blocks()} blocks")
        time.sleep(POLL_S)


def _more(what: str, of: str, unit: str, here: float, there: float) -> Against:
    """More is better."""
    return Against(what, of, unit, _short(here), _short(there), _short(here / there))


def _less(what: str, of: str, unit: str, here: float, there: float) -> Against:
    """Less is better."""
    return Against(what, of, unit, _short(here), _short(there), _short(there / here))


def _short(figure: float) -> float:
    return round(figure, 2 if figure < 10 else 1) if figure < 100 else round(figure)

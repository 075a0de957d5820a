"""A small engine without a model: it serves a made-up chat workload and what clients send, and publishes over ZMQ what it caches, as vLLM does.

Every prompt begins with the same system prompt, tokens 1 to 64; chat number c goes on with tokens 1000 c + 1, 1000 c + 2 and so on, turn
after turn. The first chat of an engine is served every other time and so stays cached; the others are evicted and come back.
"""

import asyncio
import hashlib
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import islice

import msgspec
import zmq.asyncio

from indexer.simulation import demo_api
from indexer.simulation.demo_completions import Completion, CompletionRequest, Kind, answer_words
from indexer.simulation.demo_tokenizer import tokenize
from indexer.simulation.publisher import EVERY_ADDRESS, LOOPBACK, Publisher, dial_host

MODEL = "demo/chat"
SYSTEM_PROMPT = range(1, 65)
BLOCK_SIZE = 16
TURN_TOKENS = 80
CHAT_TOKENS_MAX = 800
HISTORY_BATCHES = 1_000
# Requests served at the start, so that there is something to see at once.
WARM_UP_REQUESTS = 24
# Events in one part of a snapshot.
SNAPSHOT_EVENTS = 64
# Blocks that one event of it names by their hashes.
NAMED_BLOCKS = 1_024
# A completion waits so long for the engine's event loop.
COMPLETE_S = 10.0

Event = dict[str, object]


class BlockCache:
    """An LRU of blocks that returns events for what it stores and evicts. Leaves are evicted first, as engines do it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, Event] = OrderedDict()
        """Engine hash → the event that would store this block alone."""
        self._requests = self._tokens = self._cached_tokens = 0

    def metrics(self) -> str:
        """Counters by vLLM's names, in the text format of Prometheus. Requests end at once: none ever runs, waits or uses a block."""
        figures = {
            "num_requests_running": 0,
            "num_requests_waiting": 0,
            "kv_cache_usage_perc": 0,
            f'cache_config_info{{block_size="{BLOCK_SIZE}",num_gpu_blocks="{self._capacity}"}}': 1,
            "request_prompt_tokens_count": self._requests,
            "request_prompt_tokens_sum": self._tokens,
            "prompt_tokens_total": self._tokens,
            "prefix_cache_hits_total": self._cached_tokens,
        }
        return "".join(f"vllm:{name} {figure:.1f}\n" for name, figure in figures.items())

    def cached_tokens(self, prompt: Sequence[int]) -> int:
        """How many of a prompt's tokens it has; the last one is always computed."""
        return self._known(list(_engine_hashes(prompt[:-1]))) * BLOCK_SIZE

    def serve(self, prompt: list[int], answer: Sequence[int] = ()) -> list[Event]:
        """Cache the whole blocks of a prompt with its answer. Returns the events of that step, evictions first."""
        tokens = [*prompt, *answer]
        hashes = list(_engine_hashes(tokens))[: self._capacity]
        known = self._known(hashes)
        new = hashes[known:]
        self._requests += 1
        self._tokens += len(prompt)
        self._cached_tokens += min(known, len(prompt) // BLOCK_SIZE) * BLOCK_SIZE
        self._use(hashes[:known])
        evicted = self._evict(len(self._blocks) + len(new) - self._capacity)
        for number in range(len(hashes) - 1, known - 1, -1):
            of_block = tokens[number * BLOCK_SIZE : (number + 1) * BLOCK_SIZE]
            self._blocks[hashes[number]] = _stored([hashes[number]], hashes[number - 1] if number else None, of_block)
        self._use(hashes[:known])
        events: list[Event] = []
        if evicted:
            events.append(_removed(evicted))
        if new:
            events.append(_stored(new, hashes[known - 1] if known else None, tokens[known * BLOCK_SIZE : len(hashes) * BLOCK_SIZE]))
        return events

    def snapshot(self) -> list[Event]:
        """Events that make what is held out of anything. A block was never used later than its parent, which so comes first."""
        return [{"type": "AllBlocksCleared"}, *reversed(self._blocks.values())]

    def whole_snapshot(self) -> list[Event]:
        """The same as an endpoint for snapshots alone has it: each block with its tokens, the copy that there is of it, and a removal."""
        hashes = list(reversed(self._blocks))
        pieces = [hashes[start : start + NAMED_BLOCKS] for start in range(0, len(hashes), NAMED_BLOCKS)]
        copies = [{**_stored(piece, None, []), "block_size": 0, "extra_keys": None, "kv_cache_spec_kind": None} for piece in pieces]
        return [*reversed(self._blocks.values()), *copies, *map(_removed, pieces)]

    def _known(self, hashes: Sequence[int]) -> int:
        """How many of them are cached, from the first on."""
        return next((number for number, engine_hash in enumerate(hashes) if engine_hash not in self._blocks), len(hashes))

    def _use(self, hashes: Sequence[int]) -> None:
        """They were used last, the first of them after all others: a block goes before its parent."""
        for engine_hash in reversed(hashes):
            self._blocks.move_to_end(engine_hash)

    def _evict(self, count: int) -> list[int]:
        return [self._blocks.popitem(last=False)[0] for _ in range(max(0, count))]


def _stored(hashes: list[int], parent: int | None, tokens: list[int]) -> Event:
    return {
        "type": "BlockStored",
        "block_hashes": hashes,
        "parent_block_hash": parent,
        "token_ids": tokens,
        "block_size": BLOCK_SIZE,
        "lora_id": None,
        "medium": "GPU",
        "lora_name": None,
        "extra_keys": [None] * len(hashes),
        "group_idx": 0,
        "kv_cache_spec_kind": "full_attention",
    }


def _removed(hashes: list[int]) -> Event:
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU", "group_idx": 0}


def _engine_hashes(tokens: Sequence[int]) -> Iterator[int]:
    digest = b""
    for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        digest = hashlib.sha256(digest + b"".join(token.to_bytes(4, "big") for token in tokens[start : start + BLOCK_SIZE])).digest()
        yield int.from_bytes(digest[-8:], "big")


def chat_workload(chats: list[int], rng: random.Random) -> Iterator[list[int]]:
    """Endless sequences: prompts with their answers. A chat that became too long starts over."""
    lengths = dict.fromkeys(chats, 0)
    while True:
        chat = chats[0] if rng.random() < 0.5 else rng.choice(chats)
        lengths[chat] = lengths[chat] + TURN_TOKENS if lengths[chat] < CHAT_TOKENS_MAX else TURN_TOKENS
        yield [*SYSTEM_PROMPT, *range(1000 * chat + 1, 1000 * chat + 1 + lengths[chat])]


async def run(
    pod: str,
    model: str,
    chats: list[int],
    capacity: int,
    requests_per_s: float,
    host: str = LOOPBACK,
    events_port: int = 0,
    replay_port: int = 0,
    http_port: int = 0,
    snapshot_port: int | None = None,
) -> None:
    """Print the engine's spec, then serve until cancelled. `snapshot_port`: of an endpoint for snapshots alone; else the replay endpoint has them.

    Raises zmq.ZMQError or OSError if it cannot listen.
    """
    listen_at = "" if host in EVERY_ADDRESS and ":" not in host else host
    with zmq.asyncio.Context() as context, ExitStack() as stack:
        context.linger = 0
        publisher = Publisher(context, host, events_port, replay_port, history_max=HISTORY_BATCHES, snapshot_port=snapshot_port)
        engine = DemoEngine(pod, model, capacity, publisher)
        http_port = stack.enter_context(demo_api.serving(listen_at, http_port, engine))
        await publisher.open()
        dial_at = dial_host(host)
        spec = f"pod={pod},model={model},events=tcp://{dial_at}:{publisher.events_port},replay=tcp://{dial_at}:{publisher.replay_port}"
        snapshot = "replay" if publisher.snapshot_port is None else f"tcp://{dial_at}:{publisher.snapshot_port}"
        print(f"{spec},http=http://{dial_at}:{http_port},snapshot={snapshot}", flush=True)  # noqa: T201 - the command's output: what to give to --engine
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(publisher.serve(), name="publisher")
                tasks.create_task(_serve_chats(engine, chats, requests_per_s), name="chats")
        finally:
            context.destroy(linger=0)


class DemoEngine:
    """One engine: its cache, and what it announces of it, numbered."""

    def __init__(self, pod: str, model: str, capacity: int, publisher: Publisher) -> None:
        self.model = model
        self._pod = pod
        self._cache = BlockCache(capacity)
        self._publisher = publisher
        self._topic = f"kv@{pod}@{model}".encode()
        self._next = 0
        self._loop = asyncio.get_running_loop()
        publisher.snapshot = self._snapshot

    def metrics(self) -> str:
        """See `BlockCache`."""
        return self._cache.metrics()

    def complete(self, request: CompletionRequest, kind: Kind) -> Completion:
        """Called by the threads of the API. Raises msgspec.ValidationError for a prompt that is none."""
        computing = self._complete(request.tokens(kind), request.answer_tokens_max, kind)
        return asyncio.run_coroutine_threadsafe(computing, self._loop).result(COMPLETE_S)

    async def _complete(self, prompt: list[int], words_max: int, kind: Kind) -> Completion:
        cached = self._cache.cached_tokens(prompt)
        words = answer_words(self._pod, len(prompt), cached)
        answer = words[:words_max]
        await self.serve(prompt, tokenize(" ".join(answer)))
        return Completion(f"demo-{secrets.token_hex(8)}", self.model, kind, answer, len(answer) < len(words), len(prompt), cached)

    def _snapshot(self) -> tuple[bytes, bytes, Sequence[bytes]]:
        """See `Publisher.snapshot`."""
        events = self._cache.snapshot() if self._publisher.snapshot_port is None else self._cache.whole_snapshot()
        parts = [_encoded(events[start : start + SNAPSHOT_EVENTS]) for start in range(0, len(events), SNAPSHOT_EVENTS)]
        return self._topic, self._next.to_bytes(8, "big"), parts

    async def serve(self, prompt: list[int], answer: Sequence[int] = ()) -> None:
        """Serve one request, and announce what that changes."""
        if not (events := self._cache.serve(prompt, answer)):
            return
        identity = [] if self._publisher.snapshot_port is None else [self._publisher.publisher_id]
        payload = _encoded(events, *identity)
        number = self._next.to_bytes(8, "big")
        self._next += 1
        self._publisher.add_to_history(self._topic, number, payload)
        await self._publisher.publish([self._topic, number, payload])


def _encoded(events: Sequence[Event], *identity: bytes) -> bytes:
    return msgspec.msgpack.encode([time.time(), events, 0, *identity])


async def _serve_chats(engine: DemoEngine, chats: list[int], requests_per_s: float) -> None:
    workload = chat_workload(chats, random.Random(chats[0]))
    for tokens in islice(workload, WARM_UP_REQUESTS):
        await engine.serve(tokens)
    for tokens in workload:
        await asyncio.sleep(1 / requests_per_s)
        await engine.serve(tokens)

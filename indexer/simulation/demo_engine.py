"""A small engine without a model: it serves a made-up chat workload and publishes over ZMQ what it caches, as vLLM does.

Every prompt begins with the same system prompt, tokens 1 to 64; chat number c goes on with tokens 1000 c + 1, 1000 c + 2 and so on, turn
after turn. The first chat of an engine is served every other time and so stays cached; the others are evicted and come back.
"""

import asyncio
import hashlib
import random
import time
from collections import OrderedDict
from collections.abc import Iterator
from itertools import islice

import msgspec
import zmq.asyncio

from indexer.simulation import demo_api
from indexer.simulation.publisher import EVERY_ADDRESS, LOOPBACK, Publisher, dial_host

SYSTEM_PROMPT = range(1, 65)
BLOCK_SIZE = 16
TURN_TOKENS = 80
CHAT_TOKENS_MAX = 800
HISTORY_BATCHES = 1_000
# Requests served at the start, so that there is something to see at once.
WARM_UP_REQUESTS = 24

Event = dict[str, object]


class BlockCache:
    """An LRU of blocks that returns events for what it stores and evicts. Leaves are evicted first, as engines do it."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()
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

    def serve(self, tokens: list[int]) -> list[Event]:
        """Cache the whole blocks of one sequence. Returns the events of that step, evictions first."""
        hashes = list(_engine_hashes(tokens))[: self._capacity]
        known = 0
        while known < len(hashes) and hashes[known] in self._blocks:
            known += 1
        new = hashes[known:]
        self._requests += 1
        self._tokens += len(tokens)
        self._cached_tokens += known * BLOCK_SIZE
        for engine_hash in reversed(hashes[:known]):
            self._blocks.move_to_end(engine_hash)
        evicted = self._evict(len(self._blocks) + len(new) - self._capacity)
        for engine_hash in reversed(new):
            self._blocks[engine_hash] = None
        events: list[Event] = []
        if evicted:
            events.append({"type": "BlockRemoved", "block_hashes": evicted, "medium": "GPU", "group_idx": 0})
        if new:
            events.append(_stored(new, hashes[known - 1] if known else None, tokens[known * BLOCK_SIZE : len(hashes) * BLOCK_SIZE]))
        return events

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


def _engine_hashes(tokens: list[int]) -> Iterator[int]:
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
) -> None:
    """Print the engine's spec, then serve until cancelled. Raises zmq.ZMQError or OSError if it cannot listen."""
    cache = BlockCache(capacity)
    listen_at = "" if host in EVERY_ADDRESS and ":" not in host else host
    with zmq.asyncio.Context() as context, demo_api.serving(listen_at, http_port, cache.metrics) as http_port:
        context.linger = 0
        publisher = Publisher(context, host, events_port, replay_port, history_max=HISTORY_BATCHES)
        await publisher.open()
        dial_at = dial_host(host)
        spec = f"pod={pod},model={model},events=tcp://{dial_at}:{publisher.events_port},replay=tcp://{dial_at}:{publisher.replay_port}"
        print(f"{spec},http=http://{dial_at}:{http_port}", flush=True)  # noqa: T201 - the command's output: what to give to --engine
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(publisher.serve(), name="publisher")
                tasks.create_task(_serve_chats(_Announcer(publisher, f"kv@{pod}@{model}".encode()), cache, chats, requests_per_s), name="chats")
        finally:
            context.destroy(linger=0)


class _Announcer:
    """Numbers the batches of an engine."""

    def __init__(self, publisher: Publisher, topic: bytes) -> None:
        self._publisher = publisher
        self._topic = topic
        self._next = 0

    async def announce(self, events: list[Event]) -> None:
        payload = msgspec.msgpack.encode([time.time(), events, 0])
        number = self._next.to_bytes(8, "big")
        self._next += 1
        self._publisher.add_to_history(self._topic, number, payload)
        await self._publisher.publish([self._topic, number, payload])


async def _serve_chats(announcer: _Announcer, cache: BlockCache, chats: list[int], requests_per_s: float) -> None:
    workload = chat_workload(chats, random.Random(chats[0]))
    for tokens in islice(workload, WARM_UP_REQUESTS):
        await _step(announcer, cache, tokens)
    for tokens in workload:
        await asyncio.sleep(1 / requests_per_s)
        await _step(announcer, cache, tokens)


async def _step(announcer: _Announcer, cache: BlockCache, tokens: list[int]) -> None:
    if events := cache.serve(tokens):
        await announcer.announce(events)

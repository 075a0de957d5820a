"""A small engine without a model: it serves a made-up chat workload and says over ZMQ what it caches, as vLLM does.

Every prompt begins with the same system prompt, tokens 1 to 64; chat number c goes on with tokens 1000 c + 1, 1000 c + 2 and so on, turn
after turn. The first chat of an engine is served every other time and so stays cached; the others come and go.
"""

import asyncio
import hashlib
import random
import time
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from itertools import islice
from socket import gethostname

import msgspec
import zmq
import zmq.asyncio

from indexer import demo_api

SYSTEM_PROMPT = range(1, 65)
BLOCK_SIZE = 16
TURN_TOKENS = 80
CHAT_TOKENS_MAX = 800
HISTORY_BATCHES = 1_000
# Served at once, so that there is something to see from the start.
WARM_UP_REQUESTS = 24
LOOPBACK = "127.0.0.1"
EVERY_ADDRESS = ("0.0.0.0", "*")  # noqa: S104 - what a user may ask for, never a default

Event = dict[str, object]


class BlockCache:
    """An LRU of blocks that says what it stores and evicts. Blocks go leaf first, as engines free them."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._blocks: OrderedDict[int, None] = OrderedDict()

    def serve(self, tokens: list[int]) -> list[Event]:
        """Cache the whole blocks of one sequence. Returns the events of that step, evictions first."""
        hashes = list(_engine_hashes(tokens))[: self._capacity]
        known = 0
        while known < len(hashes) and hashes[known] in self._blocks:
            known += 1
        new = hashes[known:]
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
    """Endless sequences: prompts with their answers. A chat that grew too long begins anew."""
    lengths = dict.fromkeys(chats, 0)
    while True:
        chat = chats[0] if rng.random() < 0.5 else rng.choice(chats)
        lengths[chat] = lengths[chat] + TURN_TOKENS if lengths[chat] < CHAT_TOKENS_MAX else TURN_TOKENS
        yield [*SYSTEM_PROMPT, *range(1000 * chat + 1, 1000 * chat + 1 + lengths[chat])]


class Publisher:
    """PUB and ROUTER on ports of one address, free ones where 0 is given, with a bounded history for replays.

    Raises zmq.ZMQError for an address that is not this machine's, or a port that is taken.
    """

    def __init__(self, context: zmq.asyncio.Context, topic: bytes, host: str, events_port: int, replay_port: int) -> None:
        self._topic = topic
        self._pub = context.socket(zmq.PUB)
        self._router = context.socket(zmq.ROUTER)
        self._pub.sndhwm = 0
        self._router.sndhwm = 0
        self.events_port = _bind(self._pub, host, events_port)
        self.replay_port = _bind(self._router, host, replay_port)
        self._history: deque[tuple[bytes, bytes]] = deque(maxlen=HISTORY_BATCHES)
        self._next = 0

    async def publish(self, events: list[Event]) -> None:
        payload = msgspec.msgpack.encode([time.time(), events, 0])
        number = self._next.to_bytes(8, "big")
        self._next += 1
        self._history.append((number, payload))
        await self._pub.send_multipart([self._topic, number, payload])

    async def serve_replays(self) -> None:
        while True:
            frames = await self._router.recv_multipart()
            if len(frames) != 3 or len(frames[2]) != 8:
                continue
            for number, payload in self._since(frames[2]):
                await self._router.send_multipart([frames[0], b"", self._topic, number, payload])
            await self._router.send_multipart([frames[0], b"", b"", b"\xff" * 8, b""])

    def _since(self, start: bytes) -> Iterable[tuple[bytes, bytes]]:
        return [item for item in self._history if item[0] >= start]


def _bind(socket: zmq.asyncio.Socket, host: str, port: int) -> int:
    if not port:
        return socket.bind_to_random_port(f"tcp://{host}")
    socket.bind(f"tcp://{host}:{port}")
    return port


def dialled(host: str) -> str:
    """What others dial to reach what listens there: every address is none that can be dialled, the machine's name is."""
    return gethostname() if host in EVERY_ADDRESS else host


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
    """Print the engine's spec, then serve until cancelled. Raises zmq.ZMQError, and OSError, where it cannot listen."""
    with zmq.asyncio.Context() as context, demo_api.serving("" if host in EVERY_ADDRESS else host, http_port) as http_port:
        context.linger = 0
        publisher = Publisher(context, f"kv@{pod}@{model}".encode(), host, events_port, replay_port)
        reached_at = dialled(host)
        spec = f"pod={pod},model={model},events=tcp://{reached_at}:{publisher.events_port},replay=tcp://{reached_at}:{publisher.replay_port}"
        print(f"{spec},http=http://{reached_at}:{http_port}", flush=True)  # noqa: T201 - the command's output: what to give to --engine
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(publisher.serve_replays(), name="replays")
                tasks.create_task(_serve_chats(publisher, chats, capacity, requests_per_s), name="chats")
        finally:
            context.destroy(linger=0)


async def _serve_chats(publisher: Publisher, chats: list[int], capacity: int, requests_per_s: float) -> None:
    cache = BlockCache(capacity)
    workload = chat_workload(chats, random.Random(chats[0]))
    for tokens in islice(workload, WARM_UP_REQUESTS):
        await _step(publisher, cache, tokens)
    for tokens in workload:
        await asyncio.sleep(1 / requests_per_s)
        await _step(publisher, cache, tokens)


async def _step(publisher: Publisher, cache: BlockCache, tokens: list[int]) -> None:
    if events := cache.serve(tokens):
        await publisher.publish(events)

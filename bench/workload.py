"""What engines publish in a measurement, the same for the same seed: maps with integer hashes, as vLLM sends them.

Token ids are below 2^17, as with the vocabulary of a present-day model: half of them take five bytes in msgpack, the others three.
"""

import random
import time
from array import array
from collections.abc import Iterator

import msgspec
from msgspec import Struct

BLOCK_SIZE = 16
MODEL = "bench/model"
# A sequence so long begins anew.
SEQUENCE_BLOCKS_MAX = 2_048
TOKEN_MASK = 2**17 - 1

Event = dict[str, object]


class Plan(Struct, frozen=True):
    """What one engine publishes: the first blocks of prompts, then sequences of its own, one growing per event of a batch.

    `prefixes`: (seed of the prompt, number of blocks). `blocks`: how many of its own, a multiple of what a batch holds.
    """

    seed: int
    blocks: int
    blocks_per_event: int = 64
    events_per_batch: int = 1
    prefixes: tuple[tuple[int, int], ...] = ()


class Payload(Struct, frozen=True, gc=False):
    """One encoded batch, and how many blocks are in it."""

    data: bytes
    blocks: int


def prompt_tokens(seed: int, blocks: int) -> list[int]:
    """A prompt of which so many blocks can match: one token more than they hold. A longer one of the same seed begins the same."""
    return _tokens(random.Random(seed), blocks * BLOCK_SIZE + 1)


def payloads(plan: Plan) -> Iterator[Payload]:
    """The plan's batches, in order."""
    rng = random.Random(f"engine {plan.seed}")
    for seed, blocks in plan.prefixes:
        tokens = prompt_tokens(seed, blocks)[: blocks * BLOCK_SIZE]
        yield encoded([stored(_hashes(rng, blocks), None, tokens)])
    sequences = [_sequence(rng, plan.blocks_per_event) for _ in range(plan.events_per_batch)]
    for _ in range(plan.blocks // (plan.blocks_per_event * plan.events_per_batch)):
        yield encoded([next(sequence) for sequence in sequences])


def encoded(events: list[Event]) -> Payload:
    """One batch of these events."""
    blocks = sum(len(hashes) for event in events if isinstance(hashes := event.get("block_hashes"), list))
    return Payload(msgspec.msgpack.encode([time.time(), events, 0]), blocks)


def stored(hashes: list[int], parent: int | None, tokens: list[int]) -> Event:
    """A BlockStored of vLLM."""
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


def removed(hashes: list[int]) -> Event:
    """A BlockRemoved of vLLM."""
    return {"type": "BlockRemoved", "block_hashes": hashes, "medium": "GPU", "group_idx": 0}


def cleared() -> Event:
    """An AllBlocksCleared."""
    return {"type": "AllBlocksCleared"}


def _sequence(rng: random.Random, blocks_per_event: int) -> Iterator[Event]:
    """Endless: one sequence after the other, announced so many blocks at a time."""
    while True:
        parent: int | None = None
        for _ in range(SEQUENCE_BLOCKS_MAX // blocks_per_event):
            hashes = _hashes(rng, blocks_per_event)
            yield stored(hashes, parent, _tokens(rng, blocks_per_event * BLOCK_SIZE))
            parent = hashes[-1]


def _hashes(rng: random.Random, count: int) -> list[int]:
    return array("Q", rng.randbytes(8 * count)).tolist()


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [token & TOKEN_MASK for token in array("I", rng.randbytes(4 * count))]

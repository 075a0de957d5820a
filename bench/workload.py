"""What engines publish in a measurement, the same for the same seed: maps with integer hashes, as vLLM sends them.

Token ids are below 2^17, as with the vocabulary of a present-day model: half of them take five bytes in msgpack, the others three.
"""

import random
import time
from array import array
from collections import deque
from collections.abc import Iterator
from typing import cast

import msgspec
from msgspec import Struct

BLOCK_SIZE = 16
MODEL = "bench/model"
# A sequence so long begins anew.
SEQUENCE_BLOCKS_MAX = 2_048
# What vLLM sends since 0.17, and SGLang does not.
NEWER_FIELDS = ("extra_keys", "group_idx", "kv_cache_spec_kind")
TOKEN_MASK = 2**17 - 1

STORED, REMOVED = "BlockStored", "BlockRemoved"
Event = dict[str, object]


class Plan(Struct, frozen=True):
    """What one engine publishes: the first blocks of prompts, then sequences of its own, one growing per event of a batch.

    `prefixes`: (seed of the prompt, number of blocks). `blocks`: how many of its own, a multiple of what a batch holds. `is_older`: whether events
    lack NEWER_FIELDS. `held_max`: once it holds so many, each batch also removes as many of its own as it stores, the oldest first.
    """

    seed: int
    blocks: int
    blocks_per_event: int = 64
    events_per_batch: int = 1
    prefixes: tuple[tuple[int, int], ...] = ()
    is_older: bool = False
    held_max: int | None = None


class Payload(Struct, frozen=True, gc=False):
    """One encoded batch, and how many blocks it stores and removes."""

    data: bytes
    blocks: int
    removed: int = 0


def prompt_tokens(seed: int, blocks: int) -> list[int]:
    """A prompt of which so many blocks can match: one token more than they hold. A longer one of the same seed begins the same."""
    return _tokens(random.Random(seed), blocks * BLOCK_SIZE + 1)


def payloads(plan: Plan) -> Iterator[Payload]:
    """The plan's batches, in order."""
    rng = random.Random(f"engine {plan.seed}")
    for seed, blocks in plan.prefixes:
        tokens = prompt_tokens(seed, blocks)[: blocks * BLOCK_SIZE]
        yield encoded([stored(_hashes(random.Random(f"hashes {seed}"), blocks), None, tokens)])
    sequences = [_sequence(rng, plan.blocks_per_event) for _ in range(plan.events_per_batch)]
    held: deque[int] = deque()
    for _ in range(plan.blocks // (plan.blocks_per_event * plan.events_per_batch)):
        events = [next(sequence) for sequence in sequences]
        batch = events if not plan.is_older else [_without(event, NEWER_FIELDS) for event in events]
        if plan.held_max is not None:
            held.extend(hashed for event in events for hashed in cast(list[int], event["block_hashes"]))
            batch += [removed([held.popleft() for _ in range(len(held) - plan.held_max)])] if len(held) > plan.held_max else []
        yield encoded(batch)


def encoded(events: list[Event]) -> Payload:
    """One batch of these events."""
    counts = {kind: sum(len(cast(list[int], event["block_hashes"])) for event in events if event["type"] == kind) for kind in (STORED, REMOVED)}
    return Payload(msgspec.msgpack.encode([time.time(), events, 0]), counts[STORED], counts[REMOVED])


def stored(hashes: list[int], parent: int | None, tokens: list[int]) -> Event:
    """A BlockStored of vLLM."""
    return {
        "type": STORED,
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
    return {"type": REMOVED, "block_hashes": hashes, "medium": "GPU", "group_idx": 0}


def cleared() -> Event:
    """An AllBlocksCleared."""
    return {"type": "AllBlocksCleared"}


def _without(event: Event, fields: tuple[str, ...]) -> Event:
    return {name: value for name, value in event.items() if name not in fields}


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

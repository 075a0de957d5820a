"""Where the memory of a block copy is: the tables of one engine that holds 384,000 blocks, by `tracemalloc`, in this process.

Tables double when they are two thirds or three quarters full, so each figure lies between its least and twice that.
"""

import gc
import random
import tracemalloc
from collections.abc import Callable

from msgspec import Struct

from bench.workload import MODEL, Payload, Plan, payloads
from indexer.compiled import core
from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.core.stream_state import StreamState
from indexer.wire.decoder import WireDecoder
from scorer_api.index.view import View

BLOCKS = 384_000


class Tables(Struct, frozen=True):
    """Bytes a block copy. `held`: the keys that the stream holds. `claims`: who claims a key, where the engine announces no extra keys."""

    dialect: str
    blocks_by_engine_hash: float
    held: float
    claims: float
    index_of_all_keys: float
    keys_of_the_holder: float
    sum: float


def measure() -> list[Tables]:
    if core is None:
        raise RuntimeError("the tables are those of the compiled core, which is not in use")
    return [_of(dialect, list(payloads(Plan(seed=1, blocks=BLOCKS, is_older=is_older)))) for dialect, is_older in (("newer", False), ("older", True))]


def _of(dialect: str, batches: list[Payload]) -> Tables:
    of_state, both = _kept(lambda: _filled(batches)), _kept(lambda: _filled(batches, with_index=True))
    held, claims = _kept(_held), _kept(_claims) if dialect == "older" else 0
    # A holder's keys are in a table of the same kind as the stream's.
    shown = [of_state - held - claims, held, claims, both - of_state - held, held, both]
    return Tables(dialect, *(round(found / BLOCKS, 1) for found in shown))


def _kept(make: Callable[[], object]) -> int:
    """Bytes that what is made keeps."""
    gc.collect()
    tracemalloc.start()
    made = make()
    gc.collect()
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del made
    return kept


def _filled(batches: list[Payload], *, with_index: bool = False) -> object:
    """A stream's state with all that is published, and the index with it. Raises RuntimeError where that is not all held."""
    settings = Settings()
    state, decoder = StreamState(MODEL, settings.hash_seed), WireDecoder(settings.limits.wire)
    view, key = View(settings), StreamKey(MODEL, "pod", 0)
    view.open(key)
    for payload in batches:
        change = state.apply(decoder.decode(payload.data).events, 0.0)
        if with_index:
            view.append(key, state.shape, change)
    if with_index and sum(index.holders for index in view.indexes) != BLOCKS:
        raise RuntimeError("not all that was published is held")
    return state, view


def _held() -> object:
    assert core is not None, "looked at before"
    table, keys = core.HeldKeys(), random.Random(1)
    for _ in range(BLOCKS):
        table.add(keys.getrandbits(64))
    return table


def _claims() -> object:
    assert core is not None, "looked at before"
    table, numbers = core.KeyClaims(), random.Random(1)
    for _ in range(BLOCKS):
        table.claim(numbers.getrandbits(64), numbers.getrandbits(64))
    return table

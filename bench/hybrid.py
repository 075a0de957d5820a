"""What a query costs for a hybrid model (a full and a sliding-window group) beside a plain one: 8 pods, the same blocks and the same answers.

Both models are held in this process, so that nothing but the look-up is measured: block keys from tokens, the walk, the hit rule, the scores.
"""

import random
import time
from collections.abc import Iterator

from msgspec import Struct

from bench.scoring import PODS, POOL, SIZES, Prompt, pool_prompt
from bench.workload import BLOCK_SIZE, Event, encoded, prompt_tokens, removed, stored
from indexer.config.settings import Settings
from indexer.core.block_keys import pack_tokens
from indexer.core.names import StreamKey
from indexer.core.stream_state import StreamState
from indexer.wire.decoder import WireDecoder
from scorer_api.index import prompt as queries
from scorer_api.index.view import View

WINDOW = 1_024
WINDOW_BLOCKS = -(-(WINDOW - 1) // BLOCK_SIZE)
REPEATS = 9
ROUNDS = 20


class Hybrid(Struct, frozen=True):
    """CPU of one query, the best repeat of each, and their ratio."""

    blocks: int
    plain_us: float
    hybrid_us: float
    ratio: float


def measure() -> list[Hybrid]:
    pools = {blocks: [pool_prompt(blocks, number) for number in range(POOL)] for blocks in SIZES}
    prompts = [prompt for pool in pools.values() for prompt in pool]
    plain, hybrid = _filled(prompts, is_hybrid=False), _filled(prompts, is_hybrid=True)
    rows = []
    for blocks, pool in pools.items():
        asked = [queries.Prompt("m", pack_tokens(prompt_tokens(prompt.seed, prompt.blocks))) for prompt in pool]
        for view in (plain, hybrid):
            _verify(view, pool, asked)
        plain_s, hybrid_s = [], []
        for _ in range(REPEATS):
            plain_s.append(_cpu_s(plain, asked))
            hybrid_s.append(_cpu_s(hybrid, asked))
        cost, more = min(plain_s) * 1e6, min(hybrid_s) * 1e6
        rows.append(Hybrid(blocks, round(cost, 1), round(more, 1), round(more / cost, 2)))
    return rows


def _filled(prompts: list[Prompt], *, is_hybrid: bool) -> View:
    settings = Settings()
    view = View(settings)
    for number, pod in enumerate(PODS):
        key, decoder = StreamKey("m", pod, 0), WireDecoder(settings.limits.wire)
        state = StreamState("m", settings.hash_seed)
        view.open(key)
        for events in _batches(random.Random(number), [(prompt.seed, prompt.held[pod]) for prompt in prompts], is_hybrid=is_hybrid):
            change = state.apply(decoder.decode(encoded(events).data).events, 0.0)
            view.append(key, state.shape, change)
    return view


def _batches(rng: random.Random, prefixes: list[tuple[int, int]], *, is_hybrid: bool) -> Iterator[list[Event]]:
    """A batch per prompt: in a hybrid model the window group announces the same blocks, and keeps the last ones."""
    for seed, blocks in prefixes:
        if not blocks:
            continue
        tokens = prompt_tokens(seed, blocks)[: blocks * BLOCK_SIZE]
        hashes = [rng.getrandbits(64) for _ in range(blocks)]
        full = stored(hashes, None, tokens)
        if not is_hybrid:
            yield [full]
            continue
        window = {**full, "group_idx": 1, "kv_cache_spec_kind": "sliding_window", "kv_cache_spec_sliding_window": WINDOW}
        yield [full, window, {**removed(hashes[:-WINDOW_BLOCKS]), "group_idx": 1}]


def _verify(view: View, pool: list[Prompt], asked: list[queries.Prompt]) -> None:
    """Raises RuntimeError where an answer is not what was published."""
    for prompt, query in zip(pool, asked, strict=True):
        matched = {pod.pod: pod.ranks[0].match.matched_blocks for pod in view.score(query)}
        if matched != prompt.held:
            raise RuntimeError(f"{prompt} was published, the index answered {matched}")


def _cpu_s(view: View, asked: list[queries.Prompt]) -> float:
    """Seconds of CPU for one query, the mean of all."""
    began_s = time.process_time()
    for _ in range(ROUNDS):
        for query in asked:
            view.score(query)
    return (time.process_time() - began_s) / (ROUNDS * len(asked))

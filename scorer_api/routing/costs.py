"""What it costs to send a prompt to a pod: how long its first token takes, and how long others have to wait for it.

    cost_s = (1 + OTHERS_SHARE) * uncached tokens / rate + load_s
    load_s = queued tokens / rate                                  what has to be computed before this prompt
           + KV_PRESSURE_S * ((usage - KV_FREE) / (1 - KV_FREE))²  what has to be evicted, or preempted, to make room
           + DECODE_STEP_S * running * (1 + output tokens)         what each step takes longer for those that it is shared with

`rate`: the pod's prefill rate in tokens/s. `usage`: the part of its cache that requests use, with what was sent there since that was measured; in
cost_s also with what this request will need, its uncached tokens and its answer. Each is a part of the tokens that the cache has room for, so it
counts where the engine tells how many these are, and no usage is more than 1. A figure that a pod does not tell is the mean of those that others
tell, so that it neither draws all requests nor gets none; where nobody tells it is a figure to start from, the same for all.
"""

import math
from collections.abc import Sequence

from msgspec import Struct

from indexer.engines.load import Load

# Who comes after a prompt waits until it is computed; without that a burst with the same new prefix would be computed on every pod, each as soon
# done with it as the first. 1: as if one more waited.
OTHERS_SHARE = 1.0
# A prompt waits where nobody said how long prompts are: that of a chat with a system prompt.
PROMPT_TOKENS_PRIOR = 1_024
# Tokens of an answer where the request does not say: a short one, so that running requests count, and a long prompt counts for more.
OUTPUT_TOKENS_PRIOR = 128
# What one more running request adds to a step: some 5 ms for 50 of them, as engines of present-day accelerators show it.
DECODE_STEP_S = 0.0001
# Up to here a cache has room; beyond it blocks of others have to go, and near 1 running requests are preempted and computed again.
KV_FREE = 0.8
# What a preempted request costs, about: its whole prompt again, and the wait for room.
KV_PRESSURE_S = 2.0
# A rate outside of this is no rate of any engine.
RATE_MIN, RATE_MAX = 1.0, 1e9
# No cache has room for more tokens.
KV_TOKENS_MAX = 1e12


class Busy(Struct, frozen=True, gc=False):
    """How busy a pod is, every figure filled in. `waiting_tokens`: of the prompts in its queue. `kv_tokens`: infinite where nobody tells."""

    waiting_tokens: float
    running: float
    kv_usage: float
    rate: float
    kv_tokens: float = math.inf

    def pressure_s(self, more_tokens: float) -> float:
        """What a cache costs that has no room for so many tokens more."""
        usage = self.kv_usage + more_tokens / self.kv_tokens
        if usage <= KV_FREE:
            return 0.0
        pressure = (min(1.0, usage) - KV_FREE) / (1 - KV_FREE)
        return KV_PRESSURE_S * pressure * pressure

    def costs_s(self, uncached_tokens: float, output_tokens: int | None, own_tokens: float, own_count: int) -> tuple[float, float]:
        """cost_s and load_s, see the module. `own_…`: what was sent there since and is in no figure of the engine's yet."""
        output = OUTPUT_TOKENS_PRIOR if output_tokens is None else output_tokens
        wait_s = (self.waiting_tokens + own_tokens) / self.rate + DECODE_STEP_S * (self.running + own_count) * (1 + output)
        cost_s = (1 + OTHERS_SHARE) * uncached_tokens / self.rate + wait_s
        needed = own_tokens + uncached_tokens + output
        if self.kv_usage + needed / self.kv_tokens <= KV_FREE:
            return cost_s, wait_s
        return cost_s + self.pressure_s(needed), wait_s + self.pressure_s(own_tokens)


def fill(loads: Sequence[Load | None], rate: float) -> list[Busy]:
    """What to take for each pod. None: nothing is known of it. `rate`: what to start from, in tokens/s."""
    known = [load for load in loads if load is not None]
    if not known:
        return [Busy(0.0, 0.0, 0.0, rate)] * len(loads)
    prompt_tokens, _ = _completed([load.prompt_tokens_mean for load in known], 0.0, RATE_MAX, PROMPT_TOKENS_PRIOR)
    kv_usages, kv_usage = _completed([load.kv_usage for load in known], 0.0, 1.0, 0.0)
    rates, rate = _completed([load.prefill_tokens_per_s for load in known], RATE_MIN, RATE_MAX, rate)
    rooms, room = _completed([load.kv_tokens for load in known], 1.0, KV_TOKENS_MAX, math.inf)
    waiting = [max(0, load.waiting) * tokens for load, tokens in zip(known, prompt_tokens, strict=True)]
    running = [max(0, load.running) for load in known]
    told = map(Busy, waiting, running, kv_usages, rates, rooms)
    unknown = Busy(_mean(waiting), _mean(running), kv_usage, rate, room)
    return [unknown if load is None else next(told) for load in loads]


def _completed(figures: Sequence[float | None], least: float, most: float, prior: float) -> tuple[list[float], float]:
    """One figure of every pod, and its mean, which stands for what a pod does not tell or no engine can have; the prior where nobody tells."""
    told = [figure if figure is not None and least <= figure <= most else None for figure in figures]
    sound = [figure for figure in told if figure is not None]
    mean = _mean(sound) if sound else prior
    return [mean if figure is None else figure for figure in told], mean


def _mean(figures: Sequence[float]) -> float:
    return math.fsum(figures) / len(figures)

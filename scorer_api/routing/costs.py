"""The cost of sending a prompt to a pod: the time to its first token, and the time that others wait for it.

    cost_s = (1 + others + SLOWED_SHARE * slowed) * uncached tokens / rate
           + QUEUE_SLOWED_SHARE * slowed * queued tokens / rate + load_s
           + SPREAD_S * min(SPREAD_MAX, running / (mean + SPREAD_RUNNING))
    others = OTHERS_SHARE + BUSY_SHARE * busy + QUEUE_SHARE * delayed + EVICTION_SHARE * renewed
    load_s = queued tokens / rate                                  prefill work ahead of this prompt
           + KV_PRESSURE_S * ((usage - KV_FREE) / (1 - KV_FREE))²  eviction and preemption to make room
           + DECODE_STEP_S * running * (1 + output tokens)         slower steps, which running requests share

queued tokens, `busy`, `renewed`: see `PodQueue`. `slowed`: running requests, of which those that were sent there and are not announced count a
tenth. `rate`: the pod's prefill rate in tokens/s. `delayed`: prompts in its queue, or in the shortest queue of all pods where that is longer: what is
computed twice takes time from all. `usage`: the part of its cache that requests use, 0 to 1, plus what was sent there since the measurement; in
cost_s also plus this request's uncached tokens and its answer. Tokens count towards the usage only if the engine says how many its cache holds.
`mean`: running requests per pod, or infinite if no engine reports them.
A figure that a pod's engine does not report is the mean of the other pods', so that the pod gets neither all requests nor none. If no engine reports
it, all pods get the same prior.
"""

import itertools
import math
from collections.abc import Sequence

from msgspec import Struct

from indexer.engines.load import Load

# Requests behind a prompt wait until it is computed. Without this share, a burst with the same new prefix would be computed on every pod, since each
# would finish it as soon as the first. 1: as if one other request waited.
OTHERS_SHARE = 1.25
# So many more for a pod that is busy with prompts all the time. One that has time to spare may compute a prefix that another pod has, too.
BUSY_SHARE = 8.0
# What was sent lately may be more than a pod can compute. That is in its queue.
BUSY_MAX = 2.0
# The same for each request that is delayed: those that wait, and about half as many that come before the queue is empty.
QUEUE_SHARE = 1.5
# What is computed takes room in the cache from what may be needed again: the sooner, the less time what is there has been there. In place of a prompt
# that a pod with an older cache could have taken, another one will be computed again.
EVICTION_SHARE = 5.0
# A cache that is renewed more often keeps little anyway.
RENEWED_MAX = 2.0
# A running request's next tokens wait while prompts are computed: those that are queued, and this one.
SLOWED_SHARE = 0.2
# Those that are queued are computed whoever is sent: they count for less.
QUEUE_SLOWED_SHARE = 0.08
# One whose own prompt is still to be computed counts for a part of one that generates: those that wait for the same prefix gain by it.
PENDING_SHARE = 0.1
# Length of a waiting prompt if no engine reports the mean: a chat with a system prompt.
PROMPT_TOKENS_PRIOR = 1_024
# Tokens of an answer if the request does not say: short, so that running requests count, but a long prompt counts for more.
OUTPUT_TOKENS_PRIOR = 128
# What one more running request adds to a decode step: on present accelerators, 50 of them add some 5 ms.
DECODE_STEP_S = 0.0001
# A prompt brings others: the next turns of its chat, and those with the same prefix, which will go where it goes. So a pod with more running requests
# than others costs more than this prompt takes there. Without it, all chats that begin with one system prompt go to the first pods that have it.
SPREAD_S = 1.0
# A few running requests make little difference. Where no engine says how many there are, none do: they are not counted as done before they expire.
SPREAD_RUNNING = 4.0
# A pod with more than this share of the mean costs no more. With OTHERS_SHARE it says that a burst of one new prefix is computed once.
SPREAD_MAX = 0.75
# Above this usage a cache evicts blocks of others; near 1 it preempts running requests, which are computed again.
KV_FREE = 0.8
# About the cost of a preemption: the whole prompt again, and the wait for room.
KV_PRESSURE_S = 2.0
# Reported rates outside of this range are ignored.
RATE_MIN, RATE_MAX = 1.0, 1e9
# Reported cache sizes above this are ignored.
KV_TOKENS_MAX = 1e12


class PodQueue(Struct, frozen=True, gc=False):
    """A pod's queue as it is now, by what was sent there, what it announced and what its engine said.

    `tokens`: those that it has to compute before a prompt that comes now. `waiting`: prompts in the queue. `pending`: requests from here whose
    prompts it has not announced. `new_tokens`, `new_count`: requests that the engine's figures do not include yet, see `Queues.ahead`. `busy`: what
    was sent there lately, to what it can compute in that time. `renewed`: the part of its cache that what was sent there of late takes.
    """

    tokens: float = 0.0
    waiting: float = 0.0
    pending: int = 0
    new_tokens: float = 0.0
    new_count: float = 0
    busy: float = 0.0
    renewed: float = 0.0


class LoadEstimate(Struct, frozen=True, gc=False):
    """A pod's load without gaps. `waiting`: prompts in its queue; `waiting_tokens`: those of their tokens that are not in the cache.

    `kv_tokens`, `running_mean`: infinite if no engine reports it.
    """

    waiting_tokens: float
    running: float
    kv_usage: float
    rate: float
    kv_tokens: float = math.inf
    waiting: float = 0.0
    running_mean: float = math.inf

    def pressure_s(self, more_tokens: float) -> float:
        """The cost of making room for `more_tokens` tokens in the cache."""
        usage = self.kv_usage + more_tokens / self.kv_tokens
        if usage <= KV_FREE:
            return 0.0
        pressure = (min(1.0, usage) - KV_FREE) / (1 - KV_FREE)
        return KV_PRESSURE_S * pressure * pressure

    def costs_s(self, uncached_tokens: float, output_tokens: int | None, queue: PodQueue, delayed: float) -> tuple[float, float]:
        """cost_s and load_s, see the module."""
        output = OUTPUT_TOKENS_PRIOR if output_tokens is None else output_tokens
        running = max(0.0, self.running + queue.new_count)
        # Where no engine says what runs, nothing is known to: what was sent there may be done.
        slowed = 0.0 if self.running_mean == math.inf else max(0.0, running - (1 - PENDING_SHARE) * queue.pending)
        queued_s, uncached_s = queue.tokens / self.rate, uncached_tokens / self.rate
        wait_s = queued_s + DECODE_STEP_S * running * (1 + output)
        others = OTHERS_SHARE + BUSY_SHARE * min(BUSY_MAX, queue.busy) + QUEUE_SHARE * delayed
        others += EVICTION_SHARE * min(RENEWED_MAX, queue.renewed)
        cost_s = (1 + others + SLOWED_SHARE * slowed) * uncached_s + QUEUE_SLOWED_SHARE * slowed * queued_s + wait_s
        cost_s += SPREAD_S * min(SPREAD_MAX, running / (self.running_mean + SPREAD_RUNNING))
        needed = queue.new_tokens + uncached_tokens + output
        if self.kv_usage + needed / self.kv_tokens <= KV_FREE:
            return cost_s, wait_s
        return cost_s + self.pressure_s(needed), wait_s + self.pressure_s(queue.new_tokens)


def estimate_loads(loads: Sequence[Load | None], rate: float) -> list[LoadEstimate]:
    """A load without gaps for each pod. None: nothing is known of the pod. `rate`: the prior in tokens/s."""
    known = [load for load in loads if load is not None]
    if not known:
        return [LoadEstimate(0.0, 0.0, 0.0, rate)] * len(loads)
    means = [load.prompt_tokens_mean if load.uncached_tokens_mean is None else load.uncached_tokens_mean for load in known]
    prompt_tokens, _ = _fill_gaps(means, 0.0, RATE_MAX, PROMPT_TOKENS_PRIOR)
    kv_usages, kv_usage = _fill_gaps([load.kv_usage for load in known], 0.0, 1.0, 0.0)
    rates, rate = _fill_gaps([load.prefill_tokens_per_s for load in known], RATE_MIN, RATE_MAX, rate)
    rooms, room = _fill_gaps([load.kv_tokens for load in known], 1.0, KV_TOKENS_MAX, math.inf)
    waiting = [max(0, load.waiting) for load in known]
    waiting_tokens = [count * tokens for count, tokens in zip(waiting, prompt_tokens, strict=True)]
    running = [max(0, load.running) for load in known]
    running_mean = _mean(running)
    estimates = map(LoadEstimate, waiting_tokens, running, kv_usages, rates, rooms, waiting, itertools.repeat(running_mean))
    unknown = LoadEstimate(_mean(waiting_tokens), running_mean, kv_usage, rate, room, _mean(waiting), running_mean)
    return [unknown if load is None else next(estimates) for load in loads]


def _fill_gaps(figures: Sequence[float | None], least: float, most: float, prior: float) -> tuple[list[float], float]:
    """One figure of every pod, and its mean. The mean, or else the prior, replaces figures that are missing or outside of `least` to `most`."""
    valid = [figure if figure is not None and least <= figure <= most else None for figure in figures]
    reported = [figure for figure in valid if figure is not None]
    mean = _mean(reported) if reported else prior
    return [mean if figure is None else figure for figure in valid], mean


def _mean(figures: Sequence[float]) -> float:
    return math.fsum(figures) / len(figures)

"""Derives a pod's load from the text of its engine's metrics.

Some proxies and exporters write `_` in place of the `:` after the engine's name, as TensorRT-LLM itself does. Names here have the `:`.

Engines count since their start. The prefill rate, the mean length of prompts and the share of them that the cache had come from the growth of these
counters between two scrapes.

Prompt tokens per second say little of how fast an engine computes prompts: it may have been idle, or busy with answers. So the rate is measured per
request, where the engine reports how long prompts took. Requests that run at the same time slow each other, so most measurements are too low, and the
rate is a high one of the last. Where the engine reports no such time, only what it computed between two scrapes that both saw requests wait counts.
"""

from collections import deque
from collections.abc import Mapping
from math import isfinite
from typing import Final

from msgspec import Struct
from prometheus_client.samples import Sample

from indexer.engines.load import Load
from indexer.metrics_text import read_samples

# vLLM's names, names of older vLLM, SGLang's, TensorRT-LLM's. The first one that an engine has counts. Data-parallel ranks are separate series.
RUNNING: Final = ("vllm:num_requests_running", "sglang:num_running_reqs", "trtllm:num_requests_running")
WAITING: Final = ("vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason", "sglang:num_queue_reqs", "trtllm:num_requests_waiting")
KV_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage", "trtllm:kv_cache_utilization")
REQUESTS: Final = ("vllm:request_prompt_tokens_count", "vllm:request_success_total", "sglang:num_requests_total", "trtllm:request_success_total")
PROMPT_TOKENS: Final = (
    *("vllm:request_prompt_tokens_sum", "vllm:prompt_tokens_total", "sglang:prompt_tokens_total"),
    "trtllm:prompt_tokens_total",
)
ALL_TOKENS: Final = ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total")
# A request that waits counts as a hit in each step in which it is not admitted: prefix_cache_hits may exceed what was taken from the cache.
CACHED_TOKENS: Final = (
    *("vllm:prompt_tokens_cached_total", "vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total"),
    "sglang:cached_tokens_total",
)
PREFILL_TOKENS: Final = ("vllm:request_prefill_kv_computed_tokens_sum",)
PREFILL_SECONDS: Final = ("vllm:request_prefill_time_seconds_sum",)
# How many tokens the cache has room for. vLLM reports that in labels.
CACHE_CONFIG: Final = "vllm:cache_config_info"
KV_TOKENS: Final = (CACHE_CONFIG, "sglang:max_total_num_tokens")
KV_BLOCKS: Final = ("trtllm:kv_cache_max_blocks",)
KV_BLOCK_TOKENS: Final = ("trtllm:kv_cache_tokens_per_block",)
_NAMES: Final = (
    *(*RUNNING, *WAITING, *KV_USAGE, *REQUESTS, *PROMPT_TOKENS, *ALL_TOKENS, *CACHED_TOKENS, *PREFILL_TOKENS, *PREFILL_SECONDS),
    *(*KV_TOKENS, *KV_BLOCKS, *KV_BLOCK_TOKENS),
)
_CANONICAL: Final = {spelling: name for name in _NAMES for spelling in (name, name.replace(":", "_"))}
# Ranks of one scheduler, and the processes that they run in, report the same figures. Data-parallel ranks have schedulers of their own.
DP_RANK: Final = "dp_rank"
PROCESS: Final = "pid"

# Longer numbers in labels are ignored.
DIGITS_MAX = 15
# Fewer tokens between two scrapes say little about the engine's speed.
RATE_TOKENS_MIN = 256
# Weight of a new figure in the moving average.
NEWER = 0.3
# The rate is what this share of the last measurements stays below: the highest may be anything.
RATE_SHARE = 0.9
# The same of an engine that reports no times: it counts a prompt when it is computed, which may take longer than the time between two scrapes.
BUSY_RATE_SHARE = 0.5
RATES_KEPT = 64


class _Counts(Struct, frozen=True):
    """The engine's counters, None for those that it does not have. `waiting`: requests."""

    at_s: float
    waiting: float
    requests: float | None
    prompt_tokens: float | None
    all_tokens: float | None
    cached_tokens: float | None
    prefill_tokens: float | None
    prefill_s: float | None


class LoadMeter:
    """Turns successive scrapes of one pod's metrics into loads."""

    def __init__(self) -> None:
        self._before: _Counts | None = None
        self._rates: deque[float] = deque(maxlen=RATES_KEPT)
        self._prompt_tokens: float | None = None
        self._uncached_share: float | None = None

    def read(self, text: str, at_s: float, newer: Mapping[str, list[float]] | None = None) -> Load:
        """The load at `at_s` of the monotonic clock, when `text` arrived. `newer`: series that replace those of the text.

        Raises ValueError if they contain no load.
        """
        values = _values(text) | dict(newer or {})
        running, waiting = _sum(values, RUNNING), _sum(values, WAITING)
        if running is None or waiting is None:
            raise ValueError(f"neither {RUNNING[0]} nor {RUNNING[1]} with what waits, so these are the metrics of no known engine")
        counts = _Counts(
            at_s, waiting, *(_sum(values, names) for names in (REQUESTS, PROMPT_TOKENS, ALL_TOKENS, CACHED_TOKENS, PREFILL_TOKENS, PREFILL_SECONDS))
        )
        self._learn(counts)
        usage = _mean(values, KV_USAGE)
        kv_usage = None if usage is None else min(1.0, max(0.0, usage))
        kv_tokens = _sum(values, KV_TOKENS) or _product(_sum(values, KV_BLOCKS), _mean(values, KV_BLOCK_TOKENS)) or None
        uncached = None if self._prompt_tokens is None or self._uncached_share is None else self._prompt_tokens * self._uncached_share
        requests = None if counts.requests is None else counts.requests + running + waiting
        return Load(round(running), round(waiting), kv_usage, self._prompt_tokens, self._rate(), kv_tokens, uncached, requests)

    def _rate(self) -> float | None:
        if not self._rates:
            return None
        assert self._before is not None
        ranked, share = sorted(self._rates), BUSY_RATE_SHARE if self._before.prefill_s is None else RATE_SHARE
        return ranked[round(share * (len(ranked) - 1))]

    def _learn(self, now: _Counts) -> None:
        before, self._before = self._before, now
        # At the first scrape, and after a restart of the engine, its totals are all there is.
        requests, tokens = now.requests, now.prompt_tokens
        if before is not None:
            more, longer = _growth(before.requests, now.requests), _growth(before.prompt_tokens, now.prompt_tokens)
            if more is not None and longer is not None:
                requests, tokens = more, longer
        if requests and tokens:
            self._prompt_tokens = _mixed(self._prompt_tokens, tokens / requests)
        if before is None:
            return
        prompts, uncached = _growth(before.all_tokens, now.all_tokens), _uncached(before, now)
        if prompts and uncached is not None:
            self._uncached_share = _mixed(self._uncached_share, max(0.0, uncached / prompts))
        if (rate := _rate(before, now)) is not None:
            self._rates.append(rate)


def _rate(before: _Counts, now: _Counts) -> float | None:
    """Prompt tokens computed per second, None if they are too few."""
    tokens, seconds = _growth(before.prefill_tokens, now.prefill_tokens), _growth(before.prefill_s, now.prefill_s)
    if now.prefill_s is None:
        tokens = _uncached(before, now)
        seconds = now.at_s - before.at_s if before.waiting and now.waiting else None
    return tokens / seconds if tokens is not None and tokens >= RATE_TOKENS_MIN and seconds else None


def _uncached(before: _Counts, now: _Counts) -> float | None:
    """Prompt tokens that were computed."""
    prompts, cached = _growth(before.all_tokens, now.all_tokens), _growth(before.cached_tokens, now.cached_tokens)
    return None if prompts is None or cached is None else prompts - cached


def _growth(before: float | None, now: float | None) -> float | None:
    """None if a value is unknown, or the engine was restarted and counts from zero again."""
    return None if before is None or now is None or now < before else now - before


def _mixed(known: float | None, newer: float) -> float:
    return newer if known is None else known + NEWER * (newer - known)


def _values(text: str) -> dict[str, list[float]]:
    """The values of the known series, by name, one for each scheduler. Raises ValueError for text in another format."""
    found: dict[str, dict[frozenset[tuple[str, str]], float]] = {}
    for sample in read_samples(text, _CANONICAL.__contains__):
        name = _CANONICAL[sample.name]
        value = _kv_tokens(sample.labels) if name == CACHE_CONFIG else sample.value
        if isfinite(value) and value >= 0:
            of_schedulers = found.setdefault(name, {})
            scheduler = _scheduler(sample)
            of_schedulers[scheduler] = max(value, of_schedulers.get(scheduler, 0.0))
    return {name: list(of_schedulers.values()) for name, of_schedulers in found.items()}


def _scheduler(sample: Sample) -> frozenset[tuple[str, str]]:
    """The labels that tell apart what is to be added up."""
    return frozenset((name, value) for name, value in sample.labels.items() if name == DP_RANK or not (name.endswith("_rank") or name == PROCESS))


def _kv_tokens(labels: Mapping[str, str]) -> float:
    """The cache's size in tokens by the labels of vLLM's cache configuration, 0 if they do not contain it."""
    return _number(labels, "kv_cache_size_tokens") or _number(labels, "num_gpu_blocks") * _number(labels, "block_size")


def _number(labels: Mapping[str, str], name: str) -> float:
    word = labels.get(name, "")
    return float(word) if word.isascii() and word.isdigit() and len(word) <= DIGITS_MAX else 0.0


def _found(values: Mapping[str, list[float]], names: tuple[str, ...]) -> list[float] | None:
    return next((values[name] for name in names if name in values), None)


def _mean(values: Mapping[str, list[float]], names: tuple[str, ...]) -> float | None:
    found = _found(values, names)
    return None if found is None else sum(found) / len(found)


def _product(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other


def _sum(values: Mapping[str, list[float]], names: tuple[str, ...]) -> float | None:
    found = _found(values, names)
    return None if found is None else sum(found)

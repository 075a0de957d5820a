"""Derives a pod's load from the text of its engine's /metrics.

Engines count since their start. The prefill rate and the mean length of prompts come from the growth of these counters between two scrapes.
"""

from collections.abc import Mapping
from math import isfinite
from typing import Final

from msgspec import Struct

from indexer.engines.load import Load
from indexer.metrics_text import read_samples

# vLLM's names, names of older vLLM, SGLang's. The first one that an engine has counts. Data-parallel ranks are separate series.
RUNNING: Final = ("vllm:num_requests_running", "sglang:num_running_reqs")
WAITING: Final = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
KV_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
REQUESTS: Final = ("vllm:request_prompt_tokens_count", "vllm:request_success_total", "sglang:num_requests_total")
PROMPT_TOKENS: Final = ("vllm:request_prompt_tokens_sum", "vllm:prompt_tokens_total", "sglang:prompt_tokens_total")
ALL_TOKENS: Final = ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total")
CACHED_TOKENS: Final = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total", "sglang:cached_tokens_total")
PREFILL_TOKENS: Final = ("vllm:request_prefill_kv_computed_tokens_sum",)
PREFILL_SECONDS: Final = ("vllm:request_prefill_time_seconds_sum",)
# How many tokens the cache has room for. vLLM reports that in labels.
CACHE_CONFIG: Final = "vllm:cache_config_info"
KV_TOKENS: Final = (CACHE_CONFIG, "sglang:max_total_num_tokens")
_NAMES: Final = frozenset(
    (*RUNNING, *WAITING, *KV_USAGE, *REQUESTS, *PROMPT_TOKENS, *ALL_TOKENS, *CACHED_TOKENS, *PREFILL_TOKENS, *PREFILL_SECONDS, *KV_TOKENS)
)

# Longer numbers in labels are ignored.
DIGITS_MAX = 15
# Fewer tokens between two scrapes say little about the engine's speed.
RATE_TOKENS_MIN = 256
# Weight of a new figure in the moving average.
NEWER = 0.3


class _Counts(Struct, frozen=True):
    """The engine's counters, None for those that it does not have."""

    at_s: float
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
        self._tokens_per_s: float | None = None
        self._prompt_tokens: float | None = None

    def read(self, text: str, at_s: float) -> Load:
        """The load at `at_s` of the monotonic clock, when `text` arrived. Raises ValueError if the text contains no load."""
        values = _values(text)
        running, waiting = _sum(values, RUNNING), _sum(values, WAITING)
        if running is None or waiting is None:
            raise ValueError(f"neither {RUNNING[0]} nor {RUNNING[1]} with what waits, so these are the metrics of no known engine")
        counts = _Counts(
            at_s, *(_sum(values, names) for names in (REQUESTS, PROMPT_TOKENS, ALL_TOKENS, CACHED_TOKENS, PREFILL_TOKENS, PREFILL_SECONDS))
        )
        self._learn(counts)
        usage = _found(values, KV_USAGE)
        kv_usage = None if usage is None else min(1.0, max(0.0, sum(usage) / len(usage)))
        kv_tokens = _sum(values, KV_TOKENS) or None
        return Load(round(running), round(waiting), kv_usage, self._prompt_tokens, self._tokens_per_s, kv_tokens)

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
        rate = None if before is None else _rate(before, now)
        if rate is not None:
            self._tokens_per_s = _mixed(self._tokens_per_s, rate)


def _rate(before: _Counts, now: _Counts) -> float | None:
    """Prompt tokens computed per second, None if they are too few.

    Measured per request if the engine reports how long each took, where requests that run at the same time slow each other; and over the time between
    the scrapes, in which the engine may have been idle. Both underestimate what it can do, so the larger counts.
    """
    rates = []
    tokens, seconds = _growth(before.prefill_tokens, now.prefill_tokens), _growth(before.prefill_s, now.prefill_s)
    if tokens is not None and seconds and tokens >= RATE_TOKENS_MIN:
        rates.append(tokens / seconds)
    prompts, cached = _growth(before.all_tokens, now.all_tokens), _growth(before.cached_tokens, now.cached_tokens)
    passed_s = now.at_s - before.at_s
    if prompts is not None and cached is not None and passed_s > 0 and prompts - cached >= RATE_TOKENS_MIN:
        rates.append((prompts - cached) / passed_s)
    return max(rates, default=None)


def _growth(before: float | None, now: float | None) -> float | None:
    """None if a value is unknown, or the engine was restarted and counts from zero again."""
    return None if before is None or now is None or now < before else now - before


def _mixed(known: float | None, newer: float) -> float:
    return newer if known is None else known + NEWER * (newer - known)


def _values(text: str) -> dict[str, list[float]]:
    """The values of the known series, by name. Raises ValueError for text in another format."""
    found: dict[str, list[float]] = {}
    for sample in read_samples(text, _NAMES.__contains__):
        value = _kv_tokens(sample.labels) if sample.name == CACHE_CONFIG else sample.value
        if isfinite(value) and value >= 0:
            found.setdefault(sample.name, []).append(value)
    return found


def _kv_tokens(labels: Mapping[str, str]) -> float:
    """The cache's size in tokens by the labels of vLLM's cache configuration, 0 if they do not contain it."""
    return _number(labels, "kv_cache_size_tokens") or _number(labels, "num_gpu_blocks") * _number(labels, "block_size")


def _number(labels: Mapping[str, str], name: str) -> float:
    word = labels.get(name, "")
    return float(word) if word.isascii() and word.isdigit() and len(word) <= DIGITS_MAX else 0.0


def _found(values: Mapping[str, list[float]], names: tuple[str, ...]) -> list[float] | None:
    return next((values[name] for name in names if name in values), None)


def _sum(values: Mapping[str, list[float]], names: tuple[str, ...]) -> float | None:
    found = _found(values, names)
    return None if found is None else sum(found)

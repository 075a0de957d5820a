"""From the text of an engine's /metrics to its pod's load.

Engines count since they started; how fast one computes prompts, and how long prompts are, is what these counts grew by between two looks.
"""

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Final

from msgspec import Struct
from prometheus_client.parser import text_string_to_metric_families

from indexer.engines.load import Load

# vLLM's names, older ones of it, SGLang's: what of this an engine has. Data-parallel ranks are series of their own.
RUNNING: Final = ("vllm:num_requests_running", "sglang:num_running_reqs")
WAITING: Final = ("vllm:num_requests_waiting", "sglang:num_queue_reqs")
KV_USAGE: Final = ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage")
REQUESTS: Final = ("vllm:request_prompt_tokens_count", "vllm:request_success_total", "sglang:num_requests_total")
PROMPT_TOKENS: Final = ("vllm:request_prompt_tokens_sum", "vllm:prompt_tokens_total", "sglang:prompt_tokens_total")
ALL_TOKENS: Final = ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total")
CACHED_TOKENS: Final = ("vllm:prefix_cache_hits_total", "vllm:gpu_prefix_cache_hits_total", "sglang:cached_tokens_total")
PREFILL_TOKENS: Final = ("vllm:request_prefill_kv_computed_tokens_sum",)
PREFILL_SECONDS: Final = ("vllm:request_prefill_time_seconds_sum",)
# How many tokens the cache has room for. vLLM says so in labels.
CACHE_CONFIG: Final = "vllm:cache_config_info"
KV_TOKENS: Final = (CACHE_CONFIG, "sglang:max_total_num_tokens")
_NAMES: Final = frozenset(
    (*RUNNING, *WAITING, *KV_USAGE, *REQUESTS, *PROMPT_TOKENS, *ALL_TOKENS, *CACHED_TOKENS, *PREFILL_TOKENS, *PREFILL_SECONDS, *KV_TOKENS)
)

# A number of tokens with more is none.
DIGITS_MAX = 15
# Less than this computed between two looks says more about the rest of what the engine did than about its speed.
RATE_TOKENS_MIN = 256
# A newer figure counts so much against what was known.
NEWER = 0.3


class _Counts(Struct, frozen=True):
    """What an engine counted since it started, None where it does not."""

    at_s: float
    requests: float | None
    prompt_tokens: float | None
    all_tokens: float | None
    cached_tokens: float | None
    prefill_tokens: float | None
    prefill_s: float | None


class LoadMeter:
    """Reads one pod's metrics again and again."""

    def __init__(self) -> None:
        self._before: _Counts | None = None
        self._tokens_per_s: float | None = None
        self._prompt_tokens: float | None = None

    def read(self, text: str, at_s: float) -> Load:
        """The load that `text`, which came at this time of the monotonic clock, tells of. Raises ValueError where it tells of none."""
        values = _values(text)
        running, waiting = _sum(values, RUNNING), _sum(values, WAITING)
        if running is None or waiting is None:
            raise ValueError(f"neither {RUNNING[0]} nor {RUNNING[1]} with what waits, so these are metrics of no engine that is known here")
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
        # At the first look, and of a new process, which counts from zero, all that it did is what there is to go by.
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
    """Prompt tokens computed a second, None where too few were.

    Per request where the engine tells how long each took, which counts what ran beside it as slowness of its own; and over the whole time between
    the looks, in which the engine may have had nothing to do. Both are no more than it can do: the larger counts.
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
    """None where nothing is known, or a new process counts from zero again."""
    return None if before is None or now is None or now < before else now - before


def _mixed(known: float | None, newer: float) -> float:
    return newer if known is None else known + NEWER * (newer - known)


def _values(text: str) -> dict[str, list[float]]:
    """The values of the series that matter, by name. Raises ValueError for what is no text of metrics."""
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families("\n".join(_lines(text)) + "\n"):
        for sample in family.samples:
            value = _kv_tokens(sample.labels) if sample.name == CACHE_CONFIG else sample.value
            if isfinite(value) and value >= 0:
                found.setdefault(sample.name, []).append(value)
    return found


def _kv_tokens(labels: Mapping[str, str]) -> float:
    """What the labels of vLLM's cache configuration say, newer ones outright; 0 where they do not, which they put as None."""
    return _number(labels, "kv_cache_size_tokens") or _number(labels, "num_gpu_blocks") * _number(labels, "block_size")


def _number(labels: Mapping[str, str], name: str) -> float:
    word = labels.get(name, "")
    return float(word) if word.isascii() and word.isdigit() and len(word) <= DIGITS_MAX else 0.0


def _lines(text: str) -> Iterator[str]:
    """Reading all of them would take ten milliseconds: an engine has thousands."""
    for line in text.splitlines():
        if line.startswith(("vllm:", "sglang:")) and line.partition("{")[0].partition(" ")[0] in _NAMES:
            yield line


def _found(values: Mapping[str, list[float]], names: tuple[str, ...]) -> list[float] | None:
    return next((values[name] for name in names if name in values), None)


def _sum(values: Mapping[str, list[float]], names: tuple[str, ...]) -> float | None:
    found = _found(values, names)
    return None if found is None else sum(found)

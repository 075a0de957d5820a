"""Reads the iteration statistics that TensorRT-LLM answers to `GET /metrics`: a JSON list, from which each request takes what is in it.

Source: `tensorrt_llm/serve`. The list is empty if the engine computed nothing since the last request, or if it keeps no statistics at all
(`enable_iter_perf_stats`).
"""

from typing import Final

import msgspec
from msgspec import Struct

# An iteration may take longer than the interval of scrapes. After this many empty lists in a row the engine computes nothing.
EMPTY_MAX = 3


class KvCacheStats(Struct, frozen=True, rename="camel"):
    """Blocks of the cache."""

    max_num_blocks: float = 0
    used_num_blocks: float = 0
    tokens_per_block: float = 0


class IterationStats(Struct, frozen=True, rename="camel"):
    """One iteration."""

    num_active_requests: float
    num_queued_requests: float
    kv_cache_stats: KvCacheStats | None = None

    @property
    def series(self) -> dict[str, list[float]]:
        """The same as series of the engine's Prometheus metrics."""
        found = {"trtllm:num_requests_running": [self.num_active_requests], "trtllm:num_requests_waiting": [self.num_queued_requests]}
        cache = self.kv_cache_stats
        if cache is not None and cache.max_num_blocks > 0:
            found["trtllm:kv_cache_utilization"] = [cache.used_num_blocks / cache.max_num_blocks]
            found["trtllm:kv_cache_max_blocks"] = [cache.max_num_blocks]
            found["trtllm:kv_cache_tokens_per_block"] = [cache.tokens_per_block]
        return found


_decode: Final = msgspec.json.Decoder(list[IterationStats]).decode


def is_iteration_stats(answer: bytes) -> bool:
    """Whether an engine answered with JSON instead of Prometheus text."""
    return answer.lstrip()[:1] == b"["


class IterationStatsReader:
    """Remembers the last iteration of one engine, since an answer is empty while the engine computes nothing."""

    def __init__(self) -> None:
        self._last: IterationStats | None = None
        self._empty = 0

    def read(self, answer: bytes) -> dict[str, list[float]]:
        """The newest series, empty if the engine has reported no iteration so far. Raises ValueError for other JSON."""
        try:
            stats = _decode(answer)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"no iteration statistics: {error}") from None
        if stats:
            self._last, self._empty = stats[-1], 0
        elif self._last is not None:
            self._empty += 1
            if self._empty >= EMPTY_MAX:
                self._last = msgspec.structs.replace(self._last, num_active_requests=0, num_queued_requests=0)
        return {} if self._last is None else self._last.series

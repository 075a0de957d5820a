"""A pod's load, as its engine reports it."""

from msgspec import Struct


class Load(Struct, frozen=True):
    """The load at one moment.

    `running`, `waiting`: requests. `kv_usage`: the part of the cache's blocks that requests use, 0 to 1. `prompt_tokens_mean`: tokens per prompt.
    `prefill_tokens_per_s`: rate of computing prompts while nothing else slows it. `kv_tokens`: capacity of the cache. `uncached_tokens_mean`: tokens
    per prompt that the cache did not have. `requests`: that the engine got since its start. The last six are None if the engine does not report
    them, or not yet.
    """

    running: int
    waiting: int
    kv_usage: float | None = None
    prompt_tokens_mean: float | None = None
    prefill_tokens_per_s: float | None = None
    kv_tokens: float | None = None
    uncached_tokens_mean: float | None = None
    requests: float | None = None

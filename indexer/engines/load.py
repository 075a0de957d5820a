"""How busy a pod is, by what its engine says."""

from msgspec import Struct


class Load(Struct, frozen=True):
    """One pod at one moment.

    `running`, `waiting`: requests. `kv_usage`: part of the cache's blocks that requests are using now, 0 to 1. `prompt_tokens_mean`: tokens of a
    prompt. `prefill_tokens_per_s`: how fast it computes prompts. `kv_tokens`: tokens that its cache has room for.
    The last four are None where the engine does not tell, or not yet.
    """

    running: int
    waiting: int
    kv_usage: float | None = None
    prompt_tokens_mean: float | None = None
    prefill_tokens_per_s: float | None = None
    kv_tokens: float | None = None

"""The workloads. Each is near what eight pods can do, or beyond it for a while: far below that all policies are alike."""

from collections.abc import Callable
from pathlib import Path

from msgspec import Struct

from scorer_api.fleet.fleet import Workload
from scorer_api.fleet.pod import PodModel
from scorer_api.fleet.workloads import Chats, ChatShape, documents, hot_weights, shared_prefixes, trace, zipf_weights

PODS = 8
# 2 H100s with a model of 32 billion parameters, as llm-d's guide to precise prefix routing publishes it.
KV_TOKENS = 307_328
LADDER_RATES = (4, 8, 12, 16, 20, 24, 28, 32)


class Scenario(Struct, frozen=True):
    """`workload`: made of a seed."""

    name: str
    about: str
    workload: Callable[[int], Workload]
    model: PodModel = PodModel(KV_TOKENS)


def _prefixes(rate: float, seconds: float, groups: int, weights: list[float]) -> Callable[[int], Workload]:
    return lambda seed: shared_prefixes(
        [(rate, seconds)], groups=groups, prompts=0, prefix=6_000, question=800, answer=300, seed=seed, weights=weights
    )


SCENARIOS = (
    Scenario(
        "ladder",
        "100 prefixes of 6,000 tokens, rates rising to twice of what the fleet can do",
        lambda seed: shared_prefixes(
            [(rate, 12.0) for rate in LADDER_RATES], groups=100, prompts=0, prefix=6_000, question=1_200, answer=1_000, seed=seed
        ),
    ),
    Scenario("chat", "520 users in chats of six turns", lambda seed: Chats(520, ChatShape(1_000, 3_000, 300, 400, 6, 5.0), 120.0, seed=seed)),
    Scenario("agents", "60 agents, 20 steps each", lambda seed: Chats(60, ChatShape(4_000, 2_000, 800, 120, 20, 1.0), 120.0, seed=seed)),
    Scenario("hot", "60 prefixes, one of which has half of all requests", _prefixes(16.0, 80.0, 60, hot_weights(60, 0.5))),
    Scenario("zipf", "200 prefixes, Zipf", _prefixes(16.0, 80.0, 200, zipf_weights(200))),
    Scenario("one prompt", "a system prompt that all share", _prefixes(24.0, 60.0, 1, [1.0])),
    Scenario(
        "documents",
        "retrieval: three of 300 documents in any order",
        lambda seed: documents([(6.0, 90.0)], documents=300, pieces=3, piece=2_000, system=500, question=200, answer=200, seed=seed),
    ),
)


def of_trace(path: Path, kv_tokens: int, most: int) -> Scenario:
    """A trace on pods with so many tokens of cache, prompts that need more than half of it left out."""
    return Scenario(
        f"{path.stem.split('_')[0]} {kv_tokens / 1e6:g}M",
        f"the first {most:,} requests of {path.name}, {kv_tokens / 1e6:g} M tokens a pod",
        lambda seed: trace(path, most=most, tokens_max=kv_tokens // 2),
        PodModel(kv_tokens),
    )

"""The workloads. Each is near what eight pods can do, or beyond it for a while: far below that all policies are alike."""

from functools import partial
from pathlib import Path
from typing import Protocol

from msgspec import Struct

from scorer_api.fleet.fleet import Workload
from scorer_api.fleet.pod import PodModel
from scorer_api.fleet.workloads import Chats, ChatShape, documents, hot_weights, shared_prefixes, trace, zipf_weights

PODS = 8
# 2 H100s with a model of 32 billion parameters, as llm-d's guide to precise prefix routing publishes it.
KV_TOKENS = 307_328
H100_PAIR = PodModel(KV_TOKENS)
LADDER_RATES = (4, 8, 12, 16, 20, 24, 28, 32)
BURSTS = ((6, 12.0), (40, 4.0)) * 5


class MakeWorkload(Protocol):
    def __call__(self, *, seed: int) -> Workload: ...


class Scenario(Struct, frozen=True):
    """`workload`: made of a seed, in any process."""

    name: str
    about: str
    workload: MakeWorkload
    model: PodModel = H100_PAIR


_prefixes = partial(shared_prefixes, prompts=0, prefix=6_000, question=800, answer=300)

LADDER = Scenario(
    "ladder",
    "100 prefixes of 6,000 tokens, rates rising to twice of what the fleet can do",
    partial(shared_prefixes, [(rate, 12.0) for rate in LADDER_RATES], groups=100, prompts=0, prefix=6_000, question=1_200, answer=1_000),
)


def chats(users: int) -> Scenario:
    """So many users in chats of six turns."""
    return Scenario("chat", f"{users} users in chats of six turns", partial(Chats, users, ChatShape(1_000, 3_000, 300, 400, 6, 5.0), 120.0))


# About as many as the caches have room for.
CHAT = chats(480)
HOT = Scenario(
    "hot", "60 prefixes, one of which has half of all requests", partial(_prefixes, [(16.0, 80.0)], groups=60, weights=hot_weights(60, 0.5))
)
ZIPF = Scenario("zipf", "200 prefixes, Zipf", partial(_prefixes, [(16.0, 80.0)], groups=200, weights=zipf_weights(200)))
ONE_PROMPT = Scenario("one prompt", "a system prompt that all share", partial(_prefixes, [(24.0, 60.0)], groups=1))
SCENARIOS = (
    LADDER,
    CHAT,
    Scenario("agents", "60 agents, 20 steps each", partial(Chats, 60, ChatShape(4_000, 2_000, 800, 120, 20, 1.0), 120.0)),
    HOT,
    ZIPF,
    ONE_PROMPT,
    Scenario(
        "documents",
        "retrieval: three of 300 documents in any order",
        partial(documents, [(6.0, 90.0)], documents=300, pieces=3, piece=2_000, system=500, question=200, answer=200),
    ),
    Scenario("bursts", "80 prefixes, quiet but for five bursts of four seconds", partial(_prefixes, BURSTS, groups=80)),
)


def of_trace(path: Path, kv_tokens: int, most: int) -> Scenario:
    """A trace on pods with so many tokens of cache, prompts that need more than half of it left out."""
    return Scenario(
        f"{path.stem.split('_')[0]} {kv_tokens / 1e6:g}M",
        f"the first {most:,} requests of {path.name}, {kv_tokens / 1e6:g} M tokens a pod",
        partial(_trace, path, most, kv_tokens // 2),
        PodModel(kv_tokens),
    )


def _trace(path: Path, most: int, tokens_max: int, *, seed: int) -> Workload:
    """It is the same for every seed."""
    return trace(path, most=most, tokens_max=tokens_max)

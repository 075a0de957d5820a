"""Chats sent where the service says find more of themselves in the engines' caches than chats sent by turns, by the engines' own counters."""

import re
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import pytest

from tests.living_engine.comparison import Comparison, random_text
from tests.living_engine.vllm_server import MODEL, VllmServer

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]

# An odd number, so that by turns every chat changes its engine each time; and so few that both engines together can hold them all.
CHATS = 5
TURNS = 4


def hits(engine: VllmServer) -> int:
    """Tokens that the engine took from its cache so far, by its own counter."""
    text = engine.http.get("/metrics").text
    return round(sum(float(found) for found in re.findall(r"^vllm:prefix_cache_hits_total(?:\{.*\})? (\S+)$", text, re.MULTILINE)))


def all_hits(comparison: Comparison) -> int:
    return sum(map(hits, comparison.engines.values()))


def cached_tokens(comparison: Comparison, policy: str, seed: int) -> int:
    """What the engines took from their caches for the chats of this seed, each turn of which was picked by this policy."""
    random = Random(seed)
    for engine in comparison.engines.values():
        engine.reset_prefix_cache()
    service, before = comparison.service, all_hits(comparison)
    said = 0
    chats: list[list[dict[str, str]]] = [[] for _ in range(CHATS)]
    with ThreadPoolExecutor(CHATS) as pool:
        for turn in range(TURNS):
            for number, chat in enumerate(chats):
                chat.append({"role": "user", "content": f"{number} {turn}: {random_text(random, 30)}"})
            # All are picked before the first is sent: what was picked a moment before counts.
            picks = [route(comparison, chat, policy) for chat in chats]
            sent = [pool.submit(comparison.engines[pick["pod"]].chat, chat, max_tokens=16) for pick, chat in zip(picks, chats, strict=True)]
            for chat, pick, answer in zip(chats, picks, sent, strict=True):
                completion = answer.result()
                said += completion.cached_tokens
                chat.append({"role": "assistant", "content": completion.text})
                told = service.http.post(f"{service.url}/v1/route/done", json={"id": pick["id"]})
                assert told.status_code == 200, told.text
    counted = all_hits(comparison) - before
    assert counted == said, "the engines' counters and their answers say the same"
    return counted


def route(comparison: Comparison, chat: list[dict[str, str]], policy: str) -> dict[str, Any]:
    service, engine = comparison.service, next(iter(comparison.engines.values()))
    asked = {"model": MODEL, "token_ids": engine.tokenize(chat), "policy": policy, "output_tokens_expected": 16}
    response = service.http.post(f"{service.url}/v1/route", json=asked)
    assert response.status_code == 200, response.text
    picked: dict[str, Any] = response.json()
    return picked


def test_routed_chats_reach_half_as_much_again_of_the_caches_as_chats_by_turns(comparison: Comparison) -> None:
    by_turns = cached_tokens(comparison, "round-robin", 70)
    routed = cached_tokens(comparison, "cost", 71)
    print(f"cached tokens: {routed:,} routed, {by_turns:,} by turns")  # noqa: T201 - shown with -rP
    assert by_turns > 0
    assert routed >= 1.5 * by_turns, f"{routed} routed, {by_turns} by turns"

"""Hints, by what is known of streams and prompts. Each is produced by real engines in test_explain.py; here are their bounds."""

import pytest
from msgspec.structs import replace

from indexer.core.names import Trust
from scorer_api.explain.hints import HintCode, hints
from scorer_api.explain.reasons import PromptFacts, StreamFacts
from scorer_api.index.traces import PodTrace, RankTrace

STREAM = StreamFacts("pod", 0, 7, Trust.LIVE, True, 8, 0, 0, {"gpu": 9}, 1.0, None, highest_token=1_000)
PROMPT = PromptFacts("token_ids", 90, highest_token=500, asked=10, unmatched=0)
RANK = RankTrace(0, Trust.LIVE, 16, 5, [], 0.0)


def codes(prompt: PromptFacts = PROMPT, stream: StreamFacts = STREAM, rank: RankTrace = RANK) -> list[HintCode]:
    return [hint.code for hint in hints([PodTrace("pod", [rank])], [stream], prompt)]


@pytest.mark.parametrize(("asked", "unmatched", "is_told"), [(0, 0, True), (5, 5, True), (5, 4, False), (1_000, 63, False), (1_000, 64, True)])
def test_prompts_without_any_match_are_told_of_when_they_are_all_or_many(asked: int, unmatched: int, is_told: bool) -> None:
    assert (HintCode.NOTHING_MATCHES in codes(replace(PROMPT, asked=asked, unmatched=unmatched))) is is_told


def test_nothing_is_told_of_prompts_where_nothing_is_held_or_something_matches() -> None:
    never = replace(PROMPT, asked=0, highest_token=9_999)
    assert codes(never) == [HintCode.FOREIGN_TOKENS, HintCode.NOTHING_MATCHES]
    assert codes(never, replace(STREAM, blocks={"gpu": 0})) == []
    assert codes(never, rank=replace(RANK, runs=[("gpu", 1)])) == []


@pytest.mark.parametrize(("highest", "is_foreign"), [(2_000, False), (2_001, True), (None, False)])
def test_ids_are_foreign_above_twice_the_highest(highest: int | None, is_foreign: bool) -> None:
    assert (HintCode.FOREIGN_TOKENS in codes(replace(PROMPT, highest_token=highest))) is is_foreign


def test_one_lost_last_batch_is_no_wrong_topic() -> None:
    assert codes(stream=replace(STREAM, gaps=1, batches=8, replayed=8)) == []
    assert codes(stream=replace(STREAM, gaps=2, batches=8, replayed=8)) == [HintCode.ONLY_REPLAYS]
    assert codes(stream=replace(STREAM, gaps=2, batches=9, replayed=8)) == []


def test_a_hint_names_a_few_pods_and_counts_the_rest() -> None:
    streams = [replace(STREAM, pod=f"pod-{number}", connected=False) for number in range(5) for _ in range(2)]
    (hint,) = hints([PodTrace("pod", [RANK])], streams, replace(PROMPT, unmatched=0))
    assert hint.detail.startswith("pod-0, pod-1, pod-2 and 2 more: ")


def test_the_hint_about_hashes_is_about_hashes() -> None:
    (hint,) = hints([PodTrace("pod", [RANK])], [STREAM], replace(PROMPT, source="block_hashes", highest_token=None, asked=0))
    assert "PYTHONHASHSEED" in hint.detail

"""Reasons for where a match ends: cases worked out by hand, and walks against the naive model."""

import random

import pytest
from msgspec.structs import replace

from indexer.config.settings import Settings
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.groups import CacheShape
from indexer.core.names import StreamKey, Trust
from scorer_api.explain.reasons import PodLoad, PromptFacts, Reason, StreamFacts, describe_model, explain_pod, explain_rank
from scorer_api.index.prompt import Prompt
from scorer_api.index.removals import Removal
from scorer_api.index.traces import PodTrace, RankTrace
from scorer_api.index.view import View
from tests.reference import Copy, Layer, Rank, Text
from tests.scorer_api.index.contents import keys, tokens_of

LIVE = RankTrace(0, Trust.LIVE, 16, 5, [("gpu", 2), ("cpu", 1)], 0.5)
PROMPT = PromptFacts("token_ids", 90)
STREAM = StreamFacts("pod", 0, 7, Trust.LIVE, True, 8, 0, 0, {"gpu": 9}, 1.0, None)
WITH_LORA = replace(PROMPT, lora_name="l", adapters=frozenset({"k"}))
NONE = replace(LIVE, runs=[])


@pytest.mark.parametrize(
    ("seen", "prompt", "stream", "reason", "block"),
    [
        (LIVE, PROMPT, STREAM, Reason.NEVER_STORED, 3),
        (replace(LIVE, runs=[("gpu", 5)]), PROMPT, STREAM, Reason.WHOLE_PROMPT, None),
        (replace(LIVE, runs=[], usable_blocks=0), PROMPT, STREAM, Reason.PROMPT_TOO_SHORT, None),
        (replace(LIVE, is_remote=True), PROMPT, STREAM, Reason.REMOTE_ONLY, 3),
        (replace(LIVE, removal=Removal(6)), PROMPT, STREAM, Reason.REMOVED, 3),
        (replace(LIVE, is_remote=True, removal=Removal(6)), PROMPT, STREAM, Reason.REMOTE_ONLY, 3),
        (RankTrace(0, Trust.LIVE, None, 0, [], 0.0), PROMPT, STREAM, Reason.NOTHING_ANNOUNCED, 0),
        (RankTrace(0, Trust.PARTIAL, None, 0, [], 0.0), PROMPT, STREAM, Reason.NOTHING_ANNOUNCED, 0),
        (RankTrace(0, Trust.STALE, None, 0, [], 0.0), PROMPT, STREAM, Reason.STREAM_STALE, 0),
        (RankTrace(0, Trust.EXPIRED, None, 0, [], 0.0), PROMPT, STREAM, Reason.STREAM_EXPIRED, 0),
        (replace(LIVE, trust=Trust.STALE), PROMPT, STREAM, Reason.STREAM_STALE, 3),
        (replace(LIVE, trust=Trust.PARTIAL), PROMPT, STREAM, Reason.STREAM_PARTIAL, 3),
        (replace(LIVE, trust=Trust.STALE, removal=Removal(6)), PROMPT, STREAM, Reason.REMOVED, 3),
        (LIVE, PROMPT, replace(STREAM, other_block_size=32), Reason.OTHER_BLOCK_SIZE, 3),
        (NONE, WITH_LORA, STREAM, Reason.LORA_UNKNOWN, 0),
        (NONE, replace(WITH_LORA, adapters=frozenset({"l"})), STREAM, Reason.NEVER_STORED, 0),
        (NONE, replace(WITH_LORA, knows_adapters=False), STREAM, Reason.NEVER_STORED, 0),
        (LIVE, WITH_LORA, STREAM, Reason.NEVER_STORED, 3),
        (LIVE, PROMPT, None, Reason.NEVER_STORED, 3),
    ],
)
def test_each_reason_has_its_case(seen: RankTrace, prompt: PromptFacts, stream: StreamFacts | None, reason: Reason, block: int | None) -> None:
    end = explain_rank(seen, prompt, stream)
    assert (end.reason, end.block) == (reason, block)
    assert end.detail


def test_a_removal_is_told_with_its_batch_where_that_is_known() -> None:
    known, unknown = (explain_rank(replace(LIVE, removal=Removal(sequence)), PROMPT) for sequence in (41, None))
    assert (known.sequence, unknown.sequence) == (41, None)
    assert "41" in known.detail
    assert "None" not in unknown.detail


def test_a_doubtful_stream_says_what_is_wrong_with_it() -> None:
    broken = replace(STREAM, last_error="replay endpoint tcp://x:1 does not answer")
    for trust in (Trust.STALE, Trust.PARTIAL):
        assert "tcp://x:1 does not answer" in explain_rank(replace(LIVE, trust=trust), PROMPT, broken).detail


def test_a_pod_has_the_figures_of_its_best_rank_and_all_ranks_by_number() -> None:
    pod = PodTrace("p", [replace(LIVE, rank=1), replace(LIVE, rank=0, runs=[], score=0.0)])
    made = explain_pod(pod, PROMPT, {1: STREAM}, PodLoad(3, 2, 0.25, 0.5))
    assert (made.rank, made.score, made.matched_blocks, made.matched_tokens) == (1, 0.5, 3, 48)
    assert [(rank.rank, rank.runs) for rank in made.ranks] == [(0, []), (1, [("gpu", 2), ("cpu", 1)])]
    assert made.why.startswith("best is rank 1: 3 of 5 blocks match; block 3 ")
    assert made.load == PodLoad(3, 2, 0.25, 0.5)


def test_about_the_model_are_its_block_sizes_adapters_and_last_events() -> None:
    pods = [PodTrace("p", [LIVE, replace(LIVE, rank=1, block_size=None)]), PodTrace("q", [replace(LIVE, block_size=8)])]
    ages = [replace(STREAM, last_batch_age_s=age) for age in (3.0, None, 2.0)]
    made = describe_model(pods, ages, WITH_LORA)
    assert (made.pods, made.block_sizes, made.adapters, made.last_event_age_s) == (2, [8, 16], ["k"], 2.0)
    assert describe_model([], [], PROMPT).last_event_age_s is None


# Against the naive model

TIERS = {"gpu": Tier.GPU, "cpu": Tier.CPU, "disk": Tier.DISK, "other": Tier.OTHER, "remote": Tier.REMOTE}


def runs_by_the_reference(rank: Rank, prompt: Text) -> list[tuple[str, int]]:
    """Block by block: the best tier of each, as long as there is one."""
    runs: list[tuple[str, int]] = []
    before = rank.match(Text(()))
    for length in range(rank.block_size + 1, len(prompt.tokens) + 1, rank.block_size):
        matched = rank.match(Text(prompt.tokens[:length]))
        grown = [tier for tier in matched if matched[tier] > before[tier]]
        if not grown:
            break
        (tier,) = grown
        runs.append((tier, runs.pop()[1] + 1 if runs and runs[-1][0] == tier else 1))
        before = matched
    return runs


@pytest.mark.parametrize("seed", range(40))
def test_runs_and_ends_are_those_of_the_naive_model(seed: int) -> None:
    """Blocks of a few letters come and go in all tiers; where the match ends, the block is remote, was removed, or was never there."""
    chance = random.Random(seed)
    view, stream = View(Settings()), StreamKey("m", "pod", 0)
    view.open(stream)
    view.set_trust(stream, Trust.LIVE)
    rank = Rank(Layer("full", 2), counts_copies=False)
    texts = ["".join(chance.choices("ab", k=6)) for _ in range(4)]
    removed: dict[Text, int] = {}
    for sequence in range(120):
        letters = chance.choice(texts)
        block = chance.randrange(len(letters))
        tier = chance.choice(list(TIERS))
        text = Text(tuple(ord(letter) for letter in letters for _ in range(2))).until(block + 1, 2)
        copy, key = Copy(tier, text, 0), keys(letters)[block]
        is_held = chance.random() < 0.7
        if not is_held and copy not in rank.copies:
            continue
        change = Change()
        change.sequence = sequence
        change.touched[TIERS[tier]][key] = is_held
        view.append(stream, CacheShape(2), change)
        if is_held:
            rank.hold(copy)
        else:
            rank.remove(copy)
            removed[text] = sequence
        asked = chance.choice(texts)
        prompt = Text((*(ord(letter) for letter in asked for _ in range(2)), 0))
        (pod,) = view.trace(Prompt("m", tokens_of(asked) + b"\0\0\0\0"))
        (seen,) = pod.ranks
        assert seen.runs == runs_by_the_reference(rank, prompt)
        assert seen.score == pytest.approx(rank.score(prompt))
        end = explain_rank(seen, PROMPT)
        if seen.matched_blocks == len(asked):
            assert end.reason is Reason.WHOLE_PROMPT
            continue
        ended = prompt.until(seen.matched_blocks + 1, 2)
        if any(copy == Copy("remote", ended, 0) for copy in rank.copies):
            assert end.reason is Reason.REMOTE_ONLY
        elif ended in removed:
            assert (end.reason, end.sequence) == (Reason.REMOVED, removed[ended])
        else:
            assert end.reason is Reason.NEVER_STORED

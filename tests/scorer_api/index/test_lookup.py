"""Which pods hold how much of a prompt: one walk over what the streams hold."""

import pytest
from xxhash import xxh3_64_intdigest

from indexer.config.settings import Settings
from indexer.core.groups import CacheShape
from indexer.core.names import Trust
from scorer_api.index.lookup import matched_by_rank
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View
from tests.scorer_api.index.contents import A1, CPU, REMOTE, ROOT, A, B, C, asked, holds, keys, matched, new_view, tokens_of


def test_pods_come_best_first_and_zeros_are_included() -> None:
    view = new_view(A, B, C)
    view.append(B, CacheShape(2), holds(*keys("XY")))
    view.append(C, CacheShape(2), holds(*keys("XYZ")))
    scores = view.score(asked("XYZ"))
    assert [(score.pod, score.ranks[0].match.matched_blocks, score.ranks[0].score) for score in scores] == [
        ("c", 3, 1.0),
        ("b", 2, 4 / 6),
        ("a", 0, 0.0),
    ]


def test_equal_pods_come_by_name() -> None:
    view = new_view(C, A, B)
    assert [score.pod for score in view.score(asked("X"))] == ["a", "b", "c"]


def test_only_the_pods_asked_for_are_in_the_answer() -> None:
    view = new_view(A, B, C)
    for stream in (A, B, C):
        view.append(stream, CacheShape(2), holds(*keys("X")))
    assert matched(view.score(asked("X"), ["b", "a", "unknown"])) == {"a": {"0": 1}, "b": {"0": 1}}
    assert view.score(asked("X"), []) == []


def test_the_last_token_is_never_reused() -> None:
    view = new_view(A)
    view.append(A, CacheShape(2), holds(*keys("XYZ")))
    (score,) = view.score(asked("XYZ", more=0))
    assert (score.ranks[0].match.matched_blocks, score.ranks[0].usable_blocks, score.ranks[0].score) == (2, 2, 4 / 5)


def test_a_prompts_last_block_is_read_from_below_the_gpu_where_the_engine_does_that() -> None:
    """It needs all blocks before it, and no token behind it; on the gpu it does not count."""
    reading, other = CacheShape(2, reads_whole_prompts=True), CacheShape(2)
    view = new_view(A, B, C)
    view.append(A, reading, holds(*keys("XYZ")))
    view.append(B, other, holds(*keys("XYZ")))
    view.append(C, reading, holds(keys("XYZ")[2]))
    for stream, shape in ((A, reading), (B, other), (C, reading)):
        view.append(stream, shape, holds(keys("XYZ")[2], tier=CPU))
    best, second, last = (score.ranks[0] for score in view.score(asked("XYZ", more=0)))
    assert (best.match.tiers, best.usable_blocks, best.score) == ((2, 1, 0, 0), 3, 1.0)
    assert (second.match.tiers, second.usable_blocks) == ((2, 0, 0, 0), 2)
    assert (last.match.matched_blocks, last.usable_blocks) == (0, 2)
    assert view.score(asked("XYZ"))[0].ranks[0].match.tiers == (3, 0, 0, 0), "with a token behind it the gpu's counts"
    trace = view.trace(asked("XYZ", more=0))[0].ranks[0]
    assert (trace.runs, trace.end, trace.cut_blocks) == ([("gpu", 2), ("cpu", 1)], 3, 0)


@pytest.mark.parametrize("tokens", [b"", b"X\0\0\0"])
def test_a_prompt_without_a_second_token_scores_0(tokens: bytes) -> None:
    view = new_view(A)
    view.append(A, CacheShape(1), holds(*keys("X", block_size=1)))
    (score,) = view.score(Prompt("m", tokens))
    assert (score.ranks[0].score, score.ranks[0].usable_blocks) == (0.0, 0)


def test_the_designs_example() -> None:
    """118 blocks of 16 tokens on the gpu, 2 in cpu memory, the next one remote; a prompt of 2,053 tokens."""
    view = new_view(A)
    chain = keys("X" * 128, block_size=16)
    view.append(A, CacheShape(16), holds(*chain[:118]))
    view.append(A, CacheShape(16), holds(*chain[118:120], tier=CPU))
    view.append(A, CacheShape(16), holds(chain[120], tier=REMOTE))
    view.append(A, CacheShape(16), holds(*chain[121:]))
    (score,) = view.score(asked("X" * 128, more=5, block_size=16))
    assert score.ranks[0].match.tiers == (118, 2, 0, 0)
    assert score.ranks[0].usable_blocks == 128
    assert score.ranks[0].score == pytest.approx((118 * 16 * 1.0 + 2 * 16 * 0.8) / 2052)


def test_ranks_share_nothing() -> None:
    view = new_view(A, A1)
    first, second, third = keys("XYZ")
    view.append(A, CacheShape(2), holds(first, third))
    view.append(A1, CacheShape(2), holds(first, second))
    (score,) = view.score(asked("XYZ"))
    assert [(rank.rank, rank.match.matched_blocks) for rank in score.ranks] == [(1, 2), (0, 1)]
    assert matched_by_rank(score.ranks) == {"0": 1, "1": 2}


def test_equal_ranks_come_by_number() -> None:
    (score,) = new_view(A1, A).score(asked("X"))
    assert [rank.rank for rank in score.ranks] == [0, 1]


def test_a_hash_seed_and_a_lora_name_are_part_of_every_key() -> None:
    view = View(Settings(hash_seed="seed"))
    view.open(A)
    view.append(A, CacheShape(2), holds(*keys("X", xxh3_64_intdigest(b"\x94\x01\xa4seed\xa1m\xa2ad"))))
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}}
    assert matched(view.score(Prompt("m", tokens_of("XX"), "ad"))) == {"a": {"0": 1}}


def test_extra_keys_are_part_of_a_prompt() -> None:
    view = new_view(A)
    first = xxh3_64_intdigest(tokens_of("X") + b"image", ROOT)
    view.append(A, CacheShape(2), holds(first, *keys("Y", first)))
    assert matched(view.score(asked("XY"))) == {"a": {"0": 0}}
    assert matched(view.score(Prompt("m", tokens_of("XYZ"), None, {0: b"image"}))) == {"a": {"0": 2}}
    assert matched(view.score(Prompt("m", tokens_of("XYZ"), None, {1: b"image"}))) == {"a": {"0": 0}}


def test_pods_of_one_model_may_differ_in_block_size() -> None:
    view = new_view(A, B)
    view.append(A, CacheShape(2), holds(*keys("XXYY", block_size=2)))
    view.append(B, CacheShape(4), holds(*keys("XY", block_size=4)))
    scores = view.score(asked("XY", block_size=4))
    assert matched(scores) == {"a": {"0": 4}, "b": {"0": 2}}
    assert [(score.ranks[0].block_size, score.ranks[0].usable_blocks, score.ranks[0].score) for score in scores] == [(2, 4, 1.0), (4, 2, 1.0)]
    assert len(list(view.indexes)) == 2


def test_a_middle_block_that_goes_ends_the_match_until_it_comes_back() -> None:
    view = new_view(A)
    chain = keys("WXYZ")
    view.append(A, CacheShape(2), holds(*chain))
    view.append(A, CacheShape(2), holds(gone=(chain[1],)))
    assert matched(view.score(asked("WXYZ"))) == {"a": {"0": 1}}
    view.append(A, CacheShape(2), holds(chain[1], tier=CPU))
    (score,) = view.score(asked("WXYZ"))
    assert score.ranks[0].match.tiers == (3, 1, 0, 0)


def test_a_ranks_score_says_how_far_it_can_be_relied_on() -> None:
    view = new_view(A)
    assert view.score(asked("X"))[0].ranks[0].trust is Trust.STALE
    view.set_trust(A, Trust.LIVE)
    assert view.score(asked("X"))[0].ranks[0].trust is Trust.LIVE
    view.drop(A)
    assert view.score(asked("X"))[0].ranks[0].trust is Trust.LIVE


def test_a_match_goes_on_over_the_ends_of_runs() -> None:
    view = new_view(A)
    chain = keys("X" * 150)
    view.append(A, CacheShape(2), holds(*chain))
    assert matched(view.score(asked("X" * 150))) == {"a": {"0": 150}}
    view.append(A, CacheShape(2), holds(gone=(chain[64],)))
    assert matched(view.score(asked("X" * 150))) == {"a": {"0": 64}}


class Recorded(dict[int, bytes]):
    """Extra keys that remember for which blocks they were asked."""

    def __init__(self) -> None:
        super().__init__({10**6: b"image"})
        self.asked: list[int] = []

    def get(self, block: int, default: bytes = b"") -> bytes:  # type: ignore[override]
        self.asked.append(block)
        return super().get(block, default)


def test_a_cold_prompt_costs_the_keys_of_one_run() -> None:
    view = new_view(A)
    view.append(A, CacheShape(2), holds(*keys("X" * 65)))
    cold, warm = Recorded(), Recorded()
    assert matched(view.score(Prompt("m", tokens_of("Y" * 1000), None, cold))) == {"a": {"0": 0}}
    assert cold.asked == list(range(64))
    assert matched(view.score(Prompt("m", tokens_of("X" * 65 + "Y" * 1000), None, warm))) == {"a": {"0": 65}}
    assert warm.asked == list(range(128))

"""What a scorer answers after what the streams' owners said.

A block's content is a letter, its tokens are that letter as often as the block size says.
"""

import struct
import time
from collections.abc import Callable

import pytest
from xxhash import xxh3_64_intdigest

from indexer.config.settings import Settings
from indexer.core.change import Change
from indexer.core.events import Tier
from indexer.core.names import StreamKey, Trust
from scorer_api.index.lookup import PodScore, matched_by_rank
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View

GPU, CPU, DISK, OTHER, REMOTE = Tier
# msgpack of [1, "", "m", nil].
ROOT = xxh3_64_intdigest(b"\x94\x01\xa0\xa1m\xc0")


def tokens_of(letters: str, block_size: int = 2) -> bytes:
    return b"".join(struct.pack("<I", ord(letter)) * block_size for letter in letters)


def keys(letters: str, root: int = ROOT, block_size: int = 2) -> list[int]:
    """The keys of all blocks of a prompt."""
    chain = [root]
    for letter in letters:
        chain.append(xxh3_64_intdigest(tokens_of(letter, block_size), chain[-1]))
    return chain[1:]


def holds(*held: int, tier: Tier = GPU, gone: tuple[int, ...] = ()) -> Change:
    made = Change()
    made.touched[tier].update(dict.fromkeys(held, True) | dict.fromkeys(gone, False))
    return made


def new_view(*streams: StreamKey) -> View:
    view = View(Settings())
    for stream in streams:
        view.open(stream)
    return view


def asked(letters: str, more: int = 1, block_size: int = 2) -> Prompt:
    """A prompt of these blocks and `more` tokens behind them."""
    return Prompt("m", tokens_of(letters, block_size) + b"\0\0\0\0" * more)


def matched(scores: list[PodScore]) -> dict[str, dict[str, int]]:
    return {score.pod: matched_by_rank(score.ranks) for score in scores}


A, A1, B, C = StreamKey("m", "a", 0), StreamKey("m", "a", 1), StreamKey("m", "b", 0), StreamKey("m", "c", 0)


def test_pods_come_best_first_and_zeros_are_included() -> None:
    view = new_view(A, B, C)
    view.append(B, 2, holds(*keys("XY")))
    view.append(C, 2, holds(*keys("XYZ")))
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
        view.append(stream, 2, holds(*keys("X")))
    assert matched(view.score(asked("X"), ["b", "a", "unknown"])) == {"a": {"0": 1}, "b": {"0": 1}}
    assert view.score(asked("X"), []) == []


def test_an_unknown_model_is_a_key_error() -> None:
    with pytest.raises(KeyError):
        new_view(A).score(Prompt("n", b""))


def test_the_last_token_is_never_reused() -> None:
    view = new_view(A)
    view.append(A, 2, holds(*keys("XYZ")))
    (score,) = view.score(asked("XYZ", more=0))
    assert (score.ranks[0].match.matched_blocks, score.ranks[0].usable_blocks, score.ranks[0].score) == (2, 2, 4 / 5)


@pytest.mark.parametrize("tokens", [b"", b"X\0\0\0"])
def test_a_prompt_without_a_second_token_scores_0(tokens: bytes) -> None:
    view = new_view(A)
    view.append(A, 1, holds(*keys("X", block_size=1)))
    (score,) = view.score(Prompt("m", tokens))
    assert (score.ranks[0].score, score.ranks[0].usable_blocks) == (0.0, 0)


def test_the_designs_example() -> None:
    """118 blocks of 16 tokens on the gpu, 2 in cpu memory, the next one remote; a prompt of 2,053 tokens."""
    view = new_view(A)
    chain = keys("X" * 128, block_size=16)
    view.append(A, 16, holds(*chain[:118]))
    view.append(A, 16, holds(*chain[118:120], tier=CPU))
    view.append(A, 16, holds(chain[120], tier=REMOTE))
    view.append(A, 16, holds(*chain[121:]))
    (score,) = view.score(asked("X" * 128, more=5, block_size=16))
    assert score.ranks[0].match.tiers == (118, 2, 0, 0)
    assert score.ranks[0].usable_blocks == 128
    assert score.ranks[0].score == pytest.approx((118 * 16 * 1.0 + 2 * 16 * 0.8) / 2052)


def test_ranks_share_nothing() -> None:
    view = new_view(A, A1)
    first, second, third = keys("XYZ")
    view.append(A, 2, holds(first, third))
    view.append(A1, 2, holds(first, second))
    (score,) = view.score(asked("XYZ"))
    assert [(rank.rank, rank.match.matched_blocks) for rank in score.ranks] == [(1, 2), (0, 1)]
    assert matched_by_rank(score.ranks) == {"0": 1, "1": 2}


def test_equal_ranks_come_by_number() -> None:
    (score,) = new_view(A1, A).score(asked("X"))
    assert [rank.rank for rank in score.ranks] == [0, 1]


def test_models_share_nothing() -> None:
    other = StreamKey("n", "a", 0)
    view = new_view(A, other)
    view.append(other, 2, holds(*keys("X")))
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}}
    assert view.models() == {"m": ["a"], "n": ["a"]}


def test_a_hash_seed_and_a_lora_name_are_part_of_every_key() -> None:
    view = View(Settings(hash_seed="seed"))
    view.open(A)
    view.append(A, 2, holds(*keys("X", xxh3_64_intdigest(b"\x94\x01\xa4seed\xa1m\xa2ad"))))
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}}
    assert matched(view.score(Prompt("m", tokens_of("XX"), "ad"))) == {"a": {"0": 1}}


def test_extra_keys_are_part_of_a_prompt() -> None:
    view = new_view(A)
    first = xxh3_64_intdigest(tokens_of("X") + b"image", ROOT)
    view.append(A, 2, holds(first, *keys("Y", first)))
    assert matched(view.score(asked("XY"))) == {"a": {"0": 0}}
    assert matched(view.score(Prompt("m", tokens_of("XYZ"), None, {0: b"image"}))) == {"a": {"0": 2}}
    assert matched(view.score(Prompt("m", tokens_of("XYZ"), None, {1: b"image"}))) == {"a": {"0": 0}}


def test_pods_of_one_model_may_differ_in_block_size() -> None:
    view = new_view(A, B)
    view.append(A, 2, holds(*keys("XXYY", block_size=2)))
    view.append(B, 4, holds(*keys("XY", block_size=4)))
    scores = view.score(asked("XY", block_size=4))
    assert matched(scores) == {"a": {"0": 4}, "b": {"0": 2}}
    assert [(score.ranks[0].block_size, score.ranks[0].usable_blocks, score.ranks[0].score) for score in scores] == [(2, 4, 1.0), (4, 2, 1.0)]
    assert len(list(view.indexes)) == 2


def test_a_stream_with_another_block_size_holds_nothing_of_the_old_one() -> None:
    view = new_view(A)
    view.append(A, 4, holds(*keys("X", block_size=4)))
    view.append(A, 2, holds(*keys("X")))
    (index,) = view.indexes
    assert (index.holders, view.score(asked("X"))[0].ranks[0].block_size) == (1, 2)


def test_a_middle_block_that_goes_ends_the_match_until_it_comes_back() -> None:
    view = new_view(A)
    chain = keys("WXYZ")
    view.append(A, 2, holds(*chain))
    view.append(A, 2, holds(gone=(chain[1],)))
    assert matched(view.score(asked("WXYZ"))) == {"a": {"0": 1}}
    view.append(A, 2, holds(chain[1], tier=CPU))
    (score,) = view.score(asked("WXYZ"))
    assert score.ranks[0].match.tiers == (3, 1, 0, 0)


def test_what_is_dropped_leaves_no_index_behind() -> None:
    view = new_view(A, B)
    view.append(A, 2, holds(*keys("X")))
    view.append(B, 2, holds(*keys("X")))
    view.drop(A)
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}, "b": {"0": 1}}
    (index,) = view.indexes
    assert index.holders == 1
    view.drop(B)
    view.drop(B)
    assert list(view.indexes) == []
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}, "b": {"0": 0}}
    assert view.score(asked("X"))[0].ranks[0].block_size is None


def test_a_stream_dropped_and_filled_again_has_no_ghosts() -> None:
    view = new_view(A, B)
    first, second = keys("XY")
    view.append(A, 2, holds(first, second))
    view.append(B, 2, holds(first))
    view.drop(A)
    view.append(A, 2, holds(first))
    assert matched(view.score(asked("XY"))) == {"a": {"0": 1}, "b": {"0": 1}}


def test_a_stream_opened_again_holds_nothing() -> None:
    view = new_view(A)
    view.append(A, 2, holds(*keys("X")))
    view.open(A)
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}}
    assert sum(index.holders for index in view.indexes) == 0


def test_a_closed_stream_is_forgotten() -> None:
    view = new_view(A, A1, B)
    view.append(A, 2, holds(*keys("X")))
    view.close(A)
    view.close(A)
    assert matched(view.score(asked("X"))) == {"a": {"1": 0}, "b": {"0": 0}}
    assert list(view.indexes) == []
    view.close(A1)
    assert view.models() == {"m": ["b"]}
    view.close(B)
    assert view.models() == {}
    view.close(B)


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
    view.append(A, 2, holds(*chain))
    assert matched(view.score(asked("X" * 150))) == {"a": {"0": 150}}
    view.append(A, 2, holds(gone=(chain[64],)))
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
    view.append(A, 2, holds(*keys("X" * 65)))
    cold, warm = Recorded(), Recorded()
    assert matched(view.score(Prompt("m", tokens_of("Y" * 1000), None, cold))) == {"a": {"0": 0}}
    assert cold.asked == list(range(64))
    assert matched(view.score(Prompt("m", tokens_of("X" * 65 + "Y" * 1000), None, warm))) == {"a": {"0": 65}}
    assert warm.asked == list(range(128))


def test_an_empty_index_is_never_left_by_a_changing_block_size() -> None:
    view = new_view(A)
    for block_size in (2, 4, 2, 8):
        view.append(A, block_size, holds(1))
    assert [index.holders for index in view.indexes] == [1]


# What a follower does with it


def test_what_is_held_apart_is_in_no_answer_until_it_is_exchanged() -> None:
    view = new_view(A, B)
    old, new = keys("XY"), keys("XZ")
    view.append(A, 2, holds(*old))
    view.append(B, 2, holds(*old))
    holding = view.hold_apart(A, 2)
    holding.apply(holds(*new))
    assert matched(view.score(asked("XY"))) == {"a": {"0": 2}, "b": {"0": 2}}
    assert matched(view.score(asked("XZ"))) == {"b": {"0": 1}, "a": {"0": 1}}
    given_back = view.exchange(A, holding)
    assert given_back is not None
    assert matched(view.score(asked("XY"))) == {"b": {"0": 2}, "a": {"0": 1}}
    assert matched(view.score(asked("XZ"))) == {"a": {"0": 2}, "b": {"0": 1}}
    (index,) = view.indexes
    assert index.holders == 6
    assert [given_back.give_back(1), given_back.give_back(1)] == [True, False]
    assert index.holders == 4
    assert matched(view.score(asked("XY"))) == {"b": {"0": 2}, "a": {"0": 1}}


class Listening:
    """Keeps which of some blocks it was told that they are held."""

    def __init__(self, *blocks: int) -> None:
        self.blocks = blocks
        self.held: list[tuple[StreamKey, list[bool]]] = []

    def on_change(self, stream: StreamKey, change: Change) -> None:
        raise AssertionError("nothing was appended")

    def on_drop(self, stream: StreamKey) -> None:
        raise AssertionError("nothing was dropped")

    def on_load(self, stream: StreamKey, is_held: Callable[[int], bool]) -> None:
        self.held.append((stream, [is_held(key) for key in self.blocks]))


def test_whoever_listens_is_told_of_what_is_loaded_at_once() -> None:
    view = new_view(A, B)
    old, new = keys("XY"), keys("XZ")
    view.append(A, 2, holds(*old))
    holding = view.hold_apart(A, 2)
    holding.apply(holds(*new))
    view.listener = listening = Listening(new[0], old[1], new[1])
    view.exchange(A, holding)
    view.exchange(B, None)
    assert listening.held == [(A, [True, False, True]), (B, [False, False, False])]


def test_a_holding_is_given_back_in_pieces_from_every_tier() -> None:
    view = new_view(A)
    holding = view.hold_apart(A, 2)
    for tier in Tier:
        holding.apply(holds(*keys("ABCDEFG"), tier=tier))
    pieces = 1
    while holding.give_back(4):
        pieces += 1
    assert pieces == 9, "35 of them, 4 at a time"
    assert list(view.indexes) == []


def test_an_exchange_for_another_block_size_or_for_nothing() -> None:
    view = new_view(A)
    view.append(A, 2, holds(*keys("X")))
    wide = view.hold_apart(A, 4)
    wide.apply(holds(*keys("X", block_size=4)))
    old = view.exchange(A, wide)
    assert old is not None
    assert not old.give_back(10)
    assert [rank.block_size for pod in view.score(asked("X", block_size=4)) for rank in pod.ranks] == [4]
    assert len(list(view.indexes)) == 1
    last = view.exchange(A, None)
    assert last is not None
    assert view.exchange(A, None) is None
    assert matched(view.score(asked("X"))) == {"a": {"0": 0}}
    assert not last.give_back(10)
    assert list(view.indexes) == []


def test_what_is_given_back_late_takes_nothing_from_a_model_that_came_anew() -> None:
    view = new_view(A)
    view.append(A, 2, holds(*keys("X")))
    late = view.exchange(A, None)
    view.close(A)
    view.open(A)
    view.append(A, 2, holds(*keys("X")))
    assert late is not None
    assert not late.give_back(10)
    assert matched(view.score(asked("X"))) == {"a": {"0": 1}}
    assert [index.holders for index in view.indexes] == [1]


def test_trust_counts_until_its_time_is_over() -> None:
    view = new_view(A, B)
    view.set_trust(A, Trust.PARTIAL, until_s=time.monotonic() + 3600)
    view.set_trust(B, Trust.LIVE, until_s=time.monotonic() - 1)
    assert (view.trust(A), view.trust(B)) == (Trust.PARTIAL, Trust.STALE)
    assert [(pod.pod, pod.ranks[0].trust) for pod in view.score(asked("X"))] == [("a", Trust.PARTIAL), ("b", Trust.STALE)]
    assert [view.count(trust) for trust in Trust] == [0, 1, 1, 0]
    view.set_trust(B, Trust.EXPIRED, until_s=time.monotonic() - 1)
    assert view.trust(B) is Trust.EXPIRED


def test_the_age_of_the_newest_word() -> None:
    view = new_view(A)
    assert view.age_s == 0.0
    now_s = time.monotonic()
    view.note_heartbeat(now_s - 5)
    view.note_heartbeat(now_s - 60)
    assert 5 <= view.age_s < 30
    view.note_heartbeat(now_s + 3600)
    assert view.age_s == 0.0

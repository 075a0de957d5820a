"""Scores that count speculative blocks, and what became of these blocks."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Protocol, get_args

from indexer.config.settings import Settings
from indexer.core.groups import CacheShape
from indexer.core.names import StreamKey
from scorer_api.index.lookup import Lookup, PodScore, RankScore
from scorer_api.index.prompt import Query, length_in_tokens
from scorer_api.index.scoring import Match, score_of, usable_blocks
from scorer_api.index.view import View
from scorer_api.routing.speculation import Rank, Speculation, SpeculativePrompt

BlocksOutcome = Literal["matched_held", "matched_gone", "new_announced", "new_unseen"]
BLOCKS_OUTCOMES: tuple[BlocksOutcome, ...] = get_args(BlocksOutcome)

# Block size of a prompt that goes to a pod before any pod has announced blocks: the usual one.
BLOCK_SIZE_PRIOR = 16

ExpectedTokens = Mapping[Rank, int]
"""Rank → how many of the prompt's usable tokens, from the first, it is expected to hold. A hit of its engine may be that long."""


class BlockCounters(Protocol):
    """Counts what became of the blocks of sampled prompts."""

    def blocks(self, outcome: BlocksOutcome, count: int) -> None: ...


class SpeculativeScores:
    """Joins the view's scores with the speculative blocks. It changes nothing in the view."""

    def __init__(self, settings: Settings, view: View, counters: BlockCounters) -> None:
        self._tier_weights = settings.tier_weights
        self._is_enabled = bool(settings.limits.routing.route_speculative_s)
        self._view = view
        self._counters = counters
        self.speculation = Speculation(settings.limits.routing.route_speculative_s, self._count_outcomes)
        if self._is_enabled:
            view.listener = self.speculation

    def score(self, prompt: Query, only: Collection[str] | None) -> tuple[list[PodScore], dict[Rank, int]]:
        """The scores as if speculative blocks were held, and how many of each rank's matched blocks are speculative.

        Raises KeyError for an unknown model.
        """
        lookup, scores = self._view.scored(prompt, only)
        expected = self.expected(lookup)
        speculative: dict[Rank, int] = {}
        if not expected:
            return scores, speculative
        for number, score in enumerate(scores):
            ranks = [self._raised(prompt, score.pod, rank, expected, speculative) for rank in score.ranks]
            scores[number] = PodScore(score.pod, sorted(ranks, key=lambda rank: (-rank.score, rank.rank)))
        scores.sort(key=lambda score: (-score.ranks[0].score, score.pod))
        return scores, speculative

    def _raised(self, prompt: Query, pod: str, rank: RankScore, expected: ExpectedTokens, speculative: dict[Rank, int]) -> RankScore:
        """One rank's score with its speculative blocks, whose number is noted in `speculative`. They count as held on the gpu."""
        block_size, match = rank.block_size, rank.match
        if block_size is None or not (more := speculative_tokens(pod, rank, expected) // block_size):
            return rank
        speculative[pod, rank.rank] = more
        gpu, *lower = match.tiers
        match = Match(match.matched_blocks + more, (gpu + more, *lower))
        score = score_of(match, length_in_tokens(prompt, block_size), block_size, self._tier_weights)
        return RankScore(rank.rank, match, score, block_size, rank.usable_blocks, rank.trust, rank.dropped_blocks)

    def expected(self, lookup: Lookup) -> ExpectedTokens:
        """What ranks are expected to hold of the prompt that was looked up."""
        expected: dict[Rank, int] = {}
        if lookup.prompt_keys is None:
            return expected  # engine hashes have no meaning outside of their stream
        model = lookup.query.model
        for cut in self.speculation.cuts(model):
            key_size = cut[0]
            usable = usable_blocks(lookup.prompt_keys.length, *cut)
            for (pod, number), blocks in self.speculation.match(model, cut, lookup.prompt_keys.all(*cut)).items():
                shape = self._view.shape(StreamKey(model, pod, number))
                tokens = min(blocks, usable) * key_size
                if shape is None:
                    # It has announced no blocks yet: all that was sent there counts, however it was cut.
                    expected[pod, number] = max(expected.get((pod, number), 0), tokens)
                elif shape.cut == cut:
                    expected[pod, number] = tokens - tokens % shape.alignment
        return expected

    def note_pick(self, request: str, lookup: Lookup, pod: str, rank: RankScore, now_s: float) -> bool:
        """From now on the picked rank is expected to hold this prompt's blocks, unless it already holds the last one. `request`: its id.

        Returns whether it is.
        """
        prompt_keys = lookup.prompt_keys
        if not self._is_enabled or prompt_keys is None:
            return False
        stream = StreamKey(lookup.query.model, pod, rank.rank)
        shape = self._view.shape(stream) or CacheShape(prompt_keys.longest or BLOCK_SIZE_PRIOR)
        keys = prompt_keys.all(*shape.cut)
        keys_of_hit = shape.alignment // shape.block_size
        if unused := len(keys) % keys_of_hit:
            # No hit ends with these, and not every group has a block that does.
            keys = keys[:-unused]
        if not keys or self._view.held(stream, keys[-1:]):
            return False
        self.speculation.add(request, stream, shape.cut, keys, rank.match.matched_blocks * keys_of_hit, now_s)
        return True

    def _count_outcomes(self, expected: SpeculativePrompt, keys: Sequence[int]) -> None:
        """Compare what a pick assumed of a prompt's blocks with what the rank holds now."""
        matched, new = keys[: expected.matched_blocks], keys[expected.matched_blocks :]
        held, announced = self._view.held(expected.stream, matched), self._view.held(expected.stream, new)
        self._counters.blocks("matched_held", held)
        self._counters.blocks("matched_gone", len(matched) - held)
        self._counters.blocks("new_announced", announced)
        self._counters.blocks("new_unseen", len(new) - announced)


def speculative_tokens(pod: str, rank: RankScore, expected: ExpectedTokens) -> int:
    """Tokens that a rank is expected to hold beyond its match: a multiple of its block size."""
    tokens = expected.get((pod, rank.rank), 0)
    if not tokens or rank.block_size is None:
        return tokens
    return max(0, tokens - (rank.dropped_blocks + rank.match.matched_blocks) * rank.block_size)

"""One walk along the blocks of a query, and all that is answered from it: scores, explanations, and keys for what is expected of pods.

tokens           one walk per prefix index of the model (block size); it serves all ranks in that index
engine hashes    one walk per rank, by the keys that its own stream has for the hashes

query ─▶ Walk(keys, steps) ─┬▶ RankScore, PodScore     how far each rank's match goes
                            └▶ RankTrace, PodTrace     the same, and what is known of the block at which it ends
"""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from indexer.core.events import Tier
from indexer.core.names import Trust
from scorer_api.index.engine_hashes import EngineHashes
from scorer_api.index.prefix_index import PrefixIndex, Step
from scorer_api.index.prompt import Prompt, PromptKeys, Query, length_in_tokens
from scorer_api.index.scoring import NO_MATCH, Match, first_runs, matches_of, runs_of, score_of, usable_blocks, without_last
from scorer_api.index.state import IndexedModel, IndexedStream, Pods
from scorer_api.index.traces import PodTrace, RankTrace


class RankScore(Struct, frozen=True):
    """What one rank of a pod holds of a query. `score`: 0 to 1. `block_size`: None while its stream announced no block.

    `dropped_blocks`: how many of the last matched blocks its engine computes again; they are in none of the other figures.
    """

    rank: int
    match: Match
    score: float
    block_size: int | None
    usable_blocks: int
    trust: Trust
    dropped_blocks: int = 0


class PodScore(Struct, frozen=True):
    """A pod's ranks, the best one first."""

    pod: str
    ranks: list[RankScore]


class Walk(Struct, frozen=True, gc=False):
    """A walk in one index. `keys`: the block keys up to its end, and maybe some beyond. `matches`: holder → match, for all that took part in it.

    `length`: the query's, in tokens. `usable_blocks`: how many of its blocks could match.
    """

    index: PrefixIndex
    keys: Sequence[int]
    steps: list[Step]
    matches: dict[int, Match]
    length: int
    usable_blocks: int


class Lookup:
    """The result for some pods of a model, all of one moment: `now_s`, by the monotonic clock."""

    def __init__(self, query: Query, model: IndexedModel, pods: Pods, hash_seed: str, weights: Sequence[float], now_s: float) -> None:
        self.query = query
        self.prompt_keys = (query.prepared or PromptKeys(query, hash_seed)) if isinstance(query, Prompt) else None
        """None for engine hashes: they mean nothing in other streams."""
        self._model = model
        self._pods = pods
        self._weights = weights
        self._now_s = now_s
        self._walks: dict[int | None, Walk] = {} if self.prompt_keys is None else self._walk_prompt(self.prompt_keys)

    def _walk_prompt(self, keys: PromptKeys) -> dict[int | None, Walk]:
        """Block size → walk of all ranks with that block size."""
        walks: dict[int | None, Walk] = {}
        for block_size, index in self._model.indexes.items():
            holders = [s.holder for ranks in self._pods.values() for s in ranks.values() if s.block_size == block_size and s.holder is not None]
            walks[block_size] = self._walk(index, block_size, holders, keys.runs(block_size), keys.computed(block_size))
        return walks

    def _walk_hashes(self, stream: IndexedStream) -> Walk | None:
        """The walk of one rank by its own keys for the hashes; None where it holds nothing."""
        if stream.block_size is None or stream.holder is None or not isinstance(self.query, EngineHashes):
            return None
        keys = [] if stream.hashes is None else stream.hashes.keys_of(self.query.hashes)
        return self._walk(self._model.indexes[stream.block_size], stream.block_size, [stream.holder], [keys], keys)

    def _walk(self, index: PrefixIndex, block_size: int, holders: list[int], runs: Iterable[list[int]], keys: Sequence[int]) -> Walk:
        steps = index.walk(sum(1 << holder for holder in holders), runs)
        length = length_in_tokens(self.query, block_size)
        return Walk(index, keys, steps, matches_of(holders, steps), length, usable_blocks(length, block_size))

    def scores(self) -> list[PodScore]:
        """Every pod, best first, equal ones by name."""
        scores = []
        walks = None if self.prompt_keys is None else self._walks
        for pod, ranks in self._pods.items():
            found = []
            for rank, stream in ranks.items():
                walk = self._walk_hashes(stream) if walks is None else walks.get(stream.block_size)
                found.append(self._score(rank, stream, walk))
            if len(found) > 1:
                found.sort(key=lambda rank: (-rank.score, rank.rank))
            scores.append(PodScore(pod, found))
        scores.sort(key=lambda pod: (-pod.ranks[0].score, pod.pod))
        return scores

    def _score(self, rank: int, stream: IndexedStream, walk: Walk | None) -> RankScore:
        trust, block_size, holder = stream.trust_at(self._now_s), stream.block_size, stream.holder
        if walk is None or block_size is None or holder is None:
            return RankScore(rank, NO_MATCH, 0.0, None, 0, trust)
        match, usable, dropped = walk.matches[holder], walk.usable_blocks, stream.dropped_blocks
        if dropped:
            match, usable = without_last(match, dropped), max(0, usable - dropped)
        return RankScore(rank, match, score_of(match, walk.length, block_size, self._weights), block_size, usable, trust, dropped)

    def traces(self) -> list[PodTrace]:
        """Every pod in the order of `scores`, and what is known of the block at which each rank's match ends."""
        traces = []
        for pod, ranks in self._pods.items():
            found = [self._trace(rank, stream) for rank, stream in ranks.items()]
            traces.append(PodTrace(pod, sorted(found, key=lambda trace: (-trace.score, trace.rank))))
        return sorted(traces, key=lambda pod: (-pod.ranks[0].score, pod.pod))

    def _trace(self, rank: int, stream: IndexedStream) -> RankTrace:
        walk = self._walk_hashes(stream) if self.prompt_keys is None else self._walks.get(stream.block_size)
        score = self._score(rank, stream, walk)
        if walk is None or stream.holder is None:
            return RankTrace(rank, score.trust, None, 0, [], 0.0, has_other_seed=stream.has_other_seed)
        runs = runs_of(stream.holder, walk.steps)
        end = sum(blocks for _, blocks in runs)
        key = walk.keys[end] if end < len(walk.keys) else None
        return RankTrace(
            rank,
            score.trust,
            score.block_size,
            score.usable_blocks,
            [(tier.word, blocks) for tier, blocks in first_runs(runs, score.match.matched_blocks)],
            score.score,
            is_remote=key is not None and walk.index.holds(stream.holder, Tier.REMOTE, key),
            removal=None if key is None else stream.removals.find(key),
            has_other_seed=stream.has_other_seed,
            dropped_blocks=stream.dropped_blocks,
            cut_blocks=end - score.match.matched_blocks,
        )


def matched_by_rank(ranks: Sequence[RankScore]) -> dict[str, int]:
    """Rank → matched blocks, in the order of ranks."""
    return {str(rank.rank): rank.match.matched_blocks for rank in sorted(ranks, key=lambda rank: rank.rank)}

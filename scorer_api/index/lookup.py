"""One walk along the blocks of a query, and all that is answered from it: scores, explanations, and keys for what is expected of pods.

tokens           one walk per prefix index of the model (key size); it serves all ranks in that index
engine hashes    one walk per rank, by the keys that its own stream has for the hashes

query ─▶ Walk(keys, steps) ─┬▶ RankScore, PodScore     how far each rank's match goes
                            └▶ RankTrace, PodTrace     the same, and what is known of the block at which it ends

A rank of a model with several KV-cache groups walks with the group that has all blocks of a hit; how much of that is one, the hit rule says.
"""

from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property

from msgspec import Struct

from indexer.core.events import Tier
from indexer.core.names import Trust
from scorer_api.index.engine_hashes import EngineHashes
from scorer_api.index.hits import HitRule, Span, is_hit, limit_of, longest_hit
from scorer_api.index.holders import Holders
from scorer_api.index.mask_walk import PreparedWalk, Step
from scorer_api.index.prefix_index import OWN_TIERS, PrefixIndex
from scorer_api.index.prompt import Prompt, PromptKeys, Query, length_in_tokens
from scorer_api.index.reach import NO_REACH, RankReach, reach_of
from scorer_api.index.scoring import (
    NO_LOWER,
    NO_MATCH,
    Match,
    cut_match,
    first_runs,
    matches_of,
    runs_of,
    score_of,
    usable_blocks,
    with_one_more,
    without_last,
)
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


class Walk:
    """A walk in one index. `keys`: the block keys up to its end, and maybe some beyond. `matches`: holder → match, for all that took part in it.

    `length`: the query's, in tokens. `usable_blocks`: how many keys could match.
    """

    def __init__(
        self,
        index: PrefixIndex,
        cut: tuple[int, int],
        ranks: Sequence[Holders],
        runs: Iterable[Sequence[int]],
        keys: Sequence[int],
        length: int,
        prepared: PreparedWalk | None = None,
    ) -> None:
        """`ranks`: those that take part in it. `prepared`: a walk along these keys that was made beforehand."""
        self.index = index
        self.keys = keys
        self.length = length
        self.usable_blocks = usable_blocks(length, *cut)
        anchors = [anchor for holders in ranks if (anchor := holders.anchor) is not None]
        self._spans: list[Span]
        alive = sum(1 << holder for holder in anchors)
        needs_spans = any(holders.rule is not None for holders in ranks)
        steps = None
        if prepared is not None and (prepared.spans is not None or not needs_spans):
            steps = prepared.steps_of(index, index.removed_holders, alive)
            self._spans = prepared.spans or []
        if steps is None:
            self._spans = []
            steps = index.walk(alive, runs, self._spans if needs_spans else None)
        self.steps: list[Step] = steps
        self.matches = matches_of(anchors, self.steps)

    @cached_property
    def matched_spans(self) -> tuple[list[Span], list[int]]:
        """Who has the blocks up to the longest match, whatever lies before each, and where these spans start: for the hit rule."""
        return self._spans, [start for start, _, _ in self._spans]

    @cached_property
    def spans(self) -> list[Span]:
        """Who has any of the usable blocks, as far as their keys are computed."""
        return self.index.spans(self.keys[: self.usable_blocks])


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
        self._walks: dict[tuple[int, int] | None, Walk] = {} if self.prompt_keys is None else self._walk_prompt(self.prompt_keys)

    def _walk_prompt(self, keys: PromptKeys) -> dict[tuple[int, int] | None, Walk]:
        """How blocks are cut → walk of all ranks whose blocks are."""
        walks: dict[tuple[int, int] | None, Walk] = {}
        for cut, index in self._model.indexes.items():
            all_holders = [s.holders for ranks in self._pods.values() for s in ranks.values() if s.cut == cut and s.holders is not None]
            walks[cut] = Walk(index, cut, all_holders, keys.runs(*cut), keys.computed(*cut), keys.length, keys.walks.get(cut))
            if any(holders.anchor is None for holders in all_holders):
                keys.all(*cut)  # a window is looked for wherever it may be
        return walks

    def _walk_hashes(self, stream: IndexedStream) -> Walk | None:
        """The walk of one rank by its own keys for the hashes; None where it holds nothing."""
        holders = stream.holders
        if holders is None or not isinstance(self.query, EngineHashes):
            return None
        length = length_in_tokens(self.query, holders.key_size)
        prepared = self.query.prepared.get(id(holders))
        if prepared is not None and prepared.holders is holders:
            return Walk(holders.index, holders.cut, [holders], [prepared.keys], prepared.keys, length, prepared.walk)
        keys = [] if stream.hashes is None else stream.hashes.keys_of(self.query.hashes)
        return Walk(holders.index, holders.cut, [holders], [keys], keys, length)

    def scores(self) -> list[PodScore]:
        """Every pod, best first, equal ones by name."""
        scores = []
        walks = None if self.prompt_keys is None else self._walks
        for pod, ranks in self._pods.items():
            found = []
            for rank, stream in ranks.items():
                walk = self._walk_hashes(stream) if walks is None else walks.get(stream.cut)
                found.append(self._score(rank, stream, walk))
            if len(found) > 1:
                found.sort(key=lambda rank: (-rank.score, rank.rank))
            scores.append(PodScore(pod, found))
        scores.sort(key=lambda pod: (-pod.ranks[0].score, pod.pod))
        return scores

    def _score(self, rank: int, stream: IndexedStream, walk: Walk | None) -> RankScore:
        trust, holders = stream.trust_at(self._now_s), stream.holders
        if walk is None or holders is None:
            return RankScore(rank, NO_MATCH, 0.0, None, 0, trust)
        block_size, dropped = holders.block_size, stream.dropped_blocks
        match = walk.matches[holders.lead] if holders.rule is None else hybrid_match(walk, holders, holders.rule)
        usable = usable_blocks(walk.length, block_size, holders.lookahead)
        if dropped:
            match, usable = without_last(match, dropped), max(0, usable - dropped)
        elif holders.reads_whole_prompts and match.matched_blocks == usable and (tier := self._tier_of_last(walk, holders, usable)) is not None:
            match, usable = with_one_more(match, tier), usable + 1
        return RankScore(rank, match, score_of(match, walk.length, block_size, self._weights), block_size, usable, trust, dropped)

    def reaches(self) -> dict[str, dict[int, RankReach]]:
        """Pod → rank → how far its match reaches in each tier."""
        return {pod: {rank: self._reach(rank, stream) for rank, stream in ranks.items()} for pod, ranks in self._pods.items()}

    def _reach(self, rank: int, stream: IndexedStream) -> RankReach:
        walk = self._walk_hashes(stream) if self.prompt_keys is None else self._walks.get(stream.cut)
        score, holders = self._score(rank, stream, walk), stream.holders
        if walk is None or holders is None:
            return NO_REACH
        matched = score.match.matched_blocks * holders.block_size
        if holders.anchor is None:  # windows and states alone, which lie on the gpu
            return RankReach(matched, (matched, *NO_LOWER), (matched,) * len(OWN_TIERS), holders.block_size)
        return reach_of(holders.anchor, walk.steps, holders.key_size, matched, holders.block_size)

    def _tier_of_last(self, walk: Walk, holders: Holders, usable: int) -> Tier | None:
        """The best tier below the gpu that has the block with which the prompt ends; None where no block does, or no such tier has it."""
        if self.prompt_keys is None or (usable + 1) * holders.block_size != walk.length:
            return None
        last = self.prompt_keys.all(*holders.cut)[usable]
        return next((tier for tier in OWN_TIERS[1:] if holders.index.holds(holders.lead, tier, last)), None)

    def traces(self) -> list[PodTrace]:
        """Every pod in the order of `scores`, and what is known of the block at which each rank's match ends."""
        traces = []
        for pod, ranks in self._pods.items():
            found = [self._trace(rank, stream) for rank, stream in ranks.items()]
            traces.append(PodTrace(pod, sorted(found, key=lambda trace: (-trace.score, trace.rank))))
        return sorted(traces, key=lambda pod: (-pod.ranks[0].score, pod.pod))

    def _trace(self, rank: int, stream: IndexedStream) -> RankTrace:
        walk = self._walk_hashes(stream) if self.prompt_keys is None else self._walks.get(stream.cut)
        score, holders = self._score(rank, stream, walk), stream.holders
        if walk is None or holders is None:
            return RankTrace(rank, score.trust, None, 0, [], 0.0, has_other_seed=stream.has_other_seed)
        limit = None
        if holders.rule is None:
            runs = runs_of(holders.lead, walk.steps)
            held = end = sum(blocks for _, blocks in runs)
            if score.match.matched_blocks > held:
                last = self._tier_of_last(walk, holders, held)
                assert last is not None, "the score has counted it"
                before = runs.pop()[1] if runs and runs[-1][0] is last else 0
                runs, held, end = [*runs, (last, before + 1)], held + 1, end + 1
        else:
            match = hybrid_match(walk, holders, holders.rule)
            runs = [(tier, blocks) for tier, blocks in zip(OWN_TIERS, match.tiers, strict=True) if blocks]
            held = match.matched_blocks
            end = held * holders.rule.alignment
            if self.prompt_keys is not None:
                self.prompt_keys.all(*holders.cut)
            limit = limit_of(holders.rule, holders.shape, walk.spans, end, walk.usable_blocks)
            end = end if limit is None else limit.block
        key = walk.keys[end] if end < len(walk.keys) else None
        return RankTrace(
            rank,
            score.trust,
            score.block_size,
            score.usable_blocks,
            [(tier.word, blocks) for tier, blocks in first_runs(runs, score.match.matched_blocks)],
            score.score,
            is_remote=key is not None and holders.holds(Tier.REMOTE, key),
            removal=None if key is None else stream.removals.find(key),
            has_other_seed=stream.has_other_seed,
            dropped_blocks=stream.dropped_blocks,
            cut_blocks=held - score.match.matched_blocks,
            limit=limit,
            missing=None if limit is None else limit.block * holders.key_size // holders.block_size,
        )


def hybrid_match(walk: Walk, holders: Holders, rule: HitRule) -> Match:
    """A rank's match by the hit rule, in blocks of the rank's block size."""
    anchor = holders.anchor
    if anchor is None:
        hit = longest_hit(rule, walk.spans, walk.usable_blocks)
        return Match(hit // rule.alignment, (hit // rule.alignment, *NO_LOWER))
    prefix = walk.matches[anchor]
    if not prefix.matched_blocks:
        return NO_MATCH
    spans, starts = walk.matched_spans
    if rule.alignment == rule.lower_alignment == 1 and is_hit(rule, spans, starts, prefix.matched_blocks):
        return prefix
    hit = longest_hit(rule, spans, prefix.matched_blocks, rule.lower_alignment)
    if rule.lower_alignment > rule.alignment:
        on_gpu = next(iter(runs_of(anchor, walk.steps)), (Tier.GPU, 0))
        hit = max(hit, longest_hit(rule, spans, on_gpu[1]) if on_gpu[0] is Tier.GPU else 0)
    return cut_match(anchor, walk.steps, hit, rule.alignment)


def held_tokens(index: PrefixIndex, cut: tuple[int, int], pods: Pods, keys: "array[int]") -> dict[str, int]:
    """Pod → how many tokens of a prompt with these block keys it holds, by its best rank. Pods that hold none are left out."""
    ranks = {pod: [s.holders for s in ranks.values() if s.cut == cut and s.holders is not None] for pod, ranks in pods.items()}
    block_size, lookahead = cut
    length = len(keys) * block_size + max(1, lookahead)
    walk = Walk(index, cut, [holders for each in ranks.values() for holders in each], [keys], keys, length)
    found = {}
    for pod, each in ranks.items():
        matches = [(walk.matches[holders.lead] if holders.rule is None else hybrid_match(walk, holders, holders.rule), holders) for holders in each]
        held = max((match.matched_blocks * holders.block_size for match, holders in matches), default=0)
        if held:
            found[pod] = held
    return found


def matched_by_rank(ranks: Sequence[RankScore]) -> dict[str, int]:
    """Rank → matched blocks, in the order of ranks."""
    return {str(rank.rank): rank.match.matched_blocks for rank in sorted(ranks, key=lambda rank: rank.rank)}

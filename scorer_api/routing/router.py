"""Picks a pod for a prompt, and remembers what it picked.

the view's scores + what is expected of pods (speculation)  ─┐
loads + what was sent since (queues)                         ├─▶ candidates ─▶ policy ─▶ order ─▶ pick, remembered
trust, exclusions                                            ─┘
"""

import random
import secrets
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Annotated, Literal, Protocol, get_args

from msgspec import Meta, Struct

from indexer.config.settings import Settings
from indexer.core.names import StreamKey, Trust
from indexer.engines.load import Load
from scorer_api.index.engine_hashes import EngineHashes
from scorer_api.index.scoring import Match, score_of, usable_blocks
from scorer_api.index.view import PodScore, Prompt, RankScore, View, tokens_at
from scorer_api.routing.costs import Busy, fill
from scorer_api.routing.policies import POLICIES, Candidate, Case, PickReason, PolicyName, reason_of
from scorer_api.routing.queues import Queues, Sent
from scorer_api.routing.speculation import Expected, Rank, Speculation

Why = Literal["excluded", "expired", "stale"]
WHYS: tuple[Why, ...] = get_args(Why)
BlocksOutcome = Literal["matched_held", "matched_gone", "new_announced", "new_unseen"]
BLOCKS_OUTCOMES: tuple[BlocksOutcome, ...] = get_args(BlocksOutcome)

# The block size of prompts that go to a pod which announced none yet, where no other has: that of most engines.
BLOCK_SIZE_PRIOR = 16
NAME_BYTES = 8
# Turns begin anywhere, so that replicas do not go round in step.
TURN_MAX = 2**32
# Of more models than this nothing is kept but of the last ones: models come and go.
MODELS_MAX = 4_096


class Wanted(Struct, frozen=True):
    """What a pick is asked for. `only`: these pods, None for all. `policy`: None for the service's own."""

    only: Collection[str] | None = None
    exclude: Collection[str] = ()
    policy: PolicyName | None = None
    session_id: str | None = None
    output_tokens: int | None = None
    speculates: bool = True


class PodReason(Struct, frozen=True, gc=False):
    """What was known of a pod at the pick. The figures are those of `rank`, the load is the whole pod's."""

    rank: int
    matched_tokens: Annotated[int, Meta(description="Of the prompt's tokens, those that it holds, and is expected to hold in a moment.")]
    speculative_tokens: Annotated[int, Meta(description="Those of them that it is only expected to hold, since a prompt with them was sent there.")]
    uncached_tokens: int
    queued_tokens: Annotated[int, Meta(description="Tokens of prompts that wait there, by its load and by what was sent there since.")]
    running: Annotated[int | None, Meta(description="Running requests; null where its load is unknown.")]
    waiting: Annotated[int | None, Meta(description="Waiting requests; null where its load is unknown.")]
    kv_usage: Annotated[float | None, Meta(description="Part of its cache that requests use; null where that is unknown.")]
    load_age_s: Annotated[float | None, Meta(description="Age of its load, null where there is none. One that is too old is unknown.")]
    cost_s: Annotated[float, Meta(description="Expected time to its first token, and that which others wait meanwhile.")]
    trust: Trust
    why: Annotated[Why | None, Meta(description="Why it is not picked, or only where nothing else is left.")]


class Picked(Struct, frozen=True):
    """`order`: pods by name, the picked one first. `name`: by which the request is told to be done."""

    name: str
    rank: int
    block_size: int | None
    order: list[str]
    policy: PolicyName
    picked_for: PickReason | Literal["stale"]
    reasons: dict[str, PodReason]


class UnknownModelError(Exception):
    """There is no such model."""


class NoPodError(Exception):
    """There is no pod to pick. `reasons`: how many pods there are not, by why."""

    def __init__(self, reasons: Mapping[str, int]) -> None:
        super().__init__(
            f"no pod can be picked: {', '.join(f'{count} {why}' for why, count in reasons.items()) or 'there is none of those asked for'}"
        )
        self.reasons = reasons


class Counters(Protocol):
    """Is told what there is to count."""

    def blocks(self, outcome: BlocksOutcome, count: int) -> None: ...

    def forgotten(self, why: Literal["time", "room"], count: int) -> None: ...


_Best = tuple[RankScore, int]
"""The rank of a pod that would be picked, and the tokens that it is expected to hold beyond those that it holds."""


class _Model:
    """What is kept of a model from pick to pick: how many there were, and the last loads with what was made of them."""

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.loads: list[Load | None] = []
        self.filled: list[Busy] = []


class Router:
    """Times are of the monotonic clock. It asks the view and changes nothing there."""

    def __init__(self, settings: Settings, view: View, counters: Counters) -> None:
        self._settings = settings
        self._view = view
        self._counters = counters
        self._random = random.Random(settings.route_seed)
        self._queues = Queues(settings.route_forget_s)
        self._models: dict[str, _Model] = {}
        self.speculation = Speculation(settings.route_speculative_s, self._compare)
        if settings.route_speculative_s:
            view.listener = self.speculation

    @property
    def requests(self) -> int:
        """How many routed requests count now."""
        return len(self._queues)

    def pick(self, prompt: Prompt | EngineHashes, wanted: Wanted, now_s: float) -> Picked:
        """Pick a pod and remember it. Raises UnknownModelError, NoPodError."""
        self.expire(now_s)
        made: dict[int, list[int]] = {}
        try:
            scores = self._view.score(prompt, wanted.only, made)
        except KeyError:
            raise UnknownModelError(prompt.model) from None
        expected = self.expected(prompt, made) if wanted.speculates and self.speculation else {}
        expecting = {rank[0] for rank, _ in expected}
        bests = [
            (score.ranks[0], 0) if len(score.ranks) == 1 and score.pod not in expecting else self._best(prompt.model, score, expected)
            for score in scores
        ]
        candidates, stale, reasons = self._assess(prompt, scores, bests, wanted, now_s)
        if not candidates and not stale:
            raise NoPodError(Counter(str(reason.why) for reason in reasons.values()))
        policy, case = self._policy(wanted), self._case(prompt.model, wanted)
        order = POLICIES[policy](candidates, case) if candidates else []
        picked_for: PickReason | Literal["stale"] = reason_of(policy, order, case) if order else "stale"
        if stale:
            order += POLICIES[policy](stale, case)
        pod, rank = order[0].pod, order[0].rank
        name = secrets.token_hex(NAME_BYTES)
        self._queues.add(name, Sent(prompt.model, pod, rank, reasons[pod].uncached_tokens, now_s))
        (best,) = (best for score, (best, _) in zip(scores, bests, strict=True) if score.pod == pod)
        if self._settings.route_speculative_s and isinstance(prompt, Prompt):
            self._expect(name, prompt, pod, best, made, now_s)
        return Picked(name, rank, best.block_size, [candidate.pod for candidate in order], policy, picked_for, reasons)

    def done(self, name: str) -> bool:
        """The request is over, or never was: nothing counts of it any more. Returns whether anything did."""
        was_expected = self.speculation.take_back(name)
        return self._queues.done(name) or was_expected

    def expire(self, now_s: float) -> None:
        """Forget what counts no longer."""
        self.speculation.expire(now_s)
        late, crowded = self._queues.expire(now_s)
        if late or crowded:
            self._counters.forgotten("time", late)
            self._counters.forgotten("room", crowded)

    # What pods hold, and are expected to hold

    def score(self, prompt: Prompt | EngineHashes, only: Collection[str] | None, now_s: float) -> tuple[list[PodScore], dict[Rank, int]]:
        """The view's scores, as if what is expected were held; and how many blocks that is beyond what is. Raises KeyError for an unknown model."""
        self.expire(now_s)
        made: dict[int, list[int]] = {}
        scores = self._view.score(prompt, only, made)
        expected = self.expected(prompt, made)
        beyond: dict[Rank, int] = {}
        if not expected:
            return scores, beyond
        for number, score in enumerate(scores):
            ranks = [self._raised(prompt, score.pod, rank, expected, beyond) for rank in score.ranks]
            scores[number] = PodScore(score.pod, sorted(ranks, key=lambda rank: (-rank.score, rank.rank)))
        scores.sort(key=lambda score: (-score.ranks[0].score, score.pod))
        return scores, beyond

    def _raised(
        self, prompt: Prompt | EngineHashes, pod: str, rank: RankScore, expected: Mapping[tuple[Rank, int], int], beyond: dict[Rank, int]
    ) -> RankScore:
        """One rank's score with the blocks that it is only expected to hold, which `beyond` is told. They will be on the gpu."""
        block_size, match = rank.block_size, rank.match
        more = 0 if block_size is None else expected.get(((pod, rank.rank), block_size), 0) - match.matched_blocks
        if block_size is None or more <= 0:
            return rank
        beyond[pod, rank.rank] = more
        gpu, *lower = match.tiers
        match = Match(match.matched_blocks + more, (gpu + more, *lower))
        score = score_of(match, tokens_at(prompt, block_size), block_size, self._settings.tier_weights)
        return RankScore(rank.rank, match, score, block_size, rank.usable_blocks, rank.trust)

    def expected(self, prompt: Prompt | EngineHashes, made: dict[int, list[int]]) -> dict[tuple[Rank, int], int]:
        """(rank, block size) → how many of the prompt's usable blocks it is expected to hold. `made`: see View.keys."""
        found: dict[tuple[Rank, int], int] = {}
        if not isinstance(prompt, Prompt):
            return found  # an engine's hashes tell nothing of other streams
        for block_size in self.speculation.block_sizes(prompt.model):
            usable = usable_blocks(prompt.length, block_size)
            for rank, blocks in self.speculation.match(prompt.model, block_size, self._view.keys(prompt, block_size, made)).items():
                found[rank, block_size] = min(blocks, usable)
        return found

    def _expect(self, name: str, prompt: Prompt, pod: str, best: RankScore, made: dict[int, list[int]], now_s: float) -> None:
        """The picked pod will hold this prompt's blocks, unless it holds the last one by now."""
        block_size = best.block_size or max(made, key=lambda size: len(made[size]), default=BLOCK_SIZE_PRIOR)
        keys = self._view.keys(prompt, block_size, made)
        stream = StreamKey(prompt.model, pod, best.rank)
        if keys and not self._view.held(stream, keys[-1:]):
            self.speculation.add(name, stream, block_size, keys, best.match.matched_blocks, now_s)

    def _compare(self, expected: Expected, keys: Sequence[int]) -> None:
        """What was said of a prompt at its pick, with what its pod holds of it now."""
        matched, new = keys[: expected.matched_blocks], keys[expected.matched_blocks :]
        held, announced = self._view.held(expected.stream, matched), self._view.held(expected.stream, new)
        self._counters.blocks("matched_held", held)
        self._counters.blocks("matched_gone", len(matched) - held)
        self._counters.blocks("new_announced", announced)
        self._counters.blocks("new_unseen", len(new) - announced)

    # What is known of pods

    def _best(self, model: str, score: PodScore, expected: Mapping[tuple[Rank, int], int]) -> _Best:
        """The longest match that can be relied on. Of equal ones that of the rank which was sent least to."""
        found = [(rank, _speculative(score.pod, rank, expected)) for rank in score.ranks]
        return min(
            found,
            key=lambda best: (
                best[0].trust is Trust.EXPIRED,
                best[0].trust is Trust.STALE,
                -best[0].match.matched_blocks * (best[0].block_size or 0) - best[1],
                -best[0].score,
                self._queues.at_rank(model, score.pod, best[0].rank),
                self._random.random(),
            ),
        )

    def _assess(
        self, prompt: Prompt | EngineHashes, scores: Sequence[PodScore], bests: Sequence[_Best], wanted: Wanted, now_s: float
    ) -> tuple[list[Candidate], list[Candidate], dict[str, PodReason]]:
        """The pods that may be picked, those that may be where there are no others, and what is known of each."""
        candidates: list[Candidate] = []
        stale: list[Candidate] = []
        reasons: dict[str, PodReason] = {}
        model, exclude, output_tokens = prompt.model, wanted.exclude, wanted.output_tokens
        ahead, draw = self._queues.ahead, self._random.random
        tokens = prompt.length if isinstance(prompt, Prompt) else None
        oldest_s = now_s - self._settings.load_max_age_s
        measured = [self._view.loads.get(model, score.pod) for score in scores]
        loads = [None if found is None or found[1] < oldest_s else found[0] for found in measured]
        for score, (best, speculative), found, load, busy in zip(scores, bests, measured, loads, self._fill(model, loads), strict=True):
            pod, trust, block_size = score.pod, best.trust, best.block_size or BLOCK_SIZE_PRIOR
            length = tokens if tokens is not None else tokens_at(prompt, block_size)
            matched = best.match.matched_blocks * block_size + speculative
            own_tokens, own_count = ahead(model, pod, None if load is None or found is None else found[1])
            # A block on a slower tier costs a part of what computing it costs, as its weight says.
            uncached = length - best.score * (length - 1) - speculative
            if uncached < 0.0:
                uncached = 0.0
            cost_s, load_s = busy.costs_s(uncached, output_tokens, own_tokens, own_count)
            why: Why | None = None
            if pod in exclude:
                why = "excluded"
            elif trust is Trust.EXPIRED:
                why = "expired"
            else:
                candidate = Candidate(pod, best.rank, matched // block_size, matched, cost_s, load_s, draw())
                if trust is Trust.STALE:
                    why = "stale"
                    stale.append(candidate)
                else:
                    candidates.append(candidate)
            # Rounded by hand: `round` to a number of digits takes five times as long, and there are three figures of each pod.
            reasons[pod] = PodReason(
                best.rank,
                matched,
                speculative,
                length - matched,
                int(busy.waiting_tokens + own_tokens + 0.5),
                None if load is None else load.running,
                None if load is None else load.waiting,
                None if load is None else load.kv_usage,
                None if found is None else int((now_s - found[1]) * 1e3 + 0.5) / 1e3,
                int(cost_s * 1e6 + 0.5) / 1e6,
                trust,
                why,
            )
        return candidates, stale, reasons

    def _fill(self, model: str, loads: list[Load | None]) -> list[Busy]:
        """What to take for each; made again only when there are other loads."""
        known = self._model(model)
        if known.loads != loads:
            known.loads, known.filled = loads, fill(loads, self._settings.route_prefill_tokens_per_s)
        return known.filled

    # Policies

    def _policy(self, wanted: Wanted) -> PolicyName:
        policy = wanted.policy or self._settings.route_policy
        return "cost" if policy == "session" and wanted.session_id is None else policy

    def _case(self, model: str, wanted: Wanted) -> Case:
        known = self._model(model)
        known.turn += 1
        return Case(wanted.session_id, known.turn, self._settings.route_min_match_blocks, self._settings.route_overload_s)

    def _model(self, name: str) -> _Model:
        known = self._models.get(name)
        if known is None:
            if len(self._models) >= MODELS_MAX:
                self._models.clear()
            known = self._models[name] = _Model(self._random.randrange(TURN_MAX))
        return known


def _speculative(pod: str, rank: RankScore, expected: Mapping[tuple[Rank, int], int]) -> int:
    """Tokens that a rank is expected to hold beyond those that it holds."""
    name = pod, rank.rank
    if rank.block_size is None:
        # It announced nothing yet: what counts is what was sent there, in blocks of whatever size.
        return max((blocks * block_size for (sent_to, block_size), blocks in expected.items() if sent_to == name), default=0)
    return max(0, expected.get((name, rank.block_size), 0) - rank.match.matched_blocks) * rank.block_size

"""Picks a pod for a prompt, and keeps what it picked.

the view's scores + speculative blocks (speculative_scores)  ─┐
loads + what was sent since (queues)                         ─┼─▶ candidates ─▶ policy ─▶ order ─▶ pick, kept
trust, exclusions                                            ─┘
"""

import random
import secrets
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Literal, Protocol

from msgspec import Struct

from indexer.config.settings import Settings
from indexer.core.names import Trust
from indexer.engines.load import Load
from scorer_api.index.lookup import Lookup, PodScore, RankScore
from scorer_api.index.prompt import Prompt, Query, length_in_tokens
from scorer_api.index.view import View
from scorer_api.routing.costs import LoadEstimate, estimate_loads
from scorer_api.routing.other_senders import OtherSenders
from scorer_api.routing.pick import Exclusion, NoPodError, Pick, PickRequest, PodReason, UnknownModelError
from scorer_api.routing.policies import Candidate, PolicyInput, ordered, policy_for
from scorer_api.routing.queues import QueuedRequest, Queues
from scorer_api.routing.speculation import Rank, Speculation
from scorer_api.routing.speculative_scores import BLOCK_SIZE_PRIOR, BlockCounters, ExpectedTokens, SpeculativeScores, speculative_tokens

ID_BYTES = 8
# The prompt of a request that another pod computes counts by its id with this behind it.
PREFILL = "/prefill"
# Turns start anywhere, so that replicas do not pick in step.
TURN_MAX = 2**32
# Above this number of models the kept figures are cleared: models come and go.
MODELS_MAX = 4_096


def random_id() -> str:
    """A name for a request."""
    return secrets.token_hex(ID_BYTES)


class Counters(BlockCounters, Protocol):
    """Counts what a router does."""

    def forgotten(self, why: Literal["time", "room"], count: int) -> None: ...


class _BestRank(Struct, frozen=True, gc=False):
    """The rank of a pod that a pick takes. `speculative_tokens`: those that it is expected to hold beyond its match."""

    rank: RankScore
    speculative_tokens: int


class Candidates(Struct, frozen=True):
    """`fresh`: pods that may be picked. `stale`: pods that may be picked if no other is left. `reasons`: what is known of every pod.
    `block_size`: the first pod's."""

    fresh: list[Candidate]
    stale: list[Candidate]
    reasons: dict[str, PodReason]
    block_size: int | None = None


class _ModelState:
    """What is kept of a model between picks: the turn, and the last loads with their estimates."""

    def __init__(self, turn: int) -> None:
        self.turn = turn
        self.loads: list[Load | None] = []
        self.estimates: list[LoadEstimate] = []
        self.others = OtherSenders()


class Router:
    """Times are of the monotonic clock. It reads the view and changes nothing there."""

    def __init__(self, settings: Settings, view: View, counters: Counters, new_id: Callable[[], str] = random_id) -> None:
        """`new_id`: draws the id of a request."""
        self._new_id = new_id
        self._settings = settings
        self._view = view
        self._counters = counters
        self._random = random.Random(settings.limits.routing.route_seed)
        self._queues = Queues(settings.limits.routing.route_forget_s)
        self._models: dict[str, _ModelState] = {}
        self._speculative = SpeculativeScores(settings, view, counters)
        self.speculation.announced = self._queues.computed

    @property
    def speculation(self) -> Speculation:
        """The speculative blocks."""
        return self._speculative.speculation

    @property
    def requests(self) -> int:
        """The number of routed requests that count now."""
        return len(self._queues)

    def score(self, prompt: Query, only: Collection[str] | None, now_s: float) -> tuple[list[PodScore], dict[Rank, int]]:
        """The scores as if speculative blocks were held, see `SpeculativeScores.score`. Raises KeyError for an unknown model."""
        self.expire(now_s)
        return self._speculative.score(prompt, only)

    def pick(self, prompt: Query, request: PickRequest, now_s: float) -> Pick:
        """Pick a pod and count the request as sent there. Raises UnknownModelError, NoPodError."""
        return self._pick(prompt, request, now_s, self._new_id())

    def pick_for_prefill(self, prompt: Query, request: PickRequest, now_s: float, picked: Pick) -> Pick:
        """Pick a pod that computes the prompt of a picked request. Until `prefilled`, or `done`, the prompt counts there and not at the picked pod.

        Raises UnknownModelError, NoPodError.
        """
        pick = self._pick(prompt, request, now_s, picked.id + PREFILL)
        self._queues.relieve(picked.id)
        return pick

    def _pick(self, prompt: Query, request: PickRequest, now_s: float, name: str) -> Pick:
        self.expire(now_s)
        try:
            lookup, scores = self._view.scored(prompt, request.only)
        except KeyError:
            raise UnknownModelError(prompt.model) from None
        bests = self._best_ranks(lookup, scores, request)
        candidates = self._candidates(prompt, scores, bests, request, now_s)
        if not candidates.fresh and not candidates.stale:
            raise NoPodError(Counter(str(reason.why) for reason in candidates.reasons.values()))
        policy = policy_for(request.policy, self._settings.route_policy, request.session_id)
        order, picked_for = ordered(policy, candidates.fresh, candidates.stale, self._policy_input(prompt.model, request))
        picked, reasons = order[0], candidates.reasons
        self._queues.add(name, QueuedRequest(prompt.model, picked.pod, picked.rank, reasons[picked.pod].uncached_tokens, now_s))
        self._model(prompt.model).others.sent(picked.pod)
        (rank,) = (best.rank for score, best in zip(scores, bests, strict=True) if score.pod == picked.pod)
        if self._speculative.note_pick(name, lookup, picked.pod, rank, now_s):
            self._queues.await_announcement(name)
        return Pick(name, picked.rank, rank.block_size, [candidate.pod for candidate in order], policy, picked_for, reasons)

    def candidates(self, prompt: Query, request: PickRequest, now_s: float) -> Candidates:
        """What each pod would cost. Nothing is picked, and nothing counts. Raises UnknownModelError."""
        self.expire(now_s)
        try:
            lookup = self._view.look_up(prompt, request.only)
        except KeyError:
            raise UnknownModelError(prompt.model) from None
        scores = lookup.scores()
        return self._candidates(prompt, scores, self._best_ranks(lookup, scores, request), request, now_s)

    def done(self, name: str) -> bool:
        """Forget a request, by its id. Returns whether it counted."""
        self.prefilled(name)
        return self._forget(name)

    def prefilled(self, name: str) -> None:
        """The prompt of a request, by its id, has been computed by the pod that was picked for that, if there is one."""
        self._forget(name + PREFILL)

    def _forget(self, name: str) -> bool:
        was_speculative = self.speculation.take_back(name)
        return self._queues.done(name) or was_speculative

    def expire(self, now_s: float) -> None:
        """Forget requests and speculative blocks whose time has passed."""
        self.speculation.expire(now_s)
        late, excess = self._queues.expire(now_s)
        if late or excess:
            self._counters.forgotten("time", late)
            self._counters.forgotten("room", excess)

    # Candidates

    def _best_ranks(self, lookup: Lookup, scores: Sequence[PodScore], request: PickRequest) -> list[_BestRank]:
        model = lookup.query.model
        expected = self._speculative.expected(lookup) if request.include_speculative and self.speculation else {}
        expecting = {pod for pod, _ in expected}
        return [
            _BestRank(score.ranks[0], 0) if len(score.ranks) == 1 and score.pod not in expecting else self._best_rank(model, score, expected)
            for score in scores
        ]

    def _best_rank(self, model: str, score: PodScore, expected: ExpectedTokens) -> _BestRank:
        """The rank with the longest match of those with the best trust; among equal ones the one with the fewest requests."""
        return min(
            (_BestRank(rank, speculative_tokens(score.pod, rank, expected)) for rank in score.ranks),
            key=lambda best: (
                best.rank.trust is Trust.EXPIRED,
                best.rank.trust is Trust.STALE,
                -best.rank.match.matched_blocks * (best.rank.block_size or 0) - best.speculative_tokens,
                -best.rank.score,
                self._queues.at_rank(model, score.pod, best.rank.rank),
                self._random.random(),
            ),
        )

    def _candidates(self, prompt: Query, scores: Sequence[PodScore], bests: Sequence[_BestRank], request: PickRequest, now_s: float) -> Candidates:
        """What each pod would cost. One long loop: it runs for every pod of every pick."""
        fresh: list[Candidate] = []
        stale: list[Candidate] = []
        reasons: dict[str, PodReason] = {}
        model, exclude, prefill, output_tokens = prompt.model, request.exclude, request.prefill, request.output_tokens
        draw = self._random.random
        tokens = prompt.length if isinstance(prompt, Prompt) else request.tokens_estimate
        oldest_s = now_s - self._settings.limits.routing.load_max_age_s
        measured = [self._view.loads.get(model, score.pod) for score in scores]
        unready = self._view.unready
        loads = [None if known is None or known[1] < oldest_s else known[0] for known in measured]
        measured_s = [None if load is None or known is None else known[1] for known, load in zip(measured, loads, strict=True)]
        state = self._with_estimates(model, [score.pod for score in scores], loads, measured_s)
        estimates, others = state.estimates, state.others.per_request
        queues = [
            self._queues.look(model, score.pod, now_s, estimate, at_s, others)
            for score, estimate, at_s in zip(scores, estimates, measured_s, strict=True)
        ]
        shortest = min((queue.waiting for queue in queues), default=0.0)
        for score, best, known, load, estimate, queue in zip(scores, bests, measured, loads, estimates, queues, strict=True):
            pod, rank, speculative = score.pod, best.rank, best.speculative_tokens
            trust, block_size = rank.trust, rank.block_size or BLOCK_SIZE_PRIOR
            length = tokens if tokens is not None else length_in_tokens(prompt, block_size)
            matched = rank.match.matched_blocks * block_size + speculative
            # The score weighs tiers: a block on a slower one costs a part of computing it.
            uncached = length - rank.score * (length - 1) - speculative
            if uncached < 0.0:
                uncached = 0.0
            cost_s, load_s = estimate.costs_s(uncached, output_tokens, queue, max(queue.waiting, shortest))
            why: Exclusion | None = None
            if pod in exclude:
                why = "excluded"
            elif unready and (model, pod) in unready:
                why = "not_ready"
            elif pod in prefill:
                why = "prefill"
            elif trust is Trust.EXPIRED:
                why = "expired"
            else:
                candidate = Candidate(pod, rank.rank, matched // block_size, matched, cost_s, load_s, draw())
                if trust is Trust.STALE:
                    why = "stale"
                    stale.append(candidate)
                else:
                    fresh.append(candidate)
            # Rounded by hand: `round` with digits takes five times as long, for three figures of each pod.
            reasons[pod] = PodReason(
                rank.rank,
                matched,
                speculative,
                length - matched,
                int(queue.tokens + 0.5),
                None if load is None else load.running,
                None if load is None else load.waiting,
                None if load is None else load.kv_usage,
                None if known is None else int((now_s - known[1]) * 1e3 + 0.5) / 1e3,
                int(cost_s * 1e6 + 0.5) / 1e6,
                trust,
                why,
            )
        return Candidates(fresh, stale, reasons, bests[0].rank.block_size if bests else None)

    def _with_estimates(self, model: str, pods: list[str], loads: list[Load | None], measured_s: list[float | None]) -> _ModelState:
        """The load of each pod without gaps, and what others send; computed again only if a load changed."""
        state = self._model(model)
        if state.loads != loads:
            state.loads, state.estimates = loads, estimate_loads(loads, self._settings.limits.routing.route_prefill_tokens_per_s)
            state.others.learn(
                (pod, at_s, load.requests)
                for pod, load, at_s in zip(pods, loads, measured_s, strict=True)
                if load is not None and at_s is not None and load.requests is not None
            )
        return state

    # Policies

    def _policy_input(self, model: str, request: PickRequest) -> PolicyInput:
        state = self._model(model)
        state.turn += 1
        limits = self._settings.limits.routing
        return PolicyInput(request.session_id, state.turn, limits.route_min_match_blocks, limits.route_overload_s)

    def _model(self, name: str) -> _ModelState:
        state = self._models.get(name)
        if state is None:
            if len(self._models) >= MODELS_MAX:
                self._models.clear()
            state = self._models[name] = _ModelState(self._random.randrange(TURN_MAX))
        return state

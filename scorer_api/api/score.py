"""Answers score requests."""

import time
from collections.abc import Awaitable, Mapping

from msgspec import UNSET

from indexer.core.events import Tier
from indexer.http.negotiation import Encode, encoder
from indexer.tracing.current import current_span
from scorer_api.api.decode import decode_score_at_once, decode_score_in_turns
from scorer_api.api.plain_answer import has_form, plain_answer
from scorer_api.api.resolve import RequestResolver, ResolvedRequest, unknown_model
from scorer_api.api.schemas import PodAnswer, ScoreAnswer, ScoreRequest, ViewAnswer
from scorer_api.index.lookup import PodScore, matched_by_rank
from scorer_api.index.plain_pods import PackedScores, PlainScores
from scorer_api.index.prefix_index import OWN_TIERS
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View
from scorer_api.metrics import ScorerMetrics
from scorer_api.routing.router import Router
from scorer_api.routing.speculation import Rank

TIER_WORDS = [Tier(tier).word for tier in OWN_TIERS]


class ScoreHandler:
    """Answers `POST /v1/score` from the view. `router`: knows the speculative blocks, for requests that count them."""

    def __init__(self, view: View, resolver: RequestResolver, metrics: ScorerMetrics, router: Router) -> None:
        self._view = view
        self._resolver = resolver
        self._router = router
        self._metrics = metrics

    async def answer(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """The encoded answer to one request. Raises Problem."""
        return await self.answer_decoded(decode_score_in_turns(body, media_type, self._resolver.turn), encoder(accepted))

    def answer_at_once(self, body: bytes, media_type: str, accepted: str) -> bytes | None:
        """The same, for `indexer.http.at_once`."""
        started_s = time.perf_counter()
        request = decode_score_at_once(body, media_type)
        decoded_s = time.perf_counter()
        resolved = None if request is None else self._resolver.resolve_at_once(request)
        if resolved is None:
            return None
        self.observe_decode(resolved, decoded_s - started_s, decoded_s)
        return self.encoded_answer(resolved, encoder(accepted))

    async def answer_decoded(self, decoding: Awaitable[ScoreRequest], encode: Encode) -> bytes:
        """The same of a request in whichever form. `decoding`: gives it."""
        started_s = time.perf_counter()
        request = await decoding
        decoded_s = time.perf_counter()
        resolved = await self._resolver.resolve(request)
        self.observe_decode(resolved, decoded_s - started_s, decoded_s)
        return self.encoded_answer(resolved, encode)

    def observe_decode(self, resolved: ResolvedRequest, decode_s: float, resolving_s: float) -> None:
        """Record the time spent on decoding, which took `decode_s`; resolving began at `resolving_s` of the performance counter.

        Packing tokens that the request contains counts as decoding. Waiting for tokens does not: TokenMetrics has that.
        """
        pack_s = time.perf_counter() - resolving_s if resolved.source == "token_ids" else 0.0
        self._metrics.seconds["decode"].observe(decode_s + pack_s)

    def encoded_answer(self, resolved: ResolvedRequest, encode: Encode) -> bytes:
        """Look up and encode. Raises Problem 404 for an unknown model."""
        started_s = time.perf_counter()
        plain = self._plain_scores(resolved) if has_form(encode) else None
        scores, speculative = self._look_up(resolved) if plain is None else ([], None)
        found_s = time.perf_counter()
        if plain is None:
            answer = self._answer(resolved, scores, speculative)
            content, best, tokens = encode(answer), answer.best, answer.tokens
            matched = answer.pods[0].matched_tokens if answer.pods else 0
            announced = matched - _speculative_tokens(answer.pods[0]) if answer.pods else 0
        else:
            view = ViewAnswer(self._view.source, self._view.age_s)
            tokens = resolved.tokens(plain.block_size)
            content = plain_answer(resolved.request.model, tokens, plain, resolved.request.limit, view, encode)
            best, matched = plain.best, plain.matched_blocks * plain.block_size
            announced = matched
        encoded_s = time.perf_counter()
        span = current_span.get()
        exemplar = None if span is None else span.exemplar()
        self._metrics.seconds["look_up"].observe(found_s - started_s, exemplar)
        self._metrics.seconds["encode"].observe(encoded_s - found_s, exemplar)
        if span is not None:
            span.note({"kv.model": resolved.request.model, "kv.tokens": tokens, "kv.matched_tokens": matched, "kv.pod": best or ""})
        self._metrics.requests["match" if best is not None else "no_match"].inc()
        self._metrics.prompt_tokens.inc(tokens)
        if best is not None:
            self._metrics.matched_tokens.inc(announced)
        return content

    def _plain_scores(self, resolved: ResolvedRequest) -> PlainScores | PackedScores | None:
        """The scores where they need no object for each pod, as nearly always; None where they do."""
        request, prompt = resolved.request, resolved.prompt
        if not isinstance(prompt, Prompt) or request.pods is not None or request.include_speculative:
            return None
        try:
            return self._view.score_plain(prompt)
        except KeyError:
            raise unknown_model(prompt.model) from None

    def _look_up(self, resolved: ResolvedRequest) -> tuple[list[PodScore], dict[Rank, int] | None]:
        """Every pod's score, best first, and how many blocks of each rank's match are speculative, None if the request does not count them."""
        request = resolved.request
        only = None if request.pods is None else frozenset(request.pods)
        try:
            if request.include_speculative:
                return self._router.score(resolved.prompt, only, time.monotonic())
            return self._view.score(resolved.prompt, only), None
        except KeyError:
            raise unknown_model(resolved.prompt.model) from None

    def _answer(self, resolved: ResolvedRequest, scores: list[PodScore], speculative: Mapping[Rank, int] | None) -> ScoreAnswer:
        pods = [_pod_answer(score, speculative) for score in scores[: resolved.request.limit]]
        return ScoreAnswer(
            model=resolved.request.model,
            tokens=resolved.tokens(scores[0].ranks[0].block_size if scores else None),
            best=pods[0].pod if pods and pods[0].matched_blocks else None,
            pods=pods,
            view=ViewAnswer(self._view.source, self._view.age_s),
            unknown_pods=resolved.unknown_pods({score.pod for score in scores}),
        )


def _speculative_tokens(pod: PodAnswer) -> int:
    """How many of the pod's matched tokens it does not hold yet."""
    return 0 if pod.speculative_blocks is UNSET else pod.speculative_blocks * (pod.block_size or 0)


def _pod_answer(score: PodScore, speculative: Mapping[Rank, int] | None) -> PodAnswer:
    best = score.ranks[0]
    return PodAnswer(
        pod=score.pod,
        score=best.score,
        matched_tokens=best.match.matched_blocks * (best.block_size or 0),
        matched_blocks=best.match.matched_blocks,
        usable_blocks=best.usable_blocks,
        block_size=best.block_size,
        tiers={TIER_WORDS[tier]: count for tier, count in enumerate(best.match.tiers) if count},
        rank=best.rank,
        ranks=matched_by_rank(score.ranks),
        trust=best.trust,
        speculative_blocks=UNSET if speculative is None else speculative.get((score.pod, best.rank), 0),
    )

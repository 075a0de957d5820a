"""Answers requests for a pick."""

import time
from collections.abc import Awaitable

from indexer.http.negotiation import Encode, encode, encoder
from indexer.http.problems import Problem
from indexer.tracing.current import current_span
from scorer_api.api.decode import decode_done, decode_route_at_once, decode_route_in_turns
from scorer_api.api.pod_apis import PodApis
from scorer_api.api.resolve import RequestResolver, ResolvedRequest, unknown_model
from scorer_api.api.route_schemas import DoneAnswer, DoneRequest, RouteAnswer, RouteRequest
from scorer_api.api.routed_requests import RoutedRequests
from scorer_api.api.schemas import ViewAnswer
from scorer_api.index.view import View
from scorer_api.routing.metrics import RouteMetrics
from scorer_api.routing.pick import NoPodError, Pick, PickRequest, UnknownModelError
from scorer_api.routing.router import Router

# When to ask again after an answer that no pod can be picked.
RETRY_AFTER_S = 1


def check_session(request: RouteRequest) -> None:
    """Raises Problem for a policy that lacks what it needs."""
    if request.policy == "session" and request.session_id is None:
        raise Problem(422, "session_id: the policy session needs one")


def pick_request_of(request: RouteRequest, model: str, apis: PodApis) -> PickRequest:
    """What the router is asked for."""
    return PickRequest(
        None if request.pods is None else frozenset(request.pods),
        frozenset(request.exclude or ()),
        request.policy,
        request.session_id,
        request.output_tokens_expected,
        request.include_speculative,
        prefill=() if request.pods is not None else apis.prefill_pods(model),
    )


class RouteHandler:
    """Answers `POST /v1/route` and `POST /v1/route/done` with the router's picks."""

    def __init__(self, view: View, resolver: RequestResolver, router: Router, routed: RoutedRequests, apis: PodApis, metrics: RouteMetrics) -> None:
        self._view = view
        self._resolver = resolver
        self._router = router
        self._routed = routed
        self._apis = apis
        self._metrics = metrics

    async def answer(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """The encoded answer to one request. Raises Problem."""
        return await self.answer_decoded(decode_route_in_turns(body, media_type, self._resolver.turn), encoder(accepted))

    async def answer_decoded(self, decoding: Awaitable[RouteRequest], encode: Encode) -> bytes:
        """The same of a request in whichever form. `decoding`: gives it."""
        started_s = time.perf_counter()
        request = await decoding
        check_session(request)
        return self._encoded_answer(request, await self._resolver.resolve(request), encode, started_s)

    def answer_at_once(self, body: bytes, media_type: str, accepted: str) -> bytes | None:
        """The same, for `indexer.http.at_once`."""
        started_s = time.perf_counter()
        request = decode_route_at_once(body, media_type)
        if request is None:
            return None
        check_session(request)
        resolved = self._resolver.resolve_at_once(request)
        return None if resolved is None else self._encoded_answer(request, resolved, encoder(accepted), started_s)

    def _encoded_answer(self, request: RouteRequest, resolved: ResolvedRequest, encode: Encode, started_s: float) -> bytes:
        """Pick and encode. `started_s`: when decoding began, by the performance counter. Raises Problem."""
        decoded_s = time.perf_counter()
        pick = self._pick(resolved, request)
        picked_s = time.perf_counter()
        content = encode(self._answer(resolved, pick))
        span = current_span.get()
        exemplar = None if span is None else span.exemplar()
        self._metrics.seconds["decode"].observe(decoded_s - started_s, exemplar)
        self._metrics.seconds["pick"].observe(picked_s - decoded_s, exemplar)
        self._metrics.seconds["encode"].observe(time.perf_counter() - picked_s, exemplar)
        if span is not None:
            matched = pick.reasons[pick.order[0]].matched_tokens
            span.note({"kv.model": resolved.request.model, "kv.pod": pick.order[0], "kv.picked_for": pick.picked_for, "kv.matched_tokens": matched})
        self._metrics.requests["picked"].inc()
        self._metrics.picked(pick)
        return content

    def _pick(self, resolved: ResolvedRequest, request: RouteRequest) -> Pick:
        try:
            return self._router.pick(resolved.prompt, pick_request_of(request, resolved.prompt.model, self._apis), time.monotonic())
        except UnknownModelError:
            raise unknown_model(resolved.prompt.model) from None
        except NoPodError as error:
            raise Problem(503, str(error), retry_after_s=RETRY_AFTER_S) from None

    def _answer(self, resolved: ResolvedRequest, pick: Pick) -> RouteAnswer:
        order, reasons = pick.order, pick.reasons
        if resolved.request.limit is not None:
            order = order[: resolved.request.limit]
            reasons = {pod: reasons[pod] for pod in order}
        return RouteAnswer(
            model=resolved.request.model,
            tokens=resolved.tokens(pick.block_size),
            id=pick.id,
            pod=order[0],
            rank=pick.rank,
            fallbacks=order[1:],
            policy=pick.policy,
            picked_for=pick.picked_for,
            reason=reasons,
            http={pod: api.base for pod, api in self._apis.of(resolved.prompt.model, order).items()},
            view=ViewAnswer(self._view.source, self._view.age_s),
            unknown_pods=resolved.unknown_pods(pick.reasons),
        )

    async def done(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """Forget a routed request. Raises Problem for a body of another shape, not for an id that is unknown here."""
        return encode(await self.done_decoded(decode_done(body, media_type)), accepted)

    async def done_decoded(self, request: DoneRequest) -> DoneAnswer:
        """The same of a decoded request."""
        return DoneAnswer(request.id, await self._routed.done(request.id))

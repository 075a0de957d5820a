"""Requests for a pick, from their bytes to the bytes of their answers."""

import time

import msgspec

from indexer.errors import field_first
from indexer.http.negotiation import JSON, MSGPACK, encode
from indexer.http.problems import Problem
from scorer_api.api.decode import decode_as, decoders
from scorer_api.api.resolve import Asked, Asking, unknown_model
from scorer_api.api.route_schemas import DoneAnswer, DoneRequest, RouteAnswer, RouteRequest, RouteRequestMsgpack
from scorer_api.api.schemas import ViewAnswer
from scorer_api.api.score import length_of, unknown_pods
from scorer_api.index.view import View
from scorer_api.routing.metrics import RouteMetrics
from scorer_api.routing.router import NoPodError, Picked, Router, UnknownModelError, Wanted

# Whoever was told that there is no pod may ask again so soon.
RETRY_AFTER_S = 1

ROUTE = decoders(RouteRequest, RouteRequestMsgpack)
_DECODE_DONE = {JSON: msgspec.json.Decoder(DoneRequest).decode, MSGPACK: msgspec.msgpack.Decoder(DoneRequest).decode}


class RouteAnswers:
    """Answers with picks of the router."""

    def __init__(self, view: View, asking: Asking, router: Router, metrics: RouteMetrics) -> None:
        self._view = view
        self._asking = asking
        self._router = router
        self._metrics = metrics

    async def route(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """The answer to one request. Raises Problem."""
        began_s = time.perf_counter()
        request = decode_as(body, media_type, ROUTE)
        if request.policy == "session" and request.session_id is None:
            raise Problem(422, "session_id: the policy session needs one")
        asked = await self._asking.ask(request)
        decoded_s = time.perf_counter()
        picked = self._pick(asked, request)
        picked_s = time.perf_counter()
        content = encode(_answer(request, length_of(asked, picked.block_size), picked, ViewAnswer(self._view.source, self._view.age_s)), accepted)
        self._metrics.seconds["decode"].observe(decoded_s - began_s)
        self._metrics.seconds["pick"].observe(picked_s - decoded_s)
        self._metrics.seconds["encode"].observe(time.perf_counter() - picked_s)
        self._metrics.picked(picked)
        return content

    def _pick(self, asked: Asked, request: RouteRequest) -> Picked:
        wanted = Wanted(
            None if request.pods is None else frozenset(request.pods),
            frozenset(request.exclude or ()),
            request.policy,
            request.session_id,
            request.output_tokens_expected,
            request.include_speculative,
        )
        try:
            return self._router.pick(asked.prompt, wanted, time.monotonic())
        except UnknownModelError:
            raise unknown_model(asked.prompt.model) from None
        except NoPodError as error:
            raise Problem(503, str(error), retry_after_s=RETRY_AFTER_S) from None

    def done(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """Take a request back. Raises Problem for what is no such request; an id that does not count here is none."""
        try:
            request = _DECODE_DONE[media_type](body)
        except msgspec.ValidationError as error:
            raise Problem(422, field_first(str(error))) from None
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise Problem(400, f"the body is not valid {media_type}: {error}") from None
        is_known = self._router.done(request.id)
        self._metrics.told_done(is_known=is_known)
        return encode(DoneAnswer(request.id, is_known), accepted)


def _answer(request: RouteRequest, tokens: int, picked: Picked, seen: ViewAnswer) -> RouteAnswer:
    order, reasons = picked.order, picked.reasons
    if request.limit is not None:
        order = order[: request.limit]
        reasons = {pod: reasons[pod] for pod in order}
    answer = RouteAnswer(request.model, tokens, picked.name, order[0], picked.rank, order[1:], picked.policy, picked.picked_for, reasons, seen)
    if request.pods is None:
        return answer
    return msgspec.structs.replace(answer, unknown_pods=unknown_pods(request.pods, picked.reasons))

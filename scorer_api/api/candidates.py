"""Answers what a pick would be made from, for who picks from the pods of several scorers."""

import time

from indexer.http.negotiation import encode
from scorer_api.api.decode import decode_route_in_turns
from scorer_api.api.pod_apis import PodApis
from scorer_api.api.resolve import RequestResolver, unknown_model
from scorer_api.api.route import check_session, pick_request_of
from scorer_api.api.route_schemas import CandidatesAnswer
from scorer_api.api.schemas import ViewAnswer
from scorer_api.index.view import View
from scorer_api.routing.pick import UnknownModelError
from scorer_api.routing.router import Router


class CandidatesHandler:
    """Answers `POST /v1/candidates`. Nothing is picked, and no prompt is counted."""

    def __init__(self, view: View, resolver: RequestResolver, router: Router, apis: PodApis) -> None:
        self._view = view
        self._resolver = resolver
        self._router = router
        self._apis = apis

    async def answer(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """The encoded answer to one request. Raises Problem."""
        request = await decode_route_in_turns(body, media_type, self._resolver.turn)
        check_session(request)
        resolved = await self._resolver.resolve(request)
        model = resolved.prompt.model
        pick_request = pick_request_of(request, model, self._apis)
        try:
            found = self._router.candidates(resolved.prompt, pick_request, time.monotonic())
        except UnknownModelError:
            raise unknown_model(model) from None
        pods = [candidate.pod for candidate in (*found.fresh, *found.stale)]
        answer = CandidatesAnswer(
            model=request.model,
            tokens=resolved.tokens(found.block_size),
            fresh=found.fresh,
            stale=found.stale,
            reason=found.reasons,
            http={pod: api.base for pod, api in self._apis.of(model, pods).items()},
            view=ViewAnswer(self._view.source, self._view.age_s),
            unknown_pods=resolved.unknown_pods(found.reasons),
        )
        return encode(answer, accepted)

"""The calls of gateways: each is an exchange of messages around one pick."""

import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, nullcontext

from msgspec import structs

from indexer.config.settings import Settings
from indexer.http.body_room import BodyRoom
from indexer.http.negotiation import JSON
from indexer.http.problems import Problem
from indexer.tracing.current import active_tracer
from scorer_api.api.asking import asked_of, why_unread
from scorer_api.api.client_body import with_model
from scorer_api.api.outcomes import count_failures
from scorer_api.api.pick import Picked, Picker
from scorer_api.api.pick_metrics import PickMetrics
from scorer_api.api.pick_schemas import ERROR_TYPES, encoded_error
from scorer_api.gateway.exchange import Exchange, Question, RefusedError
from scorer_api.gateway.messages import HOPS, MODEL_REWRITE, PREFILLER, Mutation
from scorer_api.gateway.metrics import CallOutcome, GatewayMetrics, ServedBy
from scorer_api.rpc.protobuf import MalformedError

log = logging.getLogger(__name__)

Write = Callable[[bytes], Awaitable[None]]


class Calls:
    """Answers calls. `count`: how many there are now; `total`: how many there were."""

    def __init__(self, settings: Settings, picker: Picker, pick_metrics: PickMetrics, metrics: GatewayMetrics, room: BodyRoom) -> None:
        """`room`: for the bodies of all requests of the process."""
        self._settings = settings
        self._picker = picker
        self._pick_metrics = pick_metrics
        self._metrics = metrics
        self._room = room
        self._tracer = active_tracer()
        self.total = 0
        self.count = 0

    async def serve(self, messages: AsyncIterable[bytes], write: Write) -> None:
        """Answer one call until the gateway ends it. To end it sooner would cut its response off. Raises MalformedError, and what `write` raises."""
        self.total += 1
        self.count += 1
        self._metrics.open.inc()
        call = _Call(self, self._metrics, Exchange(self._room, self._settings.body_bytes_max), write)
        outcome: CallOutcome = "aborted"
        try:
            async for message in messages:
                await call.receive(message)
            outcome = call.outcome
        except MalformedError:
            outcome = "malformed"
            raise
        finally:
            self.count -= 1
            self._metrics.open.dec()
            self._metrics.calls[outcome].inc()
            call.close(outcome)

    def _span(self, headers: Mapping[str, str]) -> AbstractContextManager[object]:
        """The span of a pick, as a part of the trace that the client's headers name."""
        return nullcontext() if self._tracer is None else self._tracer.request("pick", headers, {"rpc.system": "grpc", "rpc.method": "Process"})

    def prefilled(self, name: str) -> None:
        """The response to a picked request has begun, so its prompt is computed."""
        self._picker.prefilled(name)

    def done(self, name: str) -> None:
        """A picked request is over."""
        self._picker.done(name)

    async def pick(self, question: Question) -> tuple[Picked, Mutation, bytes | None]:
        """The pick, what it changes of the request, and the body in place of that which came. Raises Problem."""
        headers = question.headers
        asked = asked_of(headers, headers.get(":path", "").partition("?")[0], question.body, "over_limit" if question.is_cut else None)
        if question.body and (by_load := why_unread(headers)) is not None:
            asked = structs.replace(asked, body=None, by_load=by_load)
        sent_as = next((headers[name] for name in MODEL_REWRITE if headers.get(name)), None)
        asked = structs.replace(asked, sent_as=sent_as, fallbacks=self._settings.gateway_fallbacks, subset=question.subset)
        with count_failures(self._pick_metrics.requests), self._span(headers):
            picked = await self._picker.pick(asked)
        hops = {} if picked.prefill is None else {PREFILLER: picked.prefill}
        # A client that sets one itself would send a pod elsewhere.
        removed = [name for name in HOPS if name in headers and name not in hops]
        mutation = Mutation(",".join((picked.destination, *picked.fallbacks)), list(hops.items()), removed)
        return picked, mutation, with_model(asked.body, sent_as) if asked.body and sent_as else None


class _Call:
    """One call: carries messages between the gateway and the exchange, and tells the router when the request is over."""

    def __init__(self, calls: Calls, metrics: GatewayMetrics, exchange: Exchange, write: Write) -> None:
        self._calls = calls
        self._metrics = metrics
        self._exchange = exchange
        self._write = write
        self._picked: Picked | None = None
        self._is_prefilling = False
        self._has_failed = False

    @property
    def outcome(self) -> CallOutcome:
        """Of a call that the gateway ended in good order."""
        if self._exchange.is_refused:
            return "failed" if self._has_failed else "refused"
        return "answered" if self._exchange.has_response else "unanswered"

    async def receive(self, message: bytes) -> None:
        """Raises MalformedError, and what writing raises."""
        try:
            for reply in self._exchange.receive(message):
                await self._write(reply)
            if (question := self._exchange.take_question()) is not None:
                await self._answer(question)
        except RefusedError as error:
            await self._refuse(error.status, error.detail, error.retry_after_s)
        if self._exchange.has_response and self._is_prefilling:
            self._is_prefilling = False
            if self._picked is not None:
                self._calls.prefilled(self._picked.id)
        if self._exchange.is_over:
            self._end()

    def close(self, outcome: CallOutcome) -> None:
        """The call has ended. Where a gateway does not tell the end of a request, the router forgets it after a while."""
        if self._exchange.tells_the_end or outcome == "aborted":
            self._end()
        self._exchange.close()
        self._metrics.pieces.inc(self._exchange.pieces_echoed)

    async def _answer(self, question: Question) -> None:
        try:
            self._picked, mutation, body = await self._calls.pick(question)
        except Problem as problem:
            status = problem.status if problem.status in ERROR_TYPES else 500
            await self._refuse(status, problem.detail, problem.retry_after_s)
            return
        except Exception:
            log.exception("pick failed")
            self._has_failed = True
            await self._refuse(500, "an internal error; the log of the endpoint picker says more")
            return
        self._is_prefilling = self._picked.prefill is not None
        for reply in self._exchange.picked(mutation, body):
            await self._write(reply)

    async def _refuse(self, status: int, detail: str, retry_after_s: int | None = None) -> None:
        self._metrics.refusals[status].inc()
        headers = [("content-type", JSON)]
        if retry_after_s is not None:
            headers.append(("retry-after", str(retry_after_s)))
        await self._write(self._exchange.refused(status, encoded_error(status, detail), headers, f"kv-indexer: {status}"))

    def _end(self) -> None:
        """The request is over, which is told once."""
        picked, self._picked = self._picked, None
        if picked is None:
            return
        self._calls.done(picked.id)
        if not self._exchange.has_response:
            return
        by = _served_by(picked, self._exchange.served)
        self._metrics.served[by].inc()
        reported = self._exchange.cached_tokens()
        if reported is not None and picked.by_load is None and by in ("picked", "unknown"):
            self._metrics.note_cached(picked.matched_tokens, reported, picked.block_size or 1)


def _served_by(picked: Picked, served: str | None) -> ServedBy:
    if served is None:
        return "unknown"
    if served == picked.destination:
        return "picked"
    return "fallback" if served in picked.fallbacks else "other"

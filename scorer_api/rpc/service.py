"""The methods of the scorer over gRPC, without gRPC: bytes in, bytes out, and refusals."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext
from functools import partial

from indexer.config.settings import Settings
from indexer.http.access import Access
from indexer.http.problems import Problem, details_of
from indexer.http.routes import Pods
from indexer.tracing.current import active_tracer
from scorer_api.api.batch import in_order
from scorer_api.api.handlers import Handlers
from scorer_api.api.outcomes import count_failures
from scorer_api.rpc.changes import Changes
from scorer_api.rpc.metrics import RpcMetrics
from scorer_api.rpc.problems import Refusal, refusal_of
from scorer_api.rpc.protobuf import bytes_field
from scorer_api.rpc.requests import done_request_of, read_request, route_request_of, score_request_of, split_batch
from scorer_api.rpc.schema import SCHEMA
from scorer_api.rpc.writing import encode

log = logging.getLogger(__name__)

Metadata = Sequence[tuple[str, str | bytes]]
Answer = Callable[[bytes, Metadata], Awaitable[bytes]]
Stream = Callable[[bytes, Metadata], AsyncGenerator[bytes, None]]
RETRY_AFTER_S = 1
WATCH_BYTES_MAX = 65_536
# All answers to a batch are one message, which is put together in memory.
BATCH_ANSWER_BYTES_MAX = 32 * 2**20
INTERNAL = "an internal error; the service's log says more"


# In place of each answer that there is no room for.
TOO_MUCH = bytes_field(
    2,
    encode(
        "Problem",
        details_of(413, f"the answers to the batch have more than {BATCH_ANSWER_BYTES_MAX} bytes before this one; give limit, or ask for fewer"),
    ),
)


class RefusedCallError(Exception):
    """The call fails with this status."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


class ScorerService:
    """`methods`: path of a call → what answers it. `streams`: the same of calls that are answered with messages without end.

    `total`: how many calls there were. Both raise RefusedCallError.
    """

    def __init__(self, settings: Settings, handlers: Handlers, pods: Pods, access: Access, metrics: RpcMetrics) -> None:
        self._handlers = handlers
        self._access = access
        self._metrics = metrics
        self._tracer = active_tracer()
        self._body_bytes_max = settings.body_bytes_max
        self._room = access.room
        self._changes = Changes(pods.pods, settings.limits.gateway.watch_interval_s, settings.limits.gateway.watches_max, metrics)
        self._counters = {
            "Score": handlers.metrics.requests,
            "Route": handlers.route_metrics.requests,
            "Explain": handlers.metrics.explanations,
        }
        self.total = 0
        answers = {"Score": self._score, "ScoreBatch": self._score_batch, "Route": self._route, "Done": self._done, "Explain": self._explain}
        self.methods: dict[str, Answer] = {SCHEMA.path(name): partial(self._call, name, answer) for name, answer in answers.items()}
        self.streams: dict[str, Stream] = {SCHEMA.path("Watch"): self._watch}

    def end(self) -> None:
        """Watches end, since they would never end by themselves."""
        self._changes.end()

    async def _call(self, method: str, answer: Callable[[bytes], Awaitable[bytes]], request: bytes, metadata: Metadata) -> bytes:
        with self._counted(method), self._span(method, metadata):
            self._check_token(metadata)
            with self._counted_failures(method):
                self._take_room(len(request))
            try:
                return await answer(request)
            finally:
                self._room.bytes_left += len(request)

    async def _watch(self, request: bytes, metadata: Metadata) -> AsyncGenerator[bytes, None]:
        with self._counted("Watch"):
            self._check_token(metadata)
            if len(request) > WATCH_BYTES_MAX:  # kept as long as the watch
                raise Problem(413, f"the message has {len(request)} bytes; at most {WATCH_BYTES_MAX} are taken")
            async with aclosing(self._changes.watch(read_request("WatchRequest", request).get("model"))) as messages:
                async for message in messages:
                    self._check_token(metadata)  # it may have been withdrawn
                    yield message

    async def _score(self, request: bytes) -> bytes:
        with count_failures(self._handlers.metrics.requests):
            decoding = score_request_of(request, self._handlers.resolver.turn)
            return await self._handlers.scores.answer_decoded(decoding, partial(encode, "ScoreAnswer"))

    async def _score_batch(self, request: bytes) -> bytes:
        bytes_left = BATCH_ANSWER_BYTES_MAX

        async def score_one(part: memoryview) -> bytes:
            nonlocal bytes_left
            item = await self._score_one(part) if bytes_left > 0 else TOO_MUCH
            bytes_left -= len(item)
            return item

        async with aclosing(in_order(split_batch(request), score_one)) as answers:
            return b"".join([bytes_field(1, answer) async for answer in answers])

    async def _score_one(self, request: memoryview) -> bytes:
        """A `ScoreBatchItem`. Other requests have their turn between two of a batch."""
        try:
            answer = await self._score(bytes(request))
            await asyncio.sleep(0)
        except Problem as problem:
            return bytes_field(2, encode("Problem", details_of(problem.status, problem.detail)))
        except Exception:
            log.exception("request of a batch failed")
            return bytes_field(2, encode("Problem", details_of(500, INTERNAL)))
        return bytes_field(1, answer)

    async def _route(self, request: bytes) -> bytes:
        with count_failures(self._handlers.route_metrics.requests):
            decoding = route_request_of(request, self._handlers.resolver.turn)
            return await self._handlers.picks.answer_decoded(decoding, partial(encode, "RouteAnswer"))

    async def _done(self, request: bytes) -> bytes:
        return encode("DoneAnswer", await self._handlers.picks.done_decoded(done_request_of(request)))

    async def _explain(self, request: bytes) -> bytes:
        decoding = score_request_of(request, self._handlers.resolver.turn)
        return await self._handlers.explanations.answer_decoded(decoding, partial(encode, "ExplainAnswer"))

    def _check_token(self, metadata: Metadata) -> None:
        """Raises Problem 401."""
        if not self._access.needs_token:
            return
        headers = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in metadata]
        if (why := self._access.refusal(headers)) is not None:
            raise Problem(401, why)

    def _take_room(self, size: int) -> None:
        """Raises Problem: 413 for a request that is too large, 429 where all that are answered now leave no room for it."""
        if size > self._body_bytes_max:
            raise Problem(413, f"the message has {size} bytes; at most {self._body_bytes_max} are taken")
        if size > self._room.bytes_left:
            raise Problem(429, "the requests that are answered now leave no room (bodies_bytes_max); try again", retry_after_s=RETRY_AFTER_S)
        self._room.bytes_left -= size

    def _counted_failures(self, method: str) -> AbstractContextManager[None]:
        counters = self._counters.get(method)
        return nullcontext() if counters is None else count_failures(counters)

    def _span(self, method: str, metadata: Metadata) -> AbstractContextManager[object]:
        if self._tracer is None:
            return nullcontext()
        headers = {name: value for name, value in metadata if isinstance(value, str)}
        return self._tracer.request(SCHEMA.path(method)[1:], headers, {"rpc.system": "grpc", "rpc.service": SCHEMA.service, "rpc.method": method})

    @contextmanager
    def _counted(self, method: str) -> Iterator[None]:
        """One call, counted by its status. Raises RefusedCallError for all that goes wrong."""
        self.total += 1
        code = "OK"
        try:
            yield
        except Problem as problem:
            refusal = refusal_of(problem)
            code = refusal.code
            raise RefusedCallError(refusal) from None
        except (asyncio.CancelledError, GeneratorExit):
            code = "CANCELLED"
            raise
        except Exception:
            log.exception("call failed")
            code = "INTERNAL"
            raise RefusedCallError(refusal_of(Problem(500, INTERNAL))) from None
        finally:
            self._metrics.note_call(method, code)

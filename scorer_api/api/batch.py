"""Answers batches of score requests. Each is counted by its own outcome."""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import aclosing
from itertools import islice
from typing import Any, TypeVar

from indexer.http.negotiation import JSON, encode, encoder
from indexer.http.problems import Problem, details_of
from scorer_api.api.decode import decode_score, decode_score_in_turns, split_batch_in_turns
from scorer_api.api.outcomes import count_failures
from scorer_api.api.resolve import RequestResolver
from scorer_api.api.schemas import BatchProblem
from scorer_api.api.score import ScoreHandler
from scorer_api.metrics import ScorerMetrics
from scorer_api.tokens.token_lists import LIST_BYTES_MIN

T = TypeVar("T")

log = logging.getLogger(__name__)

# Requests of one batch that are in progress at the same time, so that those whose tokens an engine has to find wait for them together.
CONCURRENT_MAX = 8
# An answer is sent in pieces of about so many bytes. A smaller one is sent as a whole, with its length.
PIECE_BYTES = 65_536


async def in_order(requests: Sequence[T], answer: Callable[[T], Coroutine[Any, Any, bytes]]) -> AsyncGenerator[bytes, None]:
    """The answers to these requests, some of which are in progress at the same time."""
    remaining = iter(enumerate(requests))
    working: deque[asyncio.Task[bytes]] = deque()
    try:
        while True:
            for number, request in islice(remaining, CONCURRENT_MAX - len(working)):
                working.append(asyncio.create_task(answer(request), name=f"batch {number}"))
            if not working:
                break
            found = await working[0]
            working.popleft()
            yield found
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)


class BatchHandler:
    """Answers `POST /v1/score/batch`."""

    def __init__(self, scores: ScoreHandler, resolver: RequestResolver, metrics: ScorerMetrics) -> None:
        self._scores = scores
        self._resolver = resolver
        self._metrics = metrics

    async def answer(self, body: bytes, media_type: str, accepted: str) -> AsyncGenerator[bytes, None]:
        """The encoded answers, in the order of the requests, in pieces: the next ones are made while these are read.

        Raises Problem for a body that is not a batch.
        """
        requests = await split_batch_in_turns(body, media_type, self._resolver.turn)
        return self._pieces(requests, media_type, accepted)

    async def _pieces(self, requests: Sequence[bytes], media_type: str, accepted: str) -> AsyncGenerator[bytes, None]:
        begin, between, end = _framing(len(requests), accepted)
        piece = bytearray(begin)
        is_first = True
        async with aclosing(in_order(requests, lambda request: self._answer_in_turn(request, media_type, accepted))) as answers:
            async for answer in answers:
                piece += answer if is_first else between + answer
                is_first = False
                if len(piece) >= PIECE_BYTES:
                    yield bytes(piece)
                    piece.clear()
        yield bytes(piece + end)

    async def _answer_in_turn(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """One encoded answer or problem. Each step holds the turn and then yields: all batches together block the event loop for one step at most."""
        turn = self._resolver.turn
        try:
            with count_failures(self._metrics.requests):
                started_s = time.perf_counter()
                if len(body) < LIST_BYTES_MIN:
                    async with turn:
                        started_s = time.perf_counter()
                        request = decode_score(body, media_type)
                        await asyncio.sleep(0)
                else:
                    request = await decode_score_in_turns(body, media_type, turn)
                decode_s = time.perf_counter() - started_s
                resolving_s = time.perf_counter()
                resolved = await self._resolver.resolve(request)
                self._scores.observe_decode(resolved, decode_s, resolving_s)
                async with turn:
                    answer = self._scores.encoded_answer(resolved, encoder(accepted))
                    await asyncio.sleep(0)
                return answer
        except Problem as problem:
            return encode(BatchProblem(details_of(problem.status, problem.detail)), accepted)
        except Exception:
            log.exception("request of a batch failed")
            return encode(BatchProblem(details_of(500, "an internal error; the service's log says more")), accepted)


def _framing(count: int, media_type: str) -> tuple[bytes, bytes, bytes]:
    """What is before, between and behind so many encoded answers, see `_batch_answer` in the components."""
    if media_type == JSON:
        return b'{"answers":[', b",", b"]}"
    return b"\x81\xa7answers\xdc" + count.to_bytes(2, "big"), b"", b""

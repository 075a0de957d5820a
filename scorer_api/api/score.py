"""Score requests, from their bytes to the bytes of their answers, one by one or many at once. Each is counted by its outcome."""

import asyncio
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import msgspec
from msgspec import UNSET, Raw
from prometheus_client import Counter
from starlette.requests import ClientDisconnect

from indexer.core.events import Tier
from indexer.http.negotiation import encode
from indexer.http.problems import Problem, details_of
from scorer_api.api import batch
from scorer_api.api.decode import decode
from scorer_api.api.resolve import Asked, Asking, unknown_model
from scorer_api.api.schemas import BatchAnswer, BatchProblem, PodAnswer, ScoreAnswer, ScoreRequest, ViewAnswer
from scorer_api.index.prefix_index import OWN_TIERS
from scorer_api.index.view import PodScore, Prompt, View, ranks_by_number
from scorer_api.metrics import ScorerMetrics
from scorer_api.routing.router import Router
from scorer_api.routing.speculation import Rank

log = logging.getLogger(__name__)

OUTCOME_OF_STATUS = {
    400: "malformed",
    404: "unknown_model",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_type",
    422: "wrong_value",
    501: "no_engine_hashes",
    502: "no_tokens",
    503: "no_pod",
}
TIER_WORDS = [Tier(tier).word for tier in OWN_TIERS]
# So many requests of a batch are at work at once: those whose tokens have to be asked for wait for them together.
AT_ONCE = 8


@contextmanager
def counted(requests: Mapping[str, Counter]) -> Iterator[None]:
    """Count what goes wrong with one request, by outcome. What is answered counts itself."""
    try:
        yield
    except Problem as problem:
        requests[OUTCOME_OF_STATUS[problem.status]].inc()
        raise
    except ClientDisconnect:
        requests["disconnected"].inc()
        raise
    except Exception:
        requests["failed"].inc()
        raise


class Answers:
    """Answers score requests from the view, and from what was routed where that is asked for."""

    def __init__(self, view: View, asking: Asking, metrics: ScorerMetrics, router: Router) -> None:
        self._view = view
        self._asking = asking
        self._router = router
        self._metrics = metrics

    async def score(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """The answer to one request. Raises Problem."""
        started_s = time.perf_counter()
        request = decode(body, media_type)
        decoded_s = time.perf_counter()
        asked = await self._asking.ask(request)
        self._note_decoded(asked, started_s, decoded_s, decoded_s)
        return self._answer(asked, accepted)

    def _note_decoded(self, asked: Asked, began_s: float, decoded_s: float, asks_s: float) -> None:
        """What tokens had to be waited for is counted with them."""
        packed_s = time.perf_counter() - asks_s if asked.source == "token_ids" else 0.0
        self._metrics.seconds["decode"].observe(decoded_s - began_s + packed_s)

    def _answer(self, asked: Asked, accepted: str) -> bytes:
        request = asked.request
        only = None if request.pods is None else frozenset(request.pods)
        expected: dict[Rank, int] | None = None
        began_s = time.perf_counter()
        try:
            if request.include_speculative:
                scores, expected = self._router.score(asked.prompt, only, time.monotonic())
            else:
                scores = self._view.score(asked.prompt, only)
        except KeyError:
            raise unknown_model(asked.prompt.model) from None
        found_s = time.perf_counter()
        length = length_of(asked, scores[0].ranks[0].block_size if scores else None)
        answer = _score_answer(request, length, scores, expected, ViewAnswer(self._view.source, self._view.age_s))
        content = encode(answer, accepted)
        encoded_s = time.perf_counter()
        self._metrics.seconds["look_up"].observe(found_s - began_s)
        self._metrics.seconds["encode"].observe(encoded_s - found_s)
        self._metrics.requests["match" if answer.best is not None else "no_match"].inc()
        self._metrics.prompt_tokens.inc(answer.tokens)
        if answer.best is not None:
            self._metrics.matched_tokens.inc(answer.pods[0].matched_tokens - _expected_tokens(answer.pods[0]))
        return content

    async def batch(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """The answers to all requests of a batch, in its order. Raises Problem for what is no batch."""
        requests = batch.split(body, media_type)
        found = [b""] * len(requests)
        left = iter(enumerate(requests))
        turn = asyncio.Lock()

        async def work() -> None:
            for number, request in left:
                found[number] = await self._answer_in_turn(request, media_type, accepted, turn)

        async with asyncio.TaskGroup() as tasks:
            for number in range(min(AT_ONCE, len(requests))):
                tasks.create_task(work(), name=f"batch {number}")
        return encode(BatchAnswer(list(map(Raw, found))), accepted)

    async def _answer_in_turn(self, body: bytes, media_type: str, accepted: str, turn: asyncio.Lock) -> bytes:
        """One answer or problem. Whoever has the turn does one piece of work; then everything else in this process has its own."""
        try:
            with counted(self._metrics.requests):
                async with turn:
                    began_s = time.perf_counter()
                    request = decode(body, media_type)
                    decoded_s = time.perf_counter()
                    await asyncio.sleep(0)
                asks_s = time.perf_counter()
                asked = await self._asking.ask(request)
                self._note_decoded(asked, began_s, decoded_s, asks_s)
                async with turn:
                    answer = self._answer(asked, accepted)
                    await asyncio.sleep(0)
                return answer
        except Problem as problem:
            return encode(BatchProblem(details_of(problem.status, problem.detail)), accepted)
        except Exception:
            log.exception("request of a batch failed")
            return encode(BatchProblem(details_of(500, "an internal error; the service's log says more")), accepted)


def _expected_tokens(pod: PodAnswer) -> int:
    """Of its matched tokens those that it does not hold yet."""
    return 0 if pod.speculative_blocks is UNSET else pod.speculative_blocks * (pod.block_size or 0)


def length_of(asked: Asked, block_size: int | None) -> int:
    """Of what is looked for, in tokens. `block_size`: the best pod's; by it engine hashes are taken to stand for tokens."""
    return asked.prompt.length if isinstance(asked.prompt, Prompt) else len(asked.prompt.hashes) * (block_size or 0)


def _score_answer(asked: ScoreRequest, tokens: int, scores: list[PodScore], expected: Mapping[Rank, int] | None, seen: ViewAnswer) -> ScoreAnswer:
    answers = [_pod_answer(score) for score in scores[: asked.limit]]
    if expected is not None:
        answers = [msgspec.structs.replace(pod, speculative_blocks=expected.get((pod.pod, pod.rank), 0)) for pod in answers]
    best = answers[0].pod if answers and answers[0].matched_blocks else None
    answer = ScoreAnswer(asked.model, tokens, best, answers, seen)
    if asked.pods is None:
        return answer
    return msgspec.structs.replace(answer, unknown_pods=unknown_pods(asked.pods, {score.pod for score in scores}))


def unknown_pods(asked: list[str], known: Collection[str]) -> list[str]:
    """Those of the pods asked for that nobody knows, each once."""
    return [pod for pod in dict.fromkeys(asked) if pod not in known]


def _pod_answer(score: PodScore) -> PodAnswer:
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
        ranks=ranks_by_number(score.ranks),
        trust=best.trust,
    )

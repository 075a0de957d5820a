"""Answers requests for explanations. All that an explanation costs is spent here: a score does none of it."""

import asyncio
import sys
import time
from array import array
from collections.abc import Awaitable, Sequence

from indexer.core.adapters import ADAPTERS_MAX
from indexer.http.negotiation import Encode, encoder
from indexer.http.routes import Pods
from indexer.http.turns import Turns
from indexer.streams.status import StreamStatus
from scorer_api.api.adapters import Adapters
from scorer_api.api.decode import decode_score_in_turns
from scorer_api.api.outcomes import count_failures
from scorer_api.api.resolve import RequestResolver, ResolvedRequest, unknown_model
from scorer_api.api.schemas import ExplainAnswer, ScoreRequest, ViewAnswer
from scorer_api.explain.hints import hints
from scorer_api.explain.reasons import PodLoad, PromptFacts, StreamFacts, describe_model, explain_pod
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import EMBEDDED, View
from scorer_api.metrics import ScorerMetrics

# Of packed tokens, at a time.
PIECE_BYTES = 65_536


class ExplainHandler:
    """Answers `POST /v1/explain`. `pods`: the status of their streams. `load_max_age_s`: an older load counts as unknown."""

    def __init__(self, view: View, resolver: RequestResolver, pods: Pods, adapters: Adapters, metrics: ScorerMetrics, load_max_age_s: float) -> None:
        self._view = view
        self._resolver = resolver
        self._pods = pods
        self._adapters = adapters
        self._metrics = metrics
        self._load_max_age_s = load_max_age_s

    async def answer(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """The encoded explanation for one request. Raises Problem."""
        return await self.answer_decoded(decode_score_in_turns(body, media_type, self._resolver.turn), encoder(accepted))

    async def answer_decoded(self, decoding: Awaitable[ScoreRequest], encode: Encode) -> bytes:
        """The same of a request in whichever form. `decoding`: gives it."""
        with count_failures(self._metrics.explanations):
            turn = self._resolver.turn
            resolved = await self._resolver.resolve(await decoding)
            highest = await _highest_token(resolved.prompt.tokens, turn) if isinstance(resolved.prompt, Prompt) else None
            statuses = await self._statuses(resolved.prompt.model)
            content = encode(self._explain(resolved, highest, statuses))
        self._metrics.explanations["answered"].inc()
        return content

    async def _statuses(self, model: str) -> list[tuple[str, StreamStatus]]:
        """Of all streams of a model, with their pods. Others have their turn in between: there may be thousands."""
        statuses, turns = [], Turns()
        for pod in self._pods.pods():
            if pod.model == model:
                statuses += [(pod.pod, status) for status in pod.streams]
            await turns.give()
        return statuses

    def _explain(self, resolved: ResolvedRequest, highest_token: int | None, statuses: Sequence[tuple[str, StreamStatus]]) -> ExplainAnswer:
        request, model = resolved.request, resolved.prompt.model
        try:
            traces = self._view.trace(resolved.prompt)
            counts = self._view.prompt_counts(model)
        except KeyError:
            raise unknown_model(model) from None
        streams = [self._stream_facts(pod, status) for pod, status in statuses]
        tokens = resolved.tokens(traces[0].ranks[0].block_size if traces else None)
        prompt = _prompt_facts(resolved, tokens, highest_token, [status for _, status in statuses], self._adapters.of_model(model), *counts)
        streams_by_pod: dict[str, dict[int, StreamFacts]] = {}
        for stream in streams:
            streams_by_pod.setdefault(stream.pod, {})[stream.rank] = stream
        requested = [pod for pod in traces if request.pods is None or pod.pod in request.pods]
        return ExplainAnswer(
            model=request.model,
            tokens=tokens,
            source=resolved.source,
            pods=[
                explain_pod(
                    pod,
                    prompt,
                    streams_by_pod.get(pod.pod, {}),
                    self._load(model, pod.pod),
                    is_ready=(model, pod.pod) not in self._view.unready,
                )
                for pod in requested[: request.limit]
            ],
            about=describe_model(traces, streams, prompt),
            hints=hints(traces, streams, prompt),
            view=ViewAnswer(self._view.source, self._view.age_s),
            unknown_pods=resolved.unknown_pods({pod.pod for pod in traces}),
        )

    def _load(self, model: str, pod: str) -> PodLoad | None:
        """The pod's last known load. An explanation never asks an engine."""
        known = self._view.loads.get(model, pod)
        if known is None:
            return None
        load, at_s = known
        age_s = time.monotonic() - at_s
        return None if age_s > self._load_max_age_s else PodLoad(load.running, load.waiting, load.kv_usage, round(age_s, 3))

    def _stream_facts(self, pod: str, status: StreamStatus) -> StreamFacts:
        return StreamFacts(
            pod=pod,
            rank=status.rank,
            sequence=status.sequence,
            trust=status.trust,
            connected=status.connected,
            batches=status.batches,
            gaps=status.gaps,
            replayed=status.replayed,
            blocks=status.blocks,
            last_batch_age_s=status.last_batch_age_s,
            last_error=status.last_error,
            highest_token=status.highest_token,
            other_block_size=status.other_block_size,
            undecided=status.undecided,
            is_followed=self._view.source == EMBEDDED or status.owner is not None,
        )


def _prompt_facts(
    resolved: ResolvedRequest,
    tokens: int,
    highest_token: int | None,
    statuses: Sequence[StreamStatus],
    adapters: Sequence[str],
    prompts: int,
    unmatched: int,
) -> PromptFacts:
    return PromptFacts(
        source=resolved.source,
        tokens=tokens,
        highest_token=highest_token,
        lora_name=resolved.prompt.lora_name if isinstance(resolved.prompt, Prompt) else None,
        adapters=frozenset(adapters),
        knows_adapters=all(len(status.adapters) < ADAPTERS_MAX for status in statuses),
        asked=prompts,
        unmatched=unmatched,
    )


async def _highest_token(tokens: bytes, turn: asyncio.Lock) -> int | None:
    """Other requests have their turn in between."""
    if len(tokens) <= PIECE_BYTES:
        return _highest(tokens)
    highest = 0
    async with turn:
        for start in range(0, len(tokens), PIECE_BYTES):
            highest = max(highest, _highest(tokens[start : start + PIECE_BYTES]) or 0)
            await asyncio.sleep(0)
    return highest


def _highest(tokens: bytes) -> int | None:
    piece = array("I", tokens)
    if sys.byteorder == "big":
        piece.byteswap()
    return max(piece, default=None)

"""Requests for explanations, from their bytes to the bytes of their answers. What they cost is paid here: a score does none of it."""

import sys
import time
from array import array
from collections.abc import Sequence

from msgspec import UNSET

from indexer.core.block_keys import TOKEN_BYTES
from indexer.core.stream_state import ADAPTERS_MAX
from indexer.http.negotiation import encode
from indexer.http.routes import Pods
from indexer.streams.stream import StreamStatus
from scorer_api.api.adapters import Adapters
from scorer_api.api.decode import decode
from scorer_api.api.resolve import Asked, Asking, unknown_model
from scorer_api.api.schemas import ExplainAnswer, ViewAnswer
from scorer_api.api.score import counted, length_of
from scorer_api.explain.hints import hints
from scorer_api.explain.reasons import PodLoad, PromptSeen, StreamSeen, about, explained
from scorer_api.index.view import EMBEDDED, Prompt, View
from scorer_api.metrics import ScorerMetrics


class Explanations:
    """Says why pods match as they do. `pods`: where what is known of their streams comes from. `load_max_age_s`: an older load is unknown."""

    def __init__(self, view: View, asking: Asking, pods: Pods, adapters: Adapters, metrics: ScorerMetrics, load_max_age_s: float) -> None:
        self._view = view
        self._asking = asking
        self._pods = pods
        self._adapters = adapters
        self._metrics = metrics
        self._load_max_age_s = load_max_age_s

    async def explain(self, body: bytes, media_type: str, accepted: str) -> bytes:
        """The explanation of one request. Raises Problem."""
        with counted(self._metrics.explanations):
            content = encode(self._explain(await self._asking.ask(decode(body, media_type))), accepted)
        self._metrics.explanations["answered"].inc()
        return content

    def _explain(self, asked: Asked) -> ExplainAnswer:
        request, model = asked.request, asked.prompt.model
        try:
            seen = self._view.trace(asked.prompt)
            counts = self._view.asked(model)
        except KeyError:
            raise unknown_model(model) from None
        statuses = [(pod.pod, status) for pod in self._pods.pods() if pod.model == model for status in pod.streams]
        streams = [self._stream_seen(pod, status) for pod, status in statuses]
        length = length_of(asked, seen[0].ranks[0].block_size if seen else None)
        prompt = _prompt_seen(asked, length, [status for _, status in statuses], self._adapters.of(model), *counts)
        of_pod: dict[str, dict[int, StreamSeen]] = {}
        for stream in streams:
            of_pod.setdefault(stream.pod, {})[stream.rank] = stream
        wanted = [pod for pod in seen if request.pods is None or pod.pod in request.pods]
        known = {pod.pod for pod in seen}
        return ExplainAnswer(
            model=request.model,
            tokens=prompt.tokens,
            source=asked.source,
            pods=[explained(pod, prompt, of_pod.get(pod.pod, {}), self._load(model, pod.pod)) for pod in wanted[: request.limit]],
            about=about(seen, streams, prompt),
            hints=hints(seen, streams, prompt),
            view=ViewAnswer(self._view.source, self._view.age_s),
            unknown_pods=UNSET if request.pods is None else [pod for pod in dict.fromkeys(request.pods) if pod not in known],
        )

    def _load(self, model: str, pod: str) -> PodLoad | None:
        """Read, and nothing else: whoever asks why sends nothing anywhere."""
        found = self._view.loads.get(model, pod)
        if found is None:
            return None
        load, at_s = found
        age_s = time.monotonic() - at_s
        return None if age_s > self._load_max_age_s else PodLoad(load.running, load.waiting, load.kv_usage, round(age_s, 3))

    def _stream_seen(self, pod: str, status: StreamStatus) -> StreamSeen:
        return StreamSeen(
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
            is_followed=self._view.source == EMBEDDED or status.owner is not None,
        )


def _prompt_seen(asked: Asked, length: int, statuses: Sequence[StreamStatus], adapters: Sequence[str], prompts: int, unmatched: int) -> PromptSeen:
    return PromptSeen(
        source=asked.source,
        tokens=length,
        highest_token=_highest(asked.prompt.tokens) if isinstance(asked.prompt, Prompt) else None,
        lora_name=asked.prompt.lora_name if isinstance(asked.prompt, Prompt) else None,
        adapters=frozenset(adapters),
        knows_adapters=all(len(status.adapters) < ADAPTERS_MAX for status in statuses),
        asked=prompts,
        unmatched=unmatched,
    )


def _highest(tokens: bytes) -> int | None:
    packed = array("I", tokens[: len(tokens) // TOKEN_BYTES * TOKEN_BYTES])
    if sys.byteorder == "big":
        packed.byteswap()
    return max(packed, default=None)

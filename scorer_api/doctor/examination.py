"""The whole examination. Probes run at the same time where they can, each with its own deadline.

service, Redis ─▶ each pod: its API, its sockets ─▶ the service once more, the prompt ─▶ the prompt probe, if requested
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Sequence
from typing import Literal, TypeVar

import zmq
from msgspec import Struct

from indexer.masking import masked
from indexer.store.inspection import inspect
from scorer_api.doctor.checks.clock import Clock, check_clocks
from scorer_api.doctor.checks.engine import check_engine, check_tokenizers
from scorer_api.doctor.checks.findings import Finding, finding
from scorer_api.doctor.checks.observations import ObservedEngine, ObservedPod, ObservedSockets, ObservedStream
from scorer_api.doctor.checks.probe import check_probe
from scorer_api.doctor.checks.prompt import check_prompt
from scorer_api.doctor.checks.redis import check_redis
from scorer_api.doctor.checks.reply import Reply
from scorer_api.doctor.checks.service import check_choice, check_service
from scorer_api.doctor.checks.stream import check_pod, check_stream, check_topics
from scorer_api.doctor.probes.asker import Asker
from scorer_api.doctor.probes.engine_api import observe
from scorer_api.doctor.probes.prompt_probe import probe
from scorer_api.doctor.probes.service_api import Service, refusals
from scorer_api.doctor.probes.sockets import Context, observe_sockets

log = logging.getLogger(__name__)

T = TypeVar("T")

PODS_MAX = 64
STREAMS_MAX = 128
PROBED_MAX = 16
REDIS_TIMEOUT_S = 1.0
# A batch that arrived here may still be on its way through the indexer and Redis.
CATCH_UP_S = 2.0
CATCH_UP_AGAIN_S = 0.2


class ExaminationRequest(Struct, frozen=True):
    """What to examine. `pods`: only these, all if empty; `verify`: how the service's certificate is checked; `namespace`: in Redis."""

    url: str
    token: str | None = None
    verify: Literal[True] | ssl.SSLContext = True
    model: str | None = None
    pods: tuple[str, ...] = ()
    prompt: str | None = None
    probes: bool = False
    redis: str | None = None
    namespace: str = "kvi"
    listen_s: float = 3.0


class ExaminedPod(Struct):
    """What was observed of one pod."""

    pod: ObservedPod
    engine: ObservedEngine | None
    sockets: list[ObservedSockets]


async def examine(request: ExaminationRequest) -> list[Finding]:
    """Raises SettingError for a Redis URL that cannot be used."""
    context: Context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * STREAMS_MAX + 64)
    try:
        async with Asker(request.token, request.verify, uses_proxies=True) as asker, Asker() as engines:
            return await _Examination(request, context, Service(asker, request.url), engines).run()
    finally:
        context.destroy(linger=0)


class _Examination:
    def __init__(self, request: ExaminationRequest, context: Context, service: Service, engines: Asker) -> None:
        self._request = request
        self._context = context
        self._service = service
        self._engines = engines
        self._findings: list[Finding] = []
        self._clocks: list[Clock] = []

    async def run(self) -> list[Finding]:
        pods, _ = await asyncio.gather(self._observe_service(), self._observe_redis())
        examined = await asyncio.gather(*(self._observe_pod(pod) for pod in pods))
        later = await self._catch_up(examined)
        for each in examined:
            self._check(each, later)
        self._findings += check_clocks(self._clocks)
        if self._request.prompt is not None and self._request.model is not None and examined:
            await self._check_prompt(self._request.model, self._request.prompt, examined)
        if self._request.probes:
            self._findings += await self._probe(examined)
        return self._findings

    async def _observe_service(self) -> list[ObservedPod]:
        """The pods to examine."""
        request = self._request
        seen = await self._service.observe()
        self._findings += check_service(seen, refusals(seen.metrics.body), request.token is not None, masked(self._service.url))
        if seen.health.skew_s is not None:
            self._clocks.append(Clock("service", seen.health.skew_s))
        pods = seen.pods or []
        self._findings += check_choice(pods, request.model, request.pods)
        chosen = [pod for pod in pods if request.model in (None, pod.model) and (not request.pods or pod.pod in request.pods)]
        selected: list[ObservedPod] = []
        streams = 0
        for pod in chosen[:PODS_MAX]:
            streams += len(pod.streams)
            if streams <= STREAMS_MAX or not selected:
                selected.append(pod)
        if len(selected) < len(chosen):
            self._findings.append(finding("pods_left_out", "service", f"{len(selected)} of {len(chosen)} pods are examined at"))
        return selected

    async def _observe_redis(self) -> None:
        if self._request.redis is None:
            return
        seen = await inspect(self._request.redis, self._request.namespace, REDIS_TIMEOUT_S)
        self._findings += check_redis(seen, self._request.namespace)
        if seen.failure is None:
            self._clocks.append(Clock("redis", seen.skew_s))

    # Pods

    async def _observe_pod(self, pod: ObservedPod) -> ExaminedPod:
        engine = self._guarded(f"pod {pod.pod}", observe(self._engines, pod.http or f"http://{pod.pod}", pod.model, self._request.prompt))
        sockets = (observe_sockets(self._context, stream, self._request.listen_s) for stream in pod.streams[:STREAMS_MAX])
        found, seen = await asyncio.gather(engine, asyncio.gather(*sockets))
        return ExaminedPod(pod, found, list(seen))

    async def _guarded(self, subject: str, asking: Awaitable[T]) -> T | None:
        """The result, or None: an unexpected error in one probe does not stop the others."""
        try:
            return await asking
        except Exception as error:
            log.exception("check failed")
            self._findings.append(finding("check_failed", subject, f"{type(error).__name__}: {error}"))
            return None

    async def _catch_up(self, examined: Sequence[ExaminedPod]) -> dict[tuple[str, int], ObservedStream]:
        """The streams as the service shows them once it had the time to receive what the doctor received."""
        sequences = {
            (each.pod.pod, stream.rank): sockets.sample.last_sequence
            for each in examined
            for stream, sockets in zip(each.pod.streams, each.sockets, strict=False)
            if sockets.sample is not None and sockets.sample.last_sequence is not None
        }
        if not sequences:
            return {}
        clock = asyncio.get_running_loop().time
        until = clock() + CATCH_UP_S
        while True:
            now = {(pod.pod, stream.rank): stream for pod in await self._service.pods() for stream in pod.streams}
            behind = [key for key, sequence in sequences.items() if key in now and (now[key].sequence or -1) < sequence]
            if not behind or clock() > until:
                return now
            await asyncio.sleep(CATCH_UP_AGAIN_S)

    def _check(self, examined: ExaminedPod, later: dict[tuple[str, int], ObservedStream]) -> None:
        pod, subject = examined.pod, f"pod {examined.pod.pod}"
        self._findings += check_pod(pod)
        for stream, sockets in zip(pod.streams, examined.sockets, strict=False):
            self._findings += check_stream(pod, stream, sockets, examined.engine, later.get((pod.pod, stream.rank)))
            self._findings += check_topics(pod, stream, sockets)
            if sockets.sample is not None and sockets.sample.skew_s is not None:
                self._clocks.append(Clock(subject, sockets.sample.skew_s))
            elif (newest_s := None if sockets.replied is None else sockets.replied.newest_s) is not None and newest_s > time.time():
                # An old time stamp is no sign of a clock that is late, but a future one is a sign of a clock that is early.
                self._clocks.append(Clock(subject, newest_s - time.time()))
        if examined.engine is not None:
            self._findings += check_engine(pod, examined.engine)
            if examined.engine.health.skew_s is not None:
                self._clocks.append(Clock(subject, examined.engine.health.skew_s))

    # A prompt

    async def _check_prompt(self, model: str, prompt: str, examined: Sequence[ExaminedPod]) -> None:
        engines = [(each.pod, each.engine) for each in examined if each.engine is not None]
        self._findings += check_tokenizers(engines)
        tokens = next((engine.tokens for _, engine in engines if engine.tokens), None)
        score, explained = await asyncio.gather(self._score(model, tokens), self._service.explain(model, tokens, prompt))
        self._findings += check_prompt(score, explained)

    async def _score(self, model: str, tokens: list[int] | None) -> Reply | None:
        return None if tokens is None else await self._service.score(model, tokens)

    async def _probe(self, examined: Sequence[ExaminedPod]) -> list[Finding]:
        probed = [(each.pod, each.engine) for each in examined if each.engine is not None and each.engine.health.is_ok][:PROBED_MAX]
        if not probed:
            return [finding("probe_refused", "probe", "there is no engine whose API answers")]
        came = await asyncio.gather(*(probe(self._engines, self._service, pod, engine, self._request.prompt) for pod, engine in probed))
        return [found for (pod, _), each in zip(probed, came, strict=True) for found in check_probe(pod, each)]

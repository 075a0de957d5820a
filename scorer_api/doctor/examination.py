"""The whole examination: everything is asked at once where it can be, and nothing waits for longer than its own deadline.

service, Redis ─▶ each pod: its API, its sockets ─▶ the service once more, the prompt ─▶ the probe, if it is wanted
"""

import asyncio
import logging
import ssl
import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

import zmq
from msgspec import Struct

from indexer.masking import masked
from indexer.store.inspection import inspect
from scorer_api.doctor.clock_checks import Clock, judge_clocks
from scorer_api.doctor.engine_api import look_at
from scorer_api.doctor.engine_checks import judge_engine, judge_tokenizers
from scorer_api.doctor.fetching import Asker
from scorer_api.doctor.findings import Finding, finding
from scorer_api.doctor.probe import probe
from scorer_api.doctor.probe_checks import judge_probe
from scorer_api.doctor.prompt_checks import judge_prompt
from scorer_api.doctor.redis_checks import judge_redis
from scorer_api.doctor.reply import Reply
from scorer_api.doctor.seen import EngineSeen, PodSeen, SocketsSeen, StreamSeen
from scorer_api.doctor.service_api import Service, refusals
from scorer_api.doctor.service_checks import judge_choice, judge_service
from scorer_api.doctor.stream_checks import judge_pod, judge_stream, judge_topics
from scorer_api.doctor.wire_probe import Context, look_at_sockets

log = logging.getLogger(__name__)

T = TypeVar("T")

PODS_MAX = 64
STREAMS_MAX = 128
PROBED_MAX = 16
REDIS_TIMEOUT_S = 1.0
# What came here may be on its way through the indexer and Redis yet.
CATCH_UP_S = 2.0
CATCH_UP_AGAIN_S = 0.2


class Wanted(Struct, frozen=True):
    """What is to be examined. `pods`: only these, all where there are none; `verify`: how an https service is trusted; `namespace`: in Redis."""

    url: str
    token: str | None = None
    verify: bool | ssl.SSLContext = True
    model: str | None = None
    pods: tuple[str, ...] = ()
    prompt: str | None = None
    probes: bool = False
    redis: str | None = None
    namespace: str = "kvi"
    listen_s: float = 3.0


class Looked(Struct):
    """What was seen of one pod."""

    pod: PodSeen
    engine: EngineSeen | None
    sockets: list[SocketsSeen]


async def examine(wanted: Wanted) -> list[Finding]:
    """Raises SettingError for a Redis URL that cannot be used."""
    context: Context = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 4 * STREAMS_MAX + 64)
    try:
        async with Asker(wanted.token, wanted.verify, uses_proxies=True) as asker, Asker() as engines:
            return await _Examination(wanted, context, Service(asker, wanted.url), engines).run()
    finally:
        context.destroy(linger=0)


class _Examination:
    def __init__(self, wanted: Wanted, context: Context, service: Service, engines: Asker) -> None:
        self._wanted = wanted
        self._context = context
        self._service = service
        self._engines = engines
        self._findings: list[Finding] = []
        self._clocks: list[Clock] = []

    async def run(self) -> list[Finding]:
        pods, _ = await asyncio.gather(self._look_at_service(), self._look_at_redis())
        looked = await asyncio.gather(*(self._look_at_pod(pod) for pod in pods))
        later = await self._catch_up(looked)
        for each in looked:
            self._judge(each, later)
        self._findings += judge_clocks(self._clocks)
        if self._wanted.prompt is not None and self._wanted.model is not None and looked:
            await self._ask_prompt(self._wanted.model, self._wanted.prompt, looked)
        if self._wanted.probes:
            self._findings += await self._probe(looked)
        return self._findings

    async def _look_at_service(self) -> list[PodSeen]:
        """The pods that are to be looked at."""
        wanted = self._wanted
        seen = await self._service.look_at()
        self._findings += judge_service(seen, refusals(seen.metrics.body), wanted.token is not None, masked(self._service.url))
        if seen.health.skew_s is not None:
            self._clocks.append(Clock("service", "service_clock_off", seen.health.skew_s))
        pods = seen.pods or []
        self._findings += judge_choice(pods, wanted.model, wanted.pods)
        chosen = [pod for pod in pods if wanted.model in (None, pod.model) and (not wanted.pods or pod.pod in wanted.pods)]
        within: list[PodSeen] = []
        streams = 0
        for pod in chosen[:PODS_MAX]:
            streams += len(pod.streams)
            if streams <= STREAMS_MAX or not within:
                within.append(pod)
        if len(within) < len(chosen):
            self._findings.append(finding("pods_left_out", "service", f"{len(within)} of {len(chosen)} pods are looked at"))
        return within

    async def _look_at_redis(self) -> None:
        if self._wanted.redis is None:
            return
        seen = await inspect(self._wanted.redis, self._wanted.namespace, REDIS_TIMEOUT_S)
        self._findings += judge_redis(seen, self._wanted.namespace)
        if seen.trouble is None:
            self._clocks.append(Clock("redis", "redis_clock_off", seen.skew_s))

    # Pods

    async def _look_at_pod(self, pod: PodSeen) -> Looked:
        engine = self._whole(f"pod {pod.pod}", look_at(self._engines, pod.http or f"http://{pod.pod}", pod.model, self._wanted.prompt))
        sockets = (look_at_sockets(self._context, stream, self._wanted.listen_s) for stream in pod.streams[:STREAMS_MAX])
        found, seen = await asyncio.gather(engine, asyncio.gather(*sockets))
        return Looked(pod, found, list(seen))

    async def _whole(self, subject: str, asking: Awaitable[T]) -> T | None:
        """What came of it, or None: one check that fails in itself leaves the others alone."""
        try:
            return await asking
        except Exception as error:
            log.exception("check failed")
            self._findings.append(finding("check_failed", subject, f"{type(error).__name__}: {error}"))
            return None

    async def _catch_up(self, looked: Sequence[Looked]) -> dict[tuple[str, int], StreamSeen]:
        """The streams as the service shows them once it had the time to learn what the doctor heard."""
        heard = {
            (each.pod.pod, stream.rank): sockets.heard.last_sequence
            for each in looked
            for stream, sockets in zip(each.pod.streams, each.sockets, strict=False)
            if sockets.heard is not None and sockets.heard.last_sequence is not None
        }
        if not heard:
            return {}
        clock = asyncio.get_running_loop().time
        until = clock() + CATCH_UP_S
        while True:
            now = {(pod.pod, stream.rank): stream for pod in await self._service.pods() for stream in pod.streams}
            behind = [key for key, sequence in heard.items() if key in now and (now[key].sequence or -1) < sequence]
            if not behind or clock() > until:
                return now
            await asyncio.sleep(CATCH_UP_AGAIN_S)

    def _judge(self, looked: Looked, later: dict[tuple[str, int], StreamSeen]) -> None:
        pod, subject = looked.pod, f"pod {looked.pod.pod}"
        self._findings += judge_pod(pod)
        for stream, sockets in zip(pod.streams, looked.sockets, strict=False):
            self._findings += judge_stream(pod, stream, sockets, looked.engine, later.get((pod.pod, stream.rank)))
            self._findings += judge_topics(pod, stream, sockets)
            if sockets.heard is not None and sockets.heard.skew_s is not None:
                self._clocks.append(Clock(subject, "engine_clock_off", sockets.heard.skew_s))
            elif (newest_s := None if sockets.replied is None else sockets.replied.newest_s) is not None and newest_s > time.time():
                # What was published before now is no sign of a clock that is late, only of one that is early.
                self._clocks.append(Clock(subject, "engine_clock_off", newest_s - time.time()))
        if looked.engine is not None:
            self._findings += judge_engine(pod, looked.engine)
            if looked.engine.health.skew_s is not None:
                self._clocks.append(Clock(subject, "engine_clock_off", looked.engine.health.skew_s))

    # A prompt

    async def _ask_prompt(self, model: str, prompt: str, looked: Sequence[Looked]) -> None:
        engines = [(each.pod, each.engine) for each in looked if each.engine is not None]
        self._findings += judge_tokenizers(engines)
        tokens = next((engine.tokens for _, engine in engines if engine.tokens), None)
        score, explained = await asyncio.gather(self._score(model, tokens), self._service.explain(model, tokens, prompt))
        self._findings += judge_prompt(score, explained)

    async def _score(self, model: str, tokens: list[int] | None) -> Reply | None:
        return None if tokens is None else await self._service.score(model, tokens)

    async def _probe(self, looked: Sequence[Looked]) -> list[Finding]:
        probed = [(each.pod, each.engine) for each in looked if each.engine is not None and each.engine.health.is_ok][:PROBED_MAX]
        if not probed:
            return [finding("probe_refused", "probe", "there is no engine whose API answers")]
        came = await asyncio.gather(*(probe(self._engines, self._service, pod, engine, self._wanted.prompt) for pod, engine in probed))
        return [found for (pod, _), each in zip(probed, came, strict=True) for found in judge_probe(pod, each)]

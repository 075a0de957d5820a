"""Scrapes the load of pods from their engines, once a second: `GET {http}/metrics`, and `GET {http}/prometheus/metrics` of TensorRT-LLM."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Self

from msgspec import Struct, structs

from indexer.engines.api import EngineApi
from indexer.engines.client import EngineClient
from indexer.engines.http_client import Answer, FetchError
from indexer.engines.iteration_stats import IterationStatsReader, is_iteration_stats
from indexer.engines.load import Load
from indexer.engines.load_metrics import LoadMeter
from indexer.engines.networks import EngineNetworks
from indexer.engines.spread import spread
from indexer.metrics import IndexerMetrics

log = logging.getLogger(__name__)

# An engine's metrics are some 100 kB of text.
BYTES_MAX = 8 * 2**20
READ_AT_ONCE_BYTES_MAX = 262_144
METRICS = "/metrics"
# TensorRT-LLM answers the other path with iteration statistics, in JSON.
PROMETHEUS_METRICS = "/prometheus/metrics"
# Many pods are asked over this part of an interval, and not all at once.
SPREAD = 0.8
# A pod without an answer is asked again after one interval, then two, four …, up to this.
RETRY_MAX_S = 30.0

Pod = tuple[str, str]
"""A model, and a pod of it."""


class _LoadError(Exception):
    """There is no load. `outcome`: as it is counted; `why`: in words."""

    def __init__(self, outcome: str, why: str) -> None:
        super().__init__(why)
        self.outcome = outcome
        self.why = why


class _Target(Struct, eq=False):
    """One pod. `task`: the request that is in progress."""

    meter: LoadMeter
    iterations: IterationStatsReader
    task: asyncio.Task[None] | None = None
    failures: int = 0
    not_before_s: float = 0.0


class LoadScraper:
    """`async with LoadScraper(…):` asks every `interval_s`, in these networks only.

    `targets`: the pods to ask now. `rate_of`: the prefill rate that a pod's spec gives, which replaces the measured one. `deliver` is called with the
    model, the pod, its load, and the monotonic time when that arrived.
    """

    def __init__(
        self,
        interval_s: float,
        networks: EngineNetworks,
        targets: Callable[[], Iterable[tuple[Pod, EngineApi]]],
        rate_of: Callable[[str], float | None],
        deliver: Callable[[str, str, Load, float], None],
        metrics: IndexerMetrics,
    ) -> None:
        self._interval_s = interval_s
        self._client = EngineClient(networks)
        self._targets = targets
        self._rate_of = rate_of
        self._deliver = deliver
        self._metrics = metrics
        self._known: dict[Pod, _Target] = {}

    async def __aenter__(self) -> Self:
        await self._client.__aenter__()
        self._scraping = asyncio.create_task(self._scrape(), name="loads")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        tasks = [self._scraping, *(target.task for target in self._known.values() if target.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._client.__aexit__(kind, error, trace)

    async def _scrape(self) -> None:
        while True:
            due_s = time.monotonic() + self._interval_s
            try:
                await self._ask_all()
            except Exception:  # an unexpected error must not end the task
                log.exception("asking for loads failed")
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def _ask_all(self) -> None:
        targets = dict(self._targets())
        for pod in self._known.keys() - targets.keys():
            target = self._known.pop(pod)
            if target.task is not None:
                target.task.cancel()
        async for pod, api in spread(list(targets.items()), SPREAD * self._interval_s):
            target = self._known.setdefault(pod, _Target(LoadMeter(), IterationStatsReader()))
            if (target.task is None or target.task.done()) and time.monotonic() >= target.not_before_s:
                target.task = asyncio.create_task(self._ask(pod, target, api), name=f"load of {pod[1]}")

    async def _ask(self, pod: Pod, target: _Target, api: EngineApi) -> None:
        try:
            load, at_s = await self._load(target, api)
        except _LoadError as failed:
            self._metrics.load_requests[failed.outcome].inc()
            if not target.failures:
                log.info("load of a pod not known", extra={"model": pod[0], "pod": pod[1], "error": failed.why})
            target.not_before_s = time.monotonic() + min(RETRY_MAX_S, self._interval_s * 2**target.failures)
            target.failures = min(target.failures + 1, 10)
        except Exception:  # an unexpected error costs this answer only
            log.exception("reading a load failed", extra={"model": pod[0], "pod": pod[1]})
        else:
            if target.failures:
                log.info("load of a pod known again", extra={"model": pod[0], "pod": pod[1]})
            target.failures = 0
            self._metrics.load_requests["load"].inc()
            if self._known.get(pod) is target:
                rate = self._rate_of(pod[1])
                self._deliver(*pod, load if rate is None else structs.replace(load, prefill_tokens_per_s=rate), at_s)

    async def _load(self, target: _Target, api: EngineApi) -> tuple[Load, float]:
        """The load, and the monotonic time when it arrived. Raises _LoadError."""
        answer = await self._get(api, METRICS, or_missing=False)
        try:
            if not is_iteration_stats(answer.body):
                return await _read(target.meter, answer, None)
            newer = target.iterations.read(answer.body)
            answer = await self._get(api, PROMETHEUS_METRICS, or_missing=True)
            return await _read(target.meter, answer, newer)
        except ValueError as error:
            raise _LoadError("malformed", str(error)) from None

    async def _get(self, api: EngineApi, path: str, *, or_missing: bool) -> Answer:
        """`or_missing`: whether the API need not have this path. Raises _LoadError."""
        try:
            answer = await self._client.fetch(
                api, path, headers={"Accept": "text/plain"}, timeout_s=max(self._interval_s, 1.0), bytes_max=BYTES_MAX, error_bytes_max=0
            )
        except FetchError as error:
            raise _LoadError(error.outcome, error.why) from None
        if answer.status == HTTPStatus.NOT_FOUND and or_missing:
            return answer
        if answer.status != HTTPStatus.OK:
            raise _LoadError("status", f"{answer.url} answered {answer.status}")
        if answer.is_cut:
            raise _LoadError("too_large", f"{answer.url} answered with more than {BYTES_MAX} bytes")
        return answer


async def _read(meter: LoadMeter, answer: Answer, newer: Mapping[str, list[float]] | None) -> tuple[Load, float]:
    """The load and the monotonic time of now. A large answer is read beside the event loop. Raises ValueError."""
    at_s = time.monotonic()

    def read() -> Load:
        return meter.read(answer.body.decode(errors="replace"), at_s, newer)

    return (read() if len(answer.body) <= READ_AT_ONCE_BYTES_MAX else await asyncio.to_thread(read)), at_s

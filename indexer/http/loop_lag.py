"""How long the event loop keeps its tasks waiting: a step that takes long shows here, whatever it is."""

import asyncio
import time
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Histogram

TICK_S = 0.02
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class LoopLag:
    """`async with LoopLag(registry):` measures fifty times a second by how much a task is woken too late."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._lag = Histogram(
            "kv_indexer_event_loop_lag_seconds",
            "Time by which the event loop was late to wake a task, measured fifty times a second.",
            buckets=BUCKETS_S,
            registry=registry,
        )

    async def __aenter__(self) -> Self:
        self._measuring = asyncio.create_task(self._measure(), name="loop lag")
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._measuring.cancel()
        await asyncio.wait([self._measuring])

    async def _measure(self) -> None:
        while True:
            due_s = time.monotonic() + TICK_S
            await asyncio.sleep(TICK_S)
            self._lag.observe(max(0.0, time.monotonic() - due_s))

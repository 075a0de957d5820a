import asyncio
import time
from collections.abc import Callable, Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from indexer.http.exposition import SAMPLES_MAX, exposition

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


class Series:
    """One metric of many series."""

    def __init__(self, count: int) -> None:
        self._count = count

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("series", "Each of its series\nhas # a label.", labels=["pod"])
        for number in range(self._count):
            family.add_metric([f"# pod-{number}"], number)
        yield family


def registry_of(series: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("before", "A counter.", registry=registry).inc()
    registry.register(Series(series))  # type: ignore[arg-type]
    Histogram("after_seconds", "A histogram.", registry=registry).observe(0.5)
    Gauge("level", "A gauge.", ["where"], registry=registry).labels("here").set(1)
    return registry


@pytest.mark.parametrize("accepted", ["", OPEN_METRICS])
@pytest.mark.parametrize("series", [0, 1, SAMPLES_MAX, SAMPLES_MAX + 1, 3 * SAMPLES_MAX + 7])
def test_in_steps_it_is_the_text_that_the_library_writes_in_one(series: int, accepted: str) -> None:
    registry, (encode, _) = registry_of(series), choose_encoder(accepted)
    assert asyncio.run(exposition(registry.collect(), encode)) == encode(registry)


async def test_others_have_their_turn_while_thousands_of_series_are_written() -> None:
    encode, _ = choose_encoder("")

    def slow(part: Collector) -> bytes:
        time.sleep(0.003)
        return encode(part)

    steps = await count_turns(registry_of(10 * SAMPLES_MAX), slow)
    assert steps >= 10


async def count_turns(registry: CollectorRegistry, encode: Callable[[Collector], bytes]) -> int:
    """How often another task ran meanwhile."""
    writing = asyncio.create_task(exposition(registry.collect(), encode))
    turns = 0
    while not writing.done():
        turns += 1
        await asyncio.sleep(0)
    return turns

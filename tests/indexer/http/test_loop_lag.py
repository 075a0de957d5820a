"""What the event loop's lag shows."""

import asyncio
import time

from prometheus_client import CollectorRegistry

from indexer.http.loop_lag import LoopLag


def late(registry: CollectorRegistry, bound: str) -> float:
    """How many measurements were above this."""
    count = registry.get_sample_value("kv_indexer_event_loop_lag_seconds_count")
    within = registry.get_sample_value("kv_indexer_event_loop_lag_seconds_bucket", {"le": bound})
    assert count is not None
    assert within is not None
    return count - within


async def test_a_long_step_shows_as_one_late_measurement() -> None:
    registry = CollectorRegistry()
    async with LoopLag(registry):
        await asyncio.sleep(0.2)
        before = late(registry, "0.2")
        time.sleep(0.4)  # noqa: ASYNC251 - this is the step
        await asyncio.sleep(0.1)
        assert late(registry, "0.2") > before
        measured = registry.get_sample_value("kv_indexer_event_loop_lag_seconds_count")
    await asyncio.sleep(0.1)
    assert registry.get_sample_value("kv_indexer_event_loop_lag_seconds_count") == measured, "it ends with its part"

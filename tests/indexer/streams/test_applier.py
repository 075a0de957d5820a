"""What applying payloads counts."""

import math
import time

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.metrics import IndexerMetrics
from indexer.streams.applier import Applier
from tests.engine import stored


def applier(registry: CollectorRegistry) -> Applier:
    return Applier(StreamKey("m", "pod", 0), "copies", None, Settings(), IndexerMetrics(registry), with_records=False)


@pytest.mark.parametrize("stamp", [-1.7e308, 1.7e308, -1e11, 1e11, math.nan, math.inf, -math.inf, None, "yesterday"])
def test_a_time_stamp_that_is_no_time_leaves_the_ages_of_events_alone(stamp: float | str | None) -> None:
    registry = CollectorRegistry()
    ours = applier(registry)
    for number, at_s in enumerate((time.time() - 2, stamp, time.time() - 1)):
        applied = ours.apply(msgspec.msgpack.encode([at_s, [stored([number], range(4 * number, 4 * number + 4))], 0]), number, is_live=True)
        assert len(applied.change) == 1
    assert registry.get_sample_value("kv_indexer_event_age_seconds_count") == 2
    total = registry.get_sample_value("kv_indexer_event_age_seconds_sum")
    assert total is not None
    assert 3 <= total < 60

"""What applying payloads counts."""

import itertools
import math
import time
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.events import Tier
from indexer.core.names import StreamKey
from indexer.metrics import IndexerMetrics
from indexer.streams import applier as applier_module
from indexer.streams.applier import Applied, Applier
from indexer.tracing.current import Attributes
from indexer.wire.decoder import AT_ONCE_BYTES_MAX
from tests.engine import removed, stored


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


class Traced:
    """A tracer that keeps the parts of what happened."""

    def __init__(self) -> None:
        self.parts: list[tuple[str, ...]] = []

    def past(self, _name: str, _attributes: Attributes, *parts: tuple[str, int]) -> None:
        self.parts.append(tuple(name for name, _ in parts))


@pytest.mark.parametrize("stamp", [-1.7e308, 1.7e308, math.nan, math.inf, -math.inf])
def test_a_time_stamp_that_is_no_time_is_no_part_of_a_trace(monkeypatch: pytest.MonkeyPatch, stamp: float) -> None:
    traced = Traced()
    monkeypatch.setattr(applier_module, "active_tracer", lambda: traced)
    ours = applier(CollectorRegistry())
    for number, at_s in enumerate((time.time() - 2, stamp)):
        ours.apply(msgspec.msgpack.encode([at_s, [stored([number], range(4))], 0]), number, is_live=True)
    assert traced.parts == [("kv_events.transport", "kv_events.apply"), ("kv_events.apply",)]


def in_steps(ours: Applier, payload: bytes, number: int) -> tuple[Applied, int]:
    """What the applier makes of a payload that takes steps, and how many."""
    steps = ours.start(payload, number, is_live=True)
    assert type(steps) is not Applied
    taken = 0
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, taken
        taken += 1


LARGE = [
    [stored([number], [number, 1, 2, 3]) for number in range(3_000)],
    [*[stored([number], [number, 1, 2, 3], lora_name="ad") for number in range(3_000)], removed([5, 6])],
    [{"type": "BlockRemoved", "block_hashes": [number, None]} for number in range(8_000)],
    [*[stored([number], [number, 1, 2, 3]) for number in range(3_000)], {"type": "Unheard"}, *[{"type": "AllBlocksCleared"}] * 3_000],
]


@pytest.mark.parametrize("events", LARGE)
def test_a_large_payload_is_applied_in_steps_with_one_change(events: list[Any]) -> None:
    payload, registries = msgspec.msgpack.encode([1.0, events, 0]), (CollectorRegistry(), CollectorRegistry())
    first, second = map(applier, registries)
    assert len(payload) > applier_module.STEP_BYTES_MAX
    expected = first.apply(payload, 7, is_live=True)
    found, steps = in_steps(second, payload, 7)
    assert steps >= 3_000
    assert (found.change.touched, found.change.cleared, found.change.sequence, found.lossy) == (
        *(expected.change.touched, expected.change.cleared, 7, expected.lossy),
    )
    for each in (first, second):
        each.count_applied()
    assert first.refused == second.refused
    shown = [
        {(s.name, *s.labels.values()): s.value for m in registry.collect() for s in m.samples if "created" not in s.name} for registry in registries
    ]
    assert shown[0] == shown[1]


def test_a_small_payload_takes_no_steps_unless_an_adapter_is_known() -> None:
    ours = applier(CollectorRegistry())
    payloads = [msgspec.msgpack.encode([1.0, [stored([number], [1, 2, 3, 4], lora_name=name)], 0]) for number, name in enumerate((None, "ad", None))]
    assert [type(ours.start(payload, 0, is_live=True)) is Applied for payload in payloads] == [True, True, False]


def test_extra_keys_that_take_long_take_steps_in_a_payload_that_is_not_large_too() -> None:
    """60,000 bytes for each block, of which a byte takes 150 ns."""
    events = [stored([1, 2, 3, 4], range(16), extra_keys=[[[[]] * 60_000] for _ in range(4)]), stored([5], range(4))]
    payload = msgspec.msgpack.encode([time.time(), events, 0])
    assert applier_module.ODD_STEP_BYTES_MAX < len(payload) <= applier_module.STEP_BYTES_MAX
    applied, taken = in_steps(applier(CollectorRegistry()), payload, 0)
    assert len(applied.change) == 5
    assert taken >= 4


def test_a_large_payload_that_is_no_batch_is_refused() -> None:
    found, _ = in_steps(applier(CollectorRegistry()), b"\xc1" * 300_000, 3)
    assert (found.lossy, found.change.sequence) == ("batch_malformed", 3)


NO_SIZE = {**stored([1], range(4)), "block_size": 0}


@pytest.mark.parametrize(("event", "reason"), [(None, "event_malformed"), ([], "event_malformed"), ({}, "event_malformed"), (NO_SIZE, "unaligned")])
def test_a_batch_in_which_every_event_is_wrong_is_looked_at_in_steps(event: Any, reason: str) -> None:
    """It may be small: an event takes a byte, and to refuse it some microseconds."""
    count = AT_ONCE_BYTES_MAX
    ours = applier(CollectorRegistry())
    applied, steps = in_steps(ours, msgspec.msgpack.encode([1.5, [event] * count, 0]), 0)
    assert steps >= count
    assert (dict(ours.refused), len(applied.change)) == ({reason: count}, 0)


def test_a_large_adapter_is_forgotten_in_steps() -> None:
    ours = applier(CollectorRegistry())
    large = [stored([number], [number, 1, 2, 3], lora_name="ad") for number in range(2_000)]
    ours.apply(msgspec.msgpack.encode([1.0, [*large, stored([9_999], [1, 2, 3, 4])], 0]), 0, is_live=True)
    held = [ours.state.count(Tier.GPU) for _ in ours.forget_adapter("ad")]
    assert len(held) >= 2_000
    assert max(before - after for before, after in itertools.pairwise(held)) == 1
    assert ours.state.count(Tier.GPU) == 1

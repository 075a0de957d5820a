"""Demo engines say all that they hold, to a service that joins after their history."""

import asyncio

import pytest
import zmq.asyncio

from indexer.simulation.demo_engine import BLOCK_SIZE, BlockCache, DemoEngine
from indexer.simulation.publisher import LOOPBACK, Publisher
from tests.running import Running


def prompt(first: int, blocks: int) -> list[int]:
    return list(range(first, first + blocks * BLOCK_SIZE))


def test_parents_come_first_and_nothing_that_was_evicted() -> None:
    cache = BlockCache(5)
    cache.serve(prompt(1, 2))
    cache.serve(prompt(1000, 2))
    cache.serve([*prompt(1000, 1), *prompt(5000, 2)])  # six blocks: the oldest leaf goes
    first, *events = cache.snapshot()
    assert first == {"type": "AllBlocksCleared"}
    assert len(events) == 5
    seen: set[object] = {None}
    for event in events:
        assert event["parent_block_hash"] in seen
        seen.update(event["block_hashes"])  # type: ignore[call-overload]  # a list of the demo's own


@pytest.mark.parametrize("snapshot_port", [None, 0])
async def test_a_service_that_joins_late_knows_all_of_it(snapshot_port: int | None) -> None:
    """At the replay endpoint, and at one for snapshots alone."""
    with zmq.asyncio.Context() as context:
        context.linger = 0
        publisher = Publisher(context, LOOPBACK, 0, 0, history_max=1, snapshot_port=snapshot_port)
        engine = DemoEngine("pod", "m", 100, publisher)
        await publisher.open()
        serving = asyncio.create_task(publisher.serve())
        for first in (1, 1000, 2000):
            await engine.serve([*prompt(1, 2), *prompt(first, 3)])
        ports = f"events=tcp://{LOOPBACK}:{publisher.events_port},replay=tcp://{LOOPBACK}:{publisher.replay_port}"

        snapshot = "replay" if snapshot_port is None else f"tcp://{LOOPBACK}:{publisher.snapshot_port}"

        def matched() -> list[int]:
            with Running(f"pod=pod,model=m,{ports},snapshot={snapshot}") as service:
                service.wait_for(sequence=2, trust="live")
                return [service.matched([*prompt(1, 2), *prompt(first, 3), 0]) for first in (1, 1000, 2000)]

        assert await asyncio.to_thread(matched) == [5 * BLOCK_SIZE] * 3
        serving.cancel()
        await asyncio.wait([serving])
        publisher.close()

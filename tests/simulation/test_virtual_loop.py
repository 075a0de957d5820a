"""Time in the loop is virtual, and a frozen process does nothing until it is thawed."""

import asyncio
import time

import pytest

from tests.simulation.errors import SimulationError
from tests.simulation.virtual_loop import PROCESS, START_S, Process, VirtualLoop


def test_time_jumps_to_the_next_timer() -> None:
    loop = VirtualLoop.new()
    began_s = time.monotonic()

    async def sleep() -> float:
        await asyncio.gather(asyncio.sleep(1000.0), asyncio.sleep(3000.0))
        return loop.time()

    assert loop.run(sleep()) == pytest.approx(START_S + 3000.0, abs=0.01)
    assert time.monotonic() - began_s < 100.0


def test_a_frozen_process_does_what_was_due_once_it_is_thawed() -> None:
    loop, process = VirtualLoop.new(), Process("one")
    seen: list[float] = []

    async def tick() -> None:
        while True:
            await asyncio.sleep(1.0)
            seen.append(round(loop.time() - START_S))

    async def main() -> None:
        task = loop.start(process, tick())
        await asyncio.sleep(2.5)
        loop.freeze(process)
        await asyncio.sleep(3.0)
        loop.thaw(process)
        await asyncio.sleep(2.0)
        task.cancel()

    loop.run(main())
    assert seen == [1, 2, 6, 7]


def test_each_task_knows_its_process() -> None:
    loop = VirtualLoop.new()

    async def name() -> str:
        process = PROCESS.get()
        return "none" if process is None else process.name

    async def main() -> list[str]:
        return [await loop.start(Process("a"), name()), await loop.start(Process("b"), name()), await name()]

    assert loop.run(main()) == ["a", "b", "none"]


def test_a_world_in_which_all_wait_is_an_error() -> None:
    loop = VirtualLoop.new()

    async def wait() -> None:
        await loop.create_future()

    with pytest.raises(SimulationError, match="everything waits"):
        loop.run(wait())


def test_an_error_in_a_task_that_nobody_waits_for_is_an_error() -> None:
    loop = VirtualLoop.new()

    def fail() -> None:
        raise ValueError("broken")

    async def main() -> None:
        loop.call_soon(fail)
        await asyncio.sleep(1.0)

    with pytest.raises(ValueError, match="broken"):
        loop.run(main())

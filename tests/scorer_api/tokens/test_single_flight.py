"""One task for callers that want the same."""

import asyncio

import pytest

from scorer_api.tokens.single_flight import SingleFlight


async def test_one_that_stops_waiting_stops_nobody_else() -> None:
    flights: SingleFlight[int] = SingleFlight()
    began, may_end = 0, asyncio.Event()

    async def work() -> int:
        nonlocal began
        began += 1
        await may_end.wait()
        return 7

    first, second, third = (asyncio.create_task(flights.run(b"k", work)) for _ in range(3))
    await asyncio.sleep(0.01)
    assert began == 1
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    may_end.set()
    assert (await second, await third, began) == (7, 7, 1)
    assert not flights.is_running(b"k")


async def test_work_that_nobody_waits_for_ends() -> None:
    flights: SingleFlight[int] = SingleFlight()
    ended = asyncio.Event()

    async def work() -> int:
        try:
            await asyncio.sleep(3600)
        finally:
            ended.set()
        return 1

    waiting = asyncio.create_task(flights.run(b"k", work))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await ended.wait()
    assert not flights.is_running(b"k")


async def test_all_that_wait_are_told_of_a_failure() -> None:
    flights: SingleFlight[int] = SingleFlight()

    async def work() -> int:
        await asyncio.sleep(0)
        raise ValueError("no")

    found = await asyncio.gather(*(flights.run(b"k", work) for _ in range(3)), return_exceptions=True)
    assert [type(each) for each in found] == [ValueError] * 3
    assert not flights.is_running(b"k")


async def test_closing_ends_all_work() -> None:
    flights: SingleFlight[int] = SingleFlight()

    async def work() -> int:
        await asyncio.sleep(3600)
        return 1

    waiting = asyncio.create_task(flights.run(b"k", work))
    await asyncio.sleep(0.01)
    await flights.aclose()
    with pytest.raises(asyncio.CancelledError):
        await waiting

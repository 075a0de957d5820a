"""Work that ends early when the command is told to stop."""

import asyncio

import pytest

from scorer_api.cli.stop_event import unless_stopped


async def test_the_result_of_work_that_ends_by_itself() -> None:
    async def work() -> int:
        return 7

    assert await unless_stopped(asyncio.Event(), work()) == 7


async def test_none_and_cancelled_work_once_told_to_stop() -> None:
    stop, cancelled = asyncio.Event(), asyncio.Event()

    async def work() -> int:
        try:
            stop.set()
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return 7

    assert await unless_stopped(stop, work()) is None
    assert cancelled.is_set()


async def test_what_the_work_raises_is_raised() -> None:
    async def work() -> None:
        raise ValueError("a mistake")

    with pytest.raises(ValueError, match="a mistake"):
        await unless_stopped(asyncio.Event(), work())

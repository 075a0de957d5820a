"""What comes of awaiting Redis."""

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from indexer.store.connection import answer_of


async def losing(asked: asyncio.Event, error: Exception | None = None) -> int:
    """A call that loses its cancellation."""
    asked.set()
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        if error is not None:
            raise error from None
    return 1


@pytest.mark.parametrize("error", [None, RedisConnectionError("while cleaning up")])
def test_a_cancellation_that_the_library_loses_is_found_again(error: Exception | None) -> None:
    async def scenario() -> None:
        asked = asyncio.Event()
        task = asyncio.create_task(answer_of(losing(asked, error)))
        await asked.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()

    asyncio.run(scenario())


def test_answers_and_errors_pass_through() -> None:
    async def answer() -> int:
        return 7

    async def fail() -> int:
        raise RedisConnectionError("away")

    async def scenario() -> None:
        assert await answer_of(answer()) == 7
        with pytest.raises(RedisConnectionError, match="away"):
            await answer_of(fail())

    asyncio.run(scenario())

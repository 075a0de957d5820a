"""Going through many pods without all of them at once: each that is asked is a task, and thousands that begin together hold the event loop up."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")

# These begin together.
AT_ONCE = 32


async def spread(items: Sequence[T], over_s: float) -> AsyncIterator[T]:
    """All items, with pauses that together take so long where there are more than AT_ONCE."""
    pauses = max(0, len(items) - 1) // AT_ONCE
    for number, item in enumerate(items):
        if number and number % AT_ONCE == 0:
            await asyncio.sleep(over_s / pauses)
        yield item

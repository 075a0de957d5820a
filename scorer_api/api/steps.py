"""Work in steps, as a generator that returns its result, with others' turns in between."""

import asyncio
from typing import TypeVar

from indexer.core.event_pieces import Steps

R = TypeVar("R")


async def one_by_one(steps: Steps[R]) -> R:
    """The result of all steps. Others have their turn between two steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result
        await asyncio.sleep(0)

"""Work in steps, as a generator that returns its result: done at once, or with others' turns in between."""

import asyncio
from collections.abc import Generator
from typing import TypeVar

R = TypeVar("R")


def all_at_once(steps: Generator[None, None, R]) -> R:
    """The result of all steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result


async def one_by_one(steps: Generator[None, None, R]) -> R:
    """The same. Others have their turn between two steps."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: R = end.value
            return result
        await asyncio.sleep(0)

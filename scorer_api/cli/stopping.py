"""Acting until somebody says stop."""

import asyncio
from collections.abc import Coroutine
from typing import Any


async def unless(stop: asyncio.Event, acting: Coroutine[Any, Any, None]) -> None:
    """Act until it is done or `stop` is set."""
    tasks = asyncio.create_task(acting, name="play"), asyncio.create_task(stop.wait(), name="stop")
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome

"""Long work in the event loop, in steps of a few milliseconds."""

import asyncio
import time

STEP_S = 0.002


class Turns:
    """Others' turns between the steps of one piece of work, which begins now."""

    def __init__(self) -> None:
        self._until_s = time.monotonic() + STEP_S

    async def give(self) -> None:
        """Let others have their turn if this step took its time."""
        if time.monotonic() >= self._until_s:
            await asyncio.sleep(0)
            self._until_s = time.monotonic() + STEP_S

"""Waiting for what the receiving thread puts into a stream's inbox."""

import asyncio
import math
import time

from indexer.receiving.inbox import Inbox


class Wakeup:
    """Wakes the task of one stream when its inbox changes."""

    def __init__(self, inbox: Inbox) -> None:
        self._inbox = inbox
        self._woken = asyncio.Event()
        inbox.wake = self._woken.set

    def clear(self) -> None:
        """What has changed so far is about to be looked at."""
        self._woken.clear()

    def wake(self) -> None:
        """There is something else to do."""
        self._woken.set()

    async def wait(self, timeout_s: float) -> None:
        """Until something changes, or so long; `math.inf` for ever."""
        if math.isinf(timeout_s):  # a timeout costs as much as some batches, also where it is none
            await self._woken.wait()
            return
        try:
            async with asyncio.timeout(timeout_s):
                await self._woken.wait()
        except TimeoutError:
            pass

    async def wait_for_frames(self, timeout_s: float) -> None:
        """Until there are frames, or so long."""
        until_s = time.monotonic() + timeout_s
        while not self._inbox and (left_s := until_s - time.monotonic()) > 0:
            self._woken.clear()
            await self.wait(left_s)

    async def wait_while_connected(self, timeout_s: float) -> None:
        """So long, but no longer than the connection stays as it is."""
        epoch = self._inbox.epoch
        until_s = time.monotonic() + timeout_s
        while self._inbox.connected and self._inbox.epoch == epoch and (left_s := until_s - time.monotonic()) > 0:
            self._woken.clear()
            await self.wait(left_s)

"""Waiting on conditions, never on time."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import TypeVar

from tests.slowness import Budget

T = TypeVar("T")


# With a mechanism switched off a test is expected to fail; that should not take long.
TIMEOUT_MAX_S = float(os.environ.get("TEST_TIMEOUT_MAX_S", "inf"))
# The pause between two questions grows with what has passed: often the condition is an HTTP request, and many tests that wait share few cores.
POLL_MIN_S = 0.005
POLL_MAX_S = 0.25
POLL_SHARE = 0.25


def wait_until(condition: Callable[[], T], timeout_s: float = 30.0, what: str | Callable[[], str] = "the condition") -> T:
    """The first true value of `condition`. Fails with the last one, and with `what` was waited for, when that does not come.

    `timeout_s`: seconds of a quiet machine.
    """
    waiting = _Waiting(timeout_s, what)
    while not (value := condition()):
        pause_s = waiting.pause_s(value)
        time.sleep(pause_s)
    return value


async def wait_until_async(condition: Callable[[], T], timeout_s: float = 30.0, what: str | Callable[[], str] = "the condition") -> T:
    """`wait_until` for a test that runs in an event loop: the loop goes on meanwhile."""
    waiting = _Waiting(timeout_s, what)
    while not (value := condition()):
        pause_s = waiting.pause_s(value)
        await asyncio.sleep(pause_s)
    return value


class _Waiting:
    """One wait, and what is left of its time."""

    def __init__(self, timeout_s: float, what: str | Callable[[], str]) -> None:
        self._what = what
        self._started_s = time.monotonic()
        self._budget = Budget(min(timeout_s, TIMEOUT_MAX_S))

    def pause_s(self, value: object) -> float:
        """How long to wait before the next question. Fails when there is no time left."""
        is_in_time = self._budget.is_left()
        what = self._what if is_in_time or isinstance(self._what, str) else self._what()
        assert is_in_time, f"{what} did not come true in {self._budget.seconds} s; it is {value!r}"
        return min(max(POLL_MIN_S, (time.monotonic() - self._started_s) * POLL_SHARE), POLL_MAX_S)

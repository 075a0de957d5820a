"""Waiting on conditions, never on time."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


# With a mechanism switched off a test is expected to fail; that should not take long.
TIMEOUT_MAX_S = float(os.environ.get("TEST_TIMEOUT_MAX_S", "inf"))
# The pause between two questions grows with what has passed: often the condition is an HTTP request, and many tests that wait share few cores.
POLL_MIN_S = 0.01
POLL_MAX_S = 0.1
POLL_SHARE = 0.05


def wait_until(condition: Callable[[], T], timeout_s: float = 30.0, what: str | Callable[[], str] = "the condition") -> T:
    """The first true value of `condition`. Fails with the last one, and with `what` was waited for, when that does not come."""
    started_s = time.monotonic()
    while not (value := condition()):
        pause_s = _pause_s(started_s, timeout_s, what, value)
        time.sleep(pause_s)
    return value


async def wait_until_async(condition: Callable[[], T], timeout_s: float = 30.0, what: str | Callable[[], str] = "the condition") -> T:
    """`wait_until` for a test that runs in an event loop: the loop goes on meanwhile."""
    started_s = time.monotonic()
    while not (value := condition()):
        pause_s = _pause_s(started_s, timeout_s, what, value)
        await asyncio.sleep(pause_s)
    return value


def _pause_s(started_s: float, timeout_s: float, what: str | Callable[[], str], value: object) -> float:
    """How long to wait before the next question. Fails when there is no time left."""
    passed_s = time.monotonic() - started_s
    is_in_time = passed_s < min(timeout_s, TIMEOUT_MAX_S)
    assert is_in_time, f"{what if isinstance(what, str) else what()} did not come true in {timeout_s} s; it is {value!r}"
    return min(max(POLL_MIN_S, passed_s * POLL_SHARE), POLL_MAX_S)

"""Waiting on conditions, never on time."""

import asyncio
import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


# With a mechanism switched off a test is expected to fail; that should not take long.
TIMEOUT_MAX_S = float(os.environ.get("TEST_TIMEOUT_MAX_S", "inf"))
POLL_S = 0.01


def wait_until(condition: Callable[[], T], timeout_s: float = 30.0, what: str | Callable[[], str] = "the condition") -> T:
    """The first true value of `condition`. Fails with the last one, and with `what` was waited for, when that does not come."""
    deadline_s = time.monotonic() + min(timeout_s, TIMEOUT_MAX_S)
    while not (value := condition()):
        _check(deadline_s, timeout_s, what, value)
        time.sleep(POLL_S)
    return value


async def wait_until_async(condition: Callable[[], T], timeout_s: float = 30.0, what: str | Callable[[], str] = "the condition") -> T:
    """`wait_until` for a test that runs in an event loop: the loop goes on meanwhile."""
    deadline_s = time.monotonic() + min(timeout_s, TIMEOUT_MAX_S)
    while not (value := condition()):
        _check(deadline_s, timeout_s, what, value)
        await asyncio.sleep(POLL_S)
    return value


def _check(deadline_s: float, timeout_s: float, what: str | Callable[[], str], value: object) -> None:
    assert time.monotonic() < deadline_s, f"{what if isinstance(what, str) else what()} did not come true in {timeout_s} s; it is {value!r}"

"""Waiting on conditions, never on time."""

import os
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


# With a mechanism switched off a test is expected to fail; that should not take long.
TIMEOUT_MAX_S = float(os.environ.get("TEST_TIMEOUT_MAX_S", "inf"))


def wait_until(condition: Callable[[], T], timeout_s: float = 30.0, what: str | Callable[[], str] = "the condition") -> T:
    """The first true value of `condition`. Fails with the last one, and with `what` was waited for, when that does not come."""
    deadline_s = time.monotonic() + min(timeout_s, TIMEOUT_MAX_S)
    while True:
        value = condition()
        if value:
            return value
        assert time.monotonic() < deadline_s, f"{what if isinstance(what, str) else what()} did not come true in {timeout_s} s; it is {value!r}"
        time.sleep(0.01)

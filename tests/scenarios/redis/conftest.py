"""Every test ends with a check for leaked keys: after all processes have stopped and the time has passed for which keys outlive them, none is left.

The checks of a module's tests are waited for together, at the module's end.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.redis_server import RedisServer
from tests.scenarios.redis.world import NAMESPACE, World

Failed = pytest.StashKey[bool]()
# The longest that a key outlives its owner, in times of `pod_expiry_s`: blocks outlive their state, and what is forgotten is so for a while.
EXPIRY_FACTOR = 2.5
WAITED_MAX_S = 60.0


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield
    if report.when == "call" and not report.passed:
        item.stash[Failed] = True
    return report


class Graveyard:
    """Servers whose tests are over: their keys have to go."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._buried: list[tuple[str, RedisServer, float]] = []

    def bury(self, test: str, redis: RedisServer, pod_expiry_s: float) -> None:
        """From now on it is not touched any more."""
        with ExitStack() as ending:
            ending.push(redis)
            self._check_all_expire(test, redis, pod_expiry_s)
            if pod_expiry_s * EXPIRY_FACTOR <= WAITED_MAX_S:
                self._buried.append((test, redis, time.monotonic() + pod_expiry_s * EXPIRY_FACTOR))
                self._stack.push(ending.pop_all())

    def close(self) -> None:
        with self._stack:
            for test, redis, until_s in self._buried:
                try:
                    redis.wait_empty(max(1.0, until_s - time.monotonic()), prefix=f"{NAMESPACE}:")
                except AssertionError as error:
                    raise AssertionError(f"{test}: {error}") from None

    @staticmethod
    def _check_all_expire(test: str, redis: RedisServer, pod_expiry_s: float) -> None:
        """No key without an end, and none whose end is too far away to wait for."""
        client = redis.client()
        left_s = {name: client.pttl(name) / 1000 for name in redis.keys(f"{NAMESPACE}:")}
        leaked = {name: seconds for name, seconds in left_s.items() if seconds == -0.001 or seconds > pod_expiry_s * EXPIRY_FACTOR}
        assert not leaked, f"{test}: these keys do not expire in time: {leaked}"


@pytest.fixture(scope="module")
def graveyard() -> Iterator[Graveyard]:
    graves = Graveyard()
    yield graves
    graves.close()


@pytest.fixture
def make_world(request: pytest.FixtureRequest, graveyard: Graveyard) -> Iterator[Callable[..., World]]:
    """`make_world(pod_expiry_s=…, appendonly="yes", …)`: a world of this test; other options are redis-server's."""
    with ExitStack() as stack:
        worlds: list[World] = []

        def make(**options: Any) -> World:
            worlds.append(stack.enter_context(World(**options)))
            return worlds[-1]

        yield make
        for world in worlds:
            if request.node.stash.get(Failed, False):
                world.show_lines()
                stack.push(world.redis)
                continue
            world.stop_processes()
            graveyard.bury(request.node.nodeid, world.redis, world.pod_expiry_s)


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()

"""Every test ends with a check for leaked keys: once all processes have stopped, each key that is left expires, and soon."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.redis_server import RedisServer
from tests.scenarios.redis.world import NAMESPACE, World

Failed = pytest.StashKey[bool]()
# The longest that a key outlives its owner, in times of `pod_expiry_s`: blocks outlive their state, and what is forgotten is so for a while.
EXPIRY_FACTOR = 2.5
NO_EXPIRY_MS = -1


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield
    if report.when == "call" and not report.passed:
        item.stash[Failed] = True
    return report


def check_all_keys_expire(redis: RedisServer, pod_expiry_s: float) -> None:
    """Nobody is left to renew a key, so its time to live says when it goes; that it does is Redis's own part, and `test_expiry.py` waits for it."""
    client = redis.client()
    left_ms = {name: client.pttl(name) for name in redis.keys(f"{NAMESPACE}:")}
    leaked = {name: ms for name, ms in left_ms.items() if ms == NO_EXPIRY_MS or ms > pod_expiry_s * EXPIRY_FACTOR * 1000}
    assert not leaked, f"these keys do not expire in time: {leaked}"


@pytest.fixture
def make_world(request: pytest.FixtureRequest) -> Iterator[Callable[..., World]]:
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
                continue
            world.stop_processes()
            check_all_keys_expire(world.redis, world.pod_expiry_s)


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()

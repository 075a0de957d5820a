"""With TEST_MECHANISMS_OFF set, each recovery test runs with its mechanism switched off and has to fail (`make test-mechanisms`).

A failure is an assertion that does not hold, or an answer that does not come. A mechanism that cannot be switched off, say because a method has
another name now, is an error.
"""

import os

import httpx
import pytest

from tests.running import MECHANISM_OFF
from tests.scenarios.mechanisms import MECHANISMS
from tests.scenarios.redis.mechanisms import REDIS_MECHANISMS

FAILURES = (AssertionError, httpx.TransportError)
IS_OFF = bool(os.environ.get("TEST_MECHANISMS_OFF"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not IS_OFF:
        return
    kept = [item for item in items if item.get_closest_marker("mechanism")]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    for item in kept:
        item.add_marker(pytest.mark.xfail(strict=True, raises=FAILURES, reason="its mechanism is switched off"))
    items[:] = kept


@pytest.fixture(autouse=True)
def _mechanism(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    marker = request.node.get_closest_marker("mechanism")
    if marker is not None and IS_OFF:
        (MECHANISMS | REDIS_MECHANISMS)[marker.args[0]](monkeypatch)
        monkeypatch.setenv(MECHANISM_OFF, marker.args[0])

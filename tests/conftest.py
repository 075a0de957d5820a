"""What all tests share: a Redis, and the settings of the libraries that they use.

Property tests have no deadline of their own, and in CI they always try the same examples. A line for each request would drown a log.
"""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from tests.redis_server import RedisServer

FOLDER = Path(__file__).parent
# Measuring the coverage of a process takes half as long again: what the hundreds of these do, those of other tests do too.
UNMEASURED = (FOLDER / "scenarios", FOLDER / "security")

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
logging.getLogger("httpx").setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def _unmeasured(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if any(request.path.is_relative_to(folder) for folder in UNMEASURED):
        monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(scope="module")
def _redis_of_the_module() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def server(_redis_of_the_module: RedisServer) -> RedisServer:
    """A Redis that runs and is empty: the same process for all tests of a module, unless one of them stops it."""
    if not _redis_of_the_module.is_running:
        _redis_of_the_module.start(with_data=False)
    _redis_of_the_module.client().flushall()
    return _redis_of_the_module

"""What all tests share: a Redis, the settings of the libraries that they use, what is measured, and in which order tests run.

Property tests have no deadline of their own, and in CI they always try the same examples. A line for each request would drown a log.
"""

import gc
import logging
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import coverage
import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from tests.forked import COVERAGE_VARIABLE
from tests.redis_server import RedisServer

FOLDER = Path(__file__).parent
# Measuring coverage doubles the CPU time of a test. Of these, each runs lines that the tests beside it run too, but many times.
UNMEASURED = tuple(
    FOLDER / name
    for name in (
        "contract",
        "deploy",
        "indexer/compiled",
        "indexer/core/test_block_memory.py",
        "indexer/core/test_hostile_events.py",
        "indexer/core/test_isolation.py",
        "indexer/core/test_steps.py",
        "indexer/wire/test_fuzz.py",
        "indexer/wire/test_memory.py",
        "indexer/wire/test_splitter.py",
        "scenarios",
        "scorer_api/api/test_batch_split.py",
        "scorer_api/api/test_decode_in_turns.py",
        "scorer_api/api/test_extra_keys_list.py",
        "scorer_api/api/test_hash_lists.py",
        "scorer_api/api/test_hostile_requests.py",
        "scorer_api/api/test_msgpack_values.py",
        "scorer_api/api/test_plain_answer.py",
        "scorer_api/doctor/test_hostile.py",
        "scorer_api/fleet/test_fleet.py",
        "scorer_api/following/test_agreement.py",
        "scorer_api/index/test_compiled_index.py",
        "scorer_api/index/test_hits.py",
        "security",
        "simulation",
        "test_docs.py",
        "test_docs_links.py",
        "test_docs_site.py",
        "test_fleet.py",
        "test_fuzzing.py",
        "test_imports.py",
        "test_reference.py",
        "test_schemathesis.py",
    )
)
FIRST_WORKER = "gw0"
COVERAGE_CONFIG = os.environ.get(COVERAGE_VARIABLE)
# Only the commands' own tests measure the hundreds of processes: all others start what those of this process run too.
PROCESSES_MEASURED = (FOLDER / "scorer_api" / "cli",)
# Tests of these wait most of their time and share nothing that is dear: each goes to the next worker that is free.
# All other files stay whole, for the fixtures of modules.
WAITING = (
    *("tests/scenarios/redis/", "tests/scenarios/", "tests/scorer_api/following/", "tests/indexer/ownership/", "tests/indexer/store/client/"),
    *("tests/scorer_api/doctor/", "tests/scorer_api/cli/test_record_replay.py"),
)
APART = (*WAITING, "tests/indexer/wire/", "tests/simulation/test_simulation.py")
# The longest first, so that no worker is busy with one when the others are done.
FIRST = (*WAITING, "tests/test_schemathesis.py", "tests/indexer/wire/")

settings.register_profile("default", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")
logging.getLogger("httpx").setLevel(logging.WARNING)


class TestScheduling(LoadFileScheduling):
    """Work for `-n N`: single tests of the files in APART, otherwise whole files."""

    __test__ = False

    def _split_scope(self, nodeid: str) -> str:
        return nodeid if nodeid.startswith(APART) else str(super()._split_scope(nodeid))


def pytest_configure(config: pytest.Config) -> None:
    """Keep one measurement in a worker: two more began with the process, and each takes up its work where the one above it pauses."""
    plugin = config.pluginmanager.get_plugin("_cov")
    if plugin is None or plugin.cov_controller is None:
        return
    if hasattr(config, "workerinput") or config.getoption("numprocesses", None):
        plugin.cov_controller.cov.stop()  # begun as if this were the process that hands out the work, or by the one that only does that
    if hasattr(config, "workerinput") and (since_startup := getattr(coverage.process_startup, "coverage", None)) is not None:
        since_startup.stop()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> TestScheduling:
    return TestScheduling(config, log)


def pytest_collection(session: pytest.Session) -> None:
    """What is collected stays: looking for garbage in it again and again takes a fifth of the time. And of what all workers import it is enough that
    one measures it, which doubles the time."""
    gc.disable()
    if (controller := _measuring_again(session.config)) is not None:
        controller.pause()


def pytest_collection_finish(session: pytest.Session) -> None:
    if (controller := _measuring_again(session.config)) is not None:
        controller.resume()
    gc.enable()
    gc.collect()
    gc.freeze()


def _measuring_again(config: pytest.Config) -> Any:
    """The measurement of a worker that imports what another one does; None where there is none."""
    worker, plugin = getattr(config, "workerinput", {}).get("workerid", FIRST_WORKER), config.pluginmanager.get_plugin("_cov")
    return None if worker == FIRST_WORKER or plugin is None else plugin.cov_controller


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: next((place for place, start in enumerate(FIRST) if item.nodeid.startswith(start)), len(FIRST)))
    waiting = [item for item in items if item.nodeid.startswith(WAITING)]
    busy = [item for item in items if not item.nodeid.startswith(WAITING)]
    # Side by side, both kinds take less time than one after the other.
    places = [(place / len(kind), item) for kind in (waiting, busy) for place, item in enumerate(kind)]
    items[:] = [item for _, item in sorted(places, key=lambda pair: pair[0])]
    for item in items:
        if _is_in(UNMEASURED, item.path):
            item.add_marker("no_cover")


@cache
def _is_in(paths: tuple[Path, ...], path: Path) -> bool:
    return any(path.is_relative_to(one) for one in paths)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Say whether the processes of this test are measured, before the first fixture starts one."""
    if COVERAGE_CONFIG is None:
        return
    if _is_in(PROCESSES_MEASURED, item.path) and not _is_in(UNMEASURED, item.path):
        os.environ[COVERAGE_VARIABLE] = COVERAGE_CONFIG
    else:
        os.environ.pop(COVERAGE_VARIABLE, None)


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

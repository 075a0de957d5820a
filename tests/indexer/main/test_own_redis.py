"""The redis-server that a service with workers has for itself: where it ends or hangs, another one takes its place."""

import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator

import pytest
import redis

from indexer.main import own_redis as module
from indexer.main.own_redis import OwnRedis
from tests.redis_server import find_server
from tests.slowness import slowness
from tests.waiting import wait_until

LOOK_S = 0.02


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnRedis]:
    program = str(find_server())
    monkeypatch.setattr(shutil, "which", lambda name: program)
    monkeypatch.setattr(module, "PAUSE_S", 0.01)
    monkeypatch.setattr(module, "HANG_S", 0.25 * slowness())
    with OwnRedis(2) as own:
        yield own


def pid_of(own: OwnRedis) -> int:
    with redis.Redis.from_url(own.url) as client:
        return int(client.info("server")["process_id"])


def check_until_another_answers(own: OwnRedis, before: int) -> None:
    def is_another() -> bool:
        own.check()
        process = own._process
        return process is not None and process.pid != before

    wait_until(is_another, what="another redis-server")
    wait_until(lambda: _answers(own, before), what="its answer")


def _answers(own: OwnRedis, before: int) -> bool:
    try:
        return pid_of(own) != before
    except redis.ConnectionError:
        return False


def test_one_that_hangs_is_ended_and_started_again(own: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    before = pid_of(own)
    own.check()
    os.kill(before, signal.SIGSTOP)
    check_until_another_answers(own, before)
    assert [record.message for record in caplog.records] == ["own redis-server hangs", "own redis-server ended"]


def test_one_that_ends_is_started_again(own: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    before = pid_of(own)
    os.kill(before, signal.SIGKILL)
    check_until_another_answers(own, before)
    assert "own redis-server hangs" not in [record.message for record in caplog.records]


def test_one_that_answers_is_left_alone_and_so_is_one_beside_a_service_that_stood_still(own: OwnRedis) -> None:
    before = pid_of(own)
    until_s = time.monotonic() + 1.5 * module.HANG_S
    while time.monotonic() < until_s:
        own.check()
        time.sleep(LOOK_S)
    own._looked_s -= 3_600.0
    own.check()
    assert pid_of(own) == before

"""What a client makes of answers and errors, slot by slot."""

import logging

import pytest
from prometheus_client import CollectorRegistry, Gauge
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, OutOfMemoryError, RedisError

from indexer.store.health import RedisHealth

AWAY, FULL, REFUSED = RedisConnectionError("no route"), OutOfMemoryError("OOM command not allowed"), NoPermissionError("no permissions")


def health(*, writes: bool) -> tuple[RedisHealth, Gauge]:
    up = Gauge("up", "1 while Redis is well.", registry=CollectorRegistry())
    return RedisHealth("redis://:secret@h", up, writes=writes), up


def is_up(gauge: Gauge) -> bool:
    return bool(gauge.collect()[0].samples[0].value)  # type: ignore[attr-defined]


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(record.message, record.__dict__["trouble"]) for record in caplog.records]


def test_one_failed_slot_is_a_failure_and_others_are_well() -> None:
    redis, up = health(writes=True)
    redis.note_error(AWAY, 1)
    redis.note_answer(2, is_write=True)
    assert redis.failure is not None
    assert redis.failure.reason == "unreachable"
    assert redis.failure_in(2) is None
    assert redis.failed_slots() == {1}
    assert not is_up(up)
    redis.note_answer(1)
    assert redis.failure is None
    assert is_up(up)


@pytest.mark.parametrize(("error", "ends"), [(AWAY, True), (FULL, False), (REFUSED, False)])
def test_that_redis_accepts_writes_again_only_a_write_shows(error: RedisError, ends: bool) -> None:
    redis, _ = health(writes=True)
    redis.note_error(error, 0)
    redis.note_answer(0)
    assert (redis.failure is None) is ends
    redis.note_answer(0, is_write=True)
    assert redis.failure is None


def test_to_a_client_that_only_reads_each_answer_shows_that_redis_is_well() -> None:
    redis, _ = health(writes=False)
    redis.note_error(REFUSED, 0)
    redis.note_answer(0)
    assert redis.failure is None


def test_a_failure_lasts_since_its_first_error_whatever_comes_after_it() -> None:
    redis, _ = health(writes=True)
    redis.note_error(AWAY, 0)
    first = redis.failure
    redis.note_error(FULL, 0)
    assert first is not None
    assert redis.failure == ("full", first.since_s)


def test_an_outage_has_ended_when_the_failure_did_or_data_may_be_lost() -> None:
    redis, _ = health(writes=True)
    assert redis.outage_ended_s(0) == float("-inf")
    redis.note_error(AWAY, 0)
    redis.note_answer(0)
    ended_s = redis.outage_ended_s(0)
    assert ended_s > 0
    assert redis.outage_ended_s(1) == float("-inf")
    redis.note_data_loss(1)
    assert redis.outage_ended_s(1) >= ended_s == redis.outage_ended_s(0)
    redis.note_data_loss()
    assert redis.outage_ended_s(0) == redis.outage_ended_s(2) >= redis.outage_ended_s(1)


def test_each_change_is_logged_once_and_without_the_password(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    redis, _ = health(writes=True)
    for slot in (0, 1, 0):
        redis.note_error(AWAY, slot)
    redis.note_answer(0)
    redis.note_answer(1)
    redis.note_answer(1)
    assert lines(caplog) == [("redis in trouble", "unreachable"), ("redis well again", "unreachable")]
    assert "secret" not in str(caplog.records[0].__dict__)


def test_what_is_refused_beside_what_is_not_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    redis, _ = health(writes=False)
    for _ in range(3):
        redis.note_error(REFUSED, 0)
        redis.note_answer(0)
    assert lines(caplog) == [("redis in trouble", "refusing")]
    redis.note_error(NoPermissionError("another command"), 0)
    assert lines(caplog)[1:] == [("redis in trouble", "refusing")]


def test_silence_is_an_outage_unless_another_is_known() -> None:
    redis, _ = health(writes=False)
    silence = redis.silence(0.0)
    assert silence is not None
    assert silence.reason == "unreachable"
    assert redis.silence(60.0) is None
    redis.note_error(FULL, 0)
    assert redis.silence(0.0) is None


def test_a_slot_that_nobody_asks_for_is_no_failure() -> None:
    redis, _ = health(writes=False)
    redis.note_error(AWAY, 5)
    redis.forget(5)
    assert redis.failure is None

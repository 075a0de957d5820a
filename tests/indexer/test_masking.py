"""Texts without the secrets in them."""

import pytest

from indexer.errors import SettingError
from indexer.masking import HIDDEN, masked


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://:secret@h:1/0", "redis://:***@h:1/0"),
        ("redis://user:secret@h:1", "redis://user:***@h:1"),
        ("rediss://user:se/cr@et@h:1", "rediss://user:***@h:1"),
        ("redis://user:se cr#et?x@h", "redis://user:***@h"),
        ("redis+sentinel://u:secret@h:26379,h:26380/service", "redis+sentinel://u:***@h:26379,h:26380/service"),
        ("redis+cluster://:secret@h:7000,h:7001", "redis+cluster://:***@h:7000,h:7001"),
        ("redis+cluster://h:7000,h:secret", "redis+cluster://h:7000,h:***"),
        ("unix://u:secret@/run/redis.sock?db=1", "unix://u:***@/run/redis.sock?db=1"),
        ("redis://h?password=secret&db=1", "redis://h?password=***&db=1"),
        ("redis+sentinel://h/s?sentinel_password=secret", "redis+sentinel://h/s?sentinel_password=***"),
        ("redsi://:secret@h", "redsi://:***@h"),
        ("redis://user:secret", "redis://user:***"),
        ("--redis-url='redis://:secret@h': unknown", "--redis-url='redis://:***@h': unknown"),
        ("see http://u:secret@h:1/v1", "see http://u:***@h:1/v1"),
    ],
)
def test_passwords_are_not_shown(text: str, shown: str) -> None:
    assert masked(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "redis://h:6379/0",
        "redis://user@h:6379",
        "redis://[::1]:6379",
        "redis+sentinel://h:26379,h:26380/service",
        "redis+cluster://h:7000,h:7001,[::1]:7002",
        "pod=a,model=m,events=tcp://h:1,topic=kv@pod@model",
        "ipc:///tmp/a:b@c",
        "unix:///run/redis.sock",
        "nothing: of the kind @ all",
    ],
)
def test_what_holds_none_stays_as_it_is(text: str) -> None:
    assert masked(text) == text


def test_errors_of_settings_show_no_password_and_no_value_of_what_nobody_knows() -> None:
    assert str(SettingError("--redis", "redis://:secret@h", "no")) == "--redis='redis://:***@h': no"
    assert str(SettingError("KV_INDEXER_PASSWORD", HIDDEN, "unknown")) == "KV_INDEXER_PASSWORD=***: unknown"

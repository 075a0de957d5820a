"""Log lines, in both forms."""

import json
import logging
import re
import sys
from typing import Any

import pytest

from indexer.main.logs import JsonFormatter, TextFormatter
from tests.engine import Engine, removed, stored
from tests.running import Command
from tests.settings import QUICK, words_of
from tests.waiting import wait_until


def record(message: str = "stream changed", level: int = logging.INFO, **fields: Any) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "indexer.streams.stream", "msg": message, "levelno": level, "levelname": logging.getLevelName(level), **fields}
    )
    made.created = 1_769_860_800.25  # 2026-01-31 12:00:00.25 UTC
    return made


def test_text_is_time_level_message_and_fields() -> None:
    line = TextFormatter().format(record(pod="a", rank=0, trust="live"))
    assert line == "2026-01-31T12:00:00.250Z INFO stream changed pod=a rank=0 trust=live"


def test_text_leaves_out_fields_that_are_none_and_quotes_those_that_would_confuse() -> None:
    line = TextFormatter().format(record(error=None, pod="a b", topic="", line="x\ny", spec="k=v"))
    assert line.endswith(r"stream changed pod='a b' topic='' line='x\ny' spec='k=v'")


def test_json_is_one_object_with_the_fields_last() -> None:
    line = JsonFormatter().format(record(level=logging.WARNING, pod="ü\n", rank=1, error=None))
    assert "\n" not in line
    assert json.loads(line) == {
        **{"time": "2026-01-31T12:00:00.250Z", "level": "warning", "logger": "indexer.streams.stream", "message": "stream changed"},
        **{"pod": "ü\n", "rank": 1},
    }


def test_json_shows_what_it_has_no_word_for_as_text() -> None:
    assert json.loads(JsonFormatter().format(record(where=ValueError("here"))))["where"] == "here"


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_an_exception_comes_with_its_traceback(formatter: logging.Formatter) -> None:
    try:
        raise ValueError("too bad")
    except ValueError:
        line = formatter.format(record("stream failed", logging.ERROR, exc_info=sys.exc_info(), pod="a"))
    assert "ValueError: too bad" in line
    assert isinstance(formatter, TextFormatter) or "ValueError: too bad" in json.loads(line)["exception"]


@pytest.mark.parametrize("formatter", [TextFormatter(), JsonFormatter()])
def test_arguments_of_other_libraries_messages_are_filled_in(formatter: logging.Formatter) -> None:
    made = record("took %d ms")
    made.args = (5,)
    assert "took 5 ms" in formatter.format(made)


def test_a_state_change_is_one_line_and_an_event_none() -> None:
    words = words_of({**QUICK, "port": "0", "log_format": "json", "load_interval_s": "0"})
    with Engine() as engine, Command("serve", *words, "--engine", engine.spec("p/1")) as service:
        service.wait_url()
        service.wait_for(pod="p/1", trust="live")
        for number in range(100):
            engine.publish(stored([number], range(4)), removed([number]))
        service.wait_for(pod="p/1", sequence=99)
        for _ in range(20):
            service.score([1, 2, 3, 4, 5])
        engine.kill()
        service.wait_for(pod="p/1", trust="stale")
        wait_until(lambda: sum("stale" in line for line in service.lines) >= 2, what="the line about the loss")
    lines = [json.loads(line) for line in service.lines]
    assert [line["message"] for line in lines] == ["pod registered", "listening", "stream changed", "stream changed", "stopped"]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"]) and line["level"] == "info" for line in lines)
    up, down = lines[2:4]
    assert (up["pod"], up["rank"], up["was"], up["trust"]) == ("p/1", 0, "stale", "live")
    assert (down["pod"], down["was"], down["trust"], down["sequence"]) == ("p/1", "live", "stale", 99)
    assert "error" in down


def test_the_level_decides_what_is_logged() -> None:
    with Engine() as engine, Command("serve", "--port", "0", "--log-level", "warning", "--engine", engine.spec()) as service:
        wait_until(lambda: engine.asked or service.process.poll() is not None, what="the service's connection")
    assert service.process.returncode == 0
    assert service.lines == []


def test_text_is_the_default_form() -> None:
    with Engine() as engine, Command("serve", "--port", "0", "--engine", engine.spec("p 1")) as service:
        service.wait_url()
        service.wait_for(pod="p 1", trust="live")
    pattern = r"\S+Z INFO stream changed pod='p 1' rank=0 trust=live was=stale"
    assert sum(re.fullmatch(pattern, line) is not None for line in service.lines) == 1

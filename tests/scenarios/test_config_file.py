"""A config file says everything that flags can say, and is followed while the service runs."""

import json
import signal
from pathlib import Path

import pytest

from indexer.config.settings import fields, limit_fields
from indexer.errors import SettingError
from indexer.main.read_settings import read_settings
from tests.engine import Engine, stored
from tests.running import Command
from tests.waiting import wait_until

PROMPT = [1, 2, 3, 4, 5]


def table(engine: Engine, pod: str, **more: str) -> str:
    lines = [f'pod = "{pod}"', 'model = "m"', f'events = "tcp://127.0.0.1:{engine.events_port}"']
    lines += [f'replay = "tcp://127.0.0.1:{engine.replay_port}"', *(f'{key} = "{value}"' for key, value in more.items())]
    return "\n".join(["[[engines]]", *lines, ""])


def write(path: Path, *parts: str) -> None:
    """As editors and Kubernetes do it: a new file in the old one's place."""
    new = path.with_suffix(".new")
    new.write_text("\n".join(["port = 0", *parts]))
    new.replace(path)


def pods(service: Command) -> list[str]:
    return sorted(pod["pod"] for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"])


@pytest.mark.parametrize("is_signalled", [False, True], ids=["noticed", "SIGHUP"])
def test_engines_are_added_removed_and_replaced_without_touching_the_others(tmp_path: Path, is_signalled: bool) -> None:
    path = tmp_path / "kv-indexer.toml"
    with Engine() as one, Engine() as two, Engine() as three:
        for engine in (one, two, three):
            engine.publish(stored([1], PROMPT[:4]))
        write(path, table(one, "one"), table(two, "two"))
        with Command("serve", "--config", str(path)) as service:
            service.wait_url()
            for pod in ("one", "two"):
                service.wait_for(pod=pod, trust="live", sequence=0)
            asked = one.asked.count(0)
            subscribed = one.subscriptions()
            write(path, table(one, "one"), table(two, "two", topic="none"), table(three, "three"))
            if is_signalled:
                service.process.send_signal(signal.SIGHUP)
            service.wait_for(pod="two", trust="live")
            wait_until(lambda: pods(service) == ["one", "three", "two"])
            service.wait_for(pod="three", trust="live", sequence=0)
            assert service.matched(PROMPT, pod="one") == 4
            write(path, table(one, "one"))
            if is_signalled:
                service.process.send_signal(signal.SIGHUP)
            wait_until(lambda: pods(service) == ["one"])
            assert (one.asked.count(0), one.subscriptions()) == (asked, subscribed)
            assert service.matched(PROMPT, pod="one") == 4


def test_a_pod_that_came_over_http_is_not_touched_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "kv-indexer.toml"
    with Engine() as one, Engine() as two:
        write(path, table(one, "one"))
        with Command("serve", "--config", str(path)) as service:
            service.wait_url()
            spec = {"model": "m", "events": f"tcp://127.0.0.1:{two.events_port}"}
            assert service.http.put(f"{service.url}/v1/pods/two", json=spec).status_code == 201
            write(path)
            wait_until(lambda: pods(service) == ["two"])


@pytest.mark.parametrize(
    "wrong", ["port = ", 'colour = "red"', 'pod_expiry_s = "soon"', '[[engines]]\npod = "x"'], ids=["TOML", "entry", "value", "engine"]
)
def test_a_file_that_is_wrong_afterwards_is_told_of_and_changes_nothing(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "kv-indexer.toml"
    with Engine() as one:
        write(path, table(one, "one"))
        with Command("serve", "--log-format", "json", "--config", str(path)) as service:
            service.wait_url()
            path.write_text(wrong)
            wait_until(lambda: any("settings not read again" in line for line in service.lines))
            line = json.loads(next(line for line in service.lines if "settings not read again" in line))
            assert line["level"] == "error"
            assert {"port = ": "is not TOML", '[[engines]]\npod = "x"': "model is required"}.get(wrong, wrong.partition(" ")[0]) in line["error"]
            assert pods(service) == ["one"]


def test_settings_that_need_a_restart_are_named(tmp_path: Path) -> None:
    path = tmp_path / "kv-indexer.toml"
    write(path)
    with Command("serve", "--log-format", "json", "--config", str(path)) as service:
        service.wait_url()
        write(path, "pod_expiry_s = 7", "[limits]", "silence_s = 2.5")
        wait_until(lambda: any("need a restart" in line for line in service.lines))
        assert json.loads(service.lines[-1 if "need a restart" in service.lines[-1] else -2])["settings"] == "limits.silence_s,pod_expiry_s"


def test_flags_win_over_variables_and_variables_over_the_file() -> None:
    file = {"host": "file", "port": 1, "log_format": "json"}
    settings = read_settings({"port": "3"}, [], {"KV_INDEXER_PORT": "2", "KV_INDEXER_HOST": "variable"}, file)
    assert (settings.host, settings.port, settings.log_format) == ("variable", 3, "json")


def test_engines_of_flags_replace_those_of_variables_and_these_those_of_the_file() -> None:
    file = {"engines": [{"pod": "file", "model": "m", "events": "tcp://h:1"}]}
    variables = {"KV_INDEXER_ENGINES": "pod=variable,model=m,events=tcp://h:1"}
    flags = ["pod=flag,model=m,events=tcp://h:1"]
    chosen = [read_settings({}, texts, environ, file).engines[0].pod for texts, environ in ((flags, variables), ([], variables), ([], {}))]
    assert chosen == ["flag", "variable", "file"]


def test_every_setting_can_be_in_the_file() -> None:
    limits = {field.name: field.default for field in limit_fields() if field.default is not None}
    file = {field.name: field.default for field in fields()} | {"limits": limits}
    assert read_settings({}, [], {}, file) == read_settings({}, [], {})


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ({"colour": "red"}, ["colour=***", "unknown entry", "pod_expiry_s"]),
        ({"silence_s": 1}, ["silence_s=1", "[limits]"]),
        ({"limits": {"colour": "red"}}, ["limits.colour=***", "unknown entry", "silence_s"]),
        ({"limits": {"port": 1}}, ["limits.port=***", "unknown entry"]),
        ({"limits": {"silence_s": "1"}}, ["limits.silence_s", "'1'", "float"]),
        ({"limits": {"copies_max": 256}}, ["limits.copies_max", "256", "<= 255"]),
        ({"limits": 1}, ["limits=1", "table"]),
        ({"port": "8080"}, ["port", "'8080'", "int"]),
        ({"log_format": "xml"}, ["log_format", "'xml'", "text or json"]),
        ({"engines": "pod=a"}, ["engines", "'pod=a'", "[[engines]]"]),
        ({"engines": [{"pod": "a", "model": "m", "events": "tcp://h:1", "color": 1}]}, ["engines", "color", "unknown key"]),
        ({"engines": [{"pod": "a", "model": "m", "events": "tcp://h:1"}] * 2}, ["engines", "'a'", "twice"]),
    ],
)
def test_a_wrong_entry_is_named_with_its_value_and_what_is_allowed(file: dict[str, object], said: list[str]) -> None:
    with pytest.raises(SettingError) as raised:
        read_settings({}, [], {}, file)
    assert [word for word in said if word not in str(raised.value)] == []


def test_a_file_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    with Command("serve", "--config", str(tmp_path / "none.toml")) as service:
        assert service.process.wait(30) == 2
        wait_until(lambda: service.lines)
    assert len(service.lines) == 1
    assert "none.toml" in service.lines[0]

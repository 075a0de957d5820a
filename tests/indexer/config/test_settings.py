"""Settings, from flags and variables."""

from itertools import groupby

import pytest

from indexer.config.settings import GROUPS, Field, Settings, changed_settings, fields, limit_fields
from indexer.errors import SettingError
from indexer.limits import Limits
from indexer.main.read_settings import read_settings

SPEC = "pod=a,model=m,events=tcp://h:1"


def refused(flags: dict[str, str] | None = None, engines: tuple[str, ...] = (), environ: dict[str, str] | None = None) -> SettingError:
    with pytest.raises(SettingError) as raised:
        read_settings(flags or {}, engines, environ or {})
    return raised.value


def test_with_nothing_given_the_defaults_hold() -> None:
    settings = read_settings({}, (), {})
    assert settings == Settings()
    assert (settings.host, settings.port, settings.pod_expiry_s, settings.ready_after_s) == ("127.0.0.1", 8080, 300.0, 10.0)
    assert settings.tier_weights == (1.0, 0.8, 0.5, 0.3)


def test_the_names_of_flags_and_variables_follow_from_the_field() -> None:
    (field,) = [field for field in fields() if field.name == "streams_max"]
    assert (field.flag, field.variable, field.default) == ("--streams-max", "KV_INDEXER_STREAMS_MAX", 4_096)


def test_every_setting_has_a_description_that_is_a_sentence() -> None:
    assert [field.name for field in (*fields(), *limit_fields()) if not field.description.endswith(".")] == []


@pytest.mark.parametrize("field", list(fields()), ids=lambda field: field.name)
def test_every_default_can_be_given_as_a_flag_and_as_a_variable(field: Field) -> None:
    if field.default is None:
        assert getattr(read_settings({}, (), {}), field.name) is None
        return
    text = ";".join(field.default) if field.is_list else str(field.default)
    assert getattr(read_settings({field.name: text}, (), {}), field.name) == field.default
    assert getattr(read_settings({}, (), {field.variable: text}), field.name) == field.default


def test_flags_win() -> None:
    settings = read_settings({"port": "1"}, (), {"KV_INDEXER_PORT": "2", "KV_INDEXER_HOST": "::"})
    assert (settings.port, settings.host) == (1, "::")


def test_engines_come_from_flags() -> None:
    settings = read_settings({}, (SPEC, "pod=b,model=n,events=tcp://h:2"), {"KV_INDEXER_ENGINES": "nonsense"})
    assert [(spec.pod, spec.model) for spec in settings.engines] == [("a", "m"), ("b", "n")]


def test_engines_come_from_a_variable_parted_by_semicolons() -> None:
    settings = read_settings({}, (), {"KV_INDEXER_ENGINES": f" {SPEC} ;\n pod=b,model=n,events=tcp://h:2; "})
    assert [(spec.pod, spec.model, spec.events) for spec in settings.engines] == [("a", "m", "tcp://h:1"), ("b", "n", "tcp://h:2")]


@pytest.mark.parametrize("text", ["", " ", ";", " ; "])
def test_an_empty_variable_names_no_engine(text: str) -> None:
    assert read_settings({}, (), {"KV_INDEXER_ENGINES": text}).engines == ()


def test_other_variables_are_not_ours() -> None:
    assert read_settings({}, (), {"PORT": "x", "KV_INDEX_PORT": "x", "kv_indexer_port": "x", "XKV_INDEXER_PORT": "x"}) == Settings()


@pytest.mark.parametrize("service", ["KV_INDEXER", "KV_INDEXER_REDIS"])
def test_what_kubernetes_says_of_a_service_of_our_name_is_not_ours(service: str) -> None:
    links = {
        f"{service}_SERVICE_HOST": "10.0.0.1",
        f"{service}_SERVICE_PORT": "8080",
        f"{service}_SERVICE_PORT_HTTP": "8080",
        f"{service}_PORT": "tcp://10.0.0.1:8080",
        f"{service}_PORT_8080_TCP": "tcp://10.0.0.1:8080",
        f"{service}_PORT_8080_TCP_PROTO": "tcp",
        f"{service}_PORT_8080_TCP_PORT": "8080",
        f"{service}_PORT_8080_TCP_ADDR": "10.0.0.1",
    }
    assert read_settings({}, (), links) == Settings()


@pytest.mark.parametrize("variable", ["KV_INDEXER_COLOR", "KV_INDEXER_port", "KV_INDEXER_", "KV_INDEXER_ENGINE", "KV_INDEXER_PORTS"])
def test_an_unknown_variable_stops_the_start(variable: str) -> None:
    error = refused(environ={variable: "red"})
    assert error.key == variable
    assert "unknown variable" in str(error)
    assert "red" not in str(error).partition(":")[0], "what nobody knows may be a secret"


def test_a_wrong_flag_is_named_with_its_value_and_what_is_allowed() -> None:
    error = refused({"weight_cpu": "1.5"})
    assert (error.key, error.value) == ("--weight-cpu", "1.5")
    assert "<= 1" in error.allowed


def test_a_wrong_variable_is_named_with_its_value_and_what_is_allowed() -> None:
    error = refused(environ={"KV_INDEXER_PORT": "65536"})
    assert (error.key, error.value) == ("KV_INDEXER_PORT", "65536")
    assert "<= 65535" in error.allowed


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *[("port", "-1"), ("port", "80.5"), ("port", ""), ("log_format", "xml"), ("log_format", "JSON"), ("log_level", "loud")],
        *[("pod_expiry_s", "0"), ("pod_expiry_s", "nan"), ("pod_expiry_s", "inf"), ("pod_expiry_s", "5s"), ("weight_gpu", "nan")],
        *[("weight_other", "-0.1"), ("streams_max", "0"), ("streams_max", "1.5"), ("streams_max", "10001"), ("body_bytes_max", "0")],
        *[("lease_s", "1000001"), ("lease_s", "0"), ("load_interval_s", "3601"), ("redis_timeout_s", "0")],
        ("hash_seed", "x" * 257),
    ],
)
def test_wrong_values_stop_the_start(name: str, text: str) -> None:
    error = refused({name: text})
    assert (error.key, error.value) == ("--" + name.replace("_", "-"), text)


@pytest.mark.parametrize(("name", "allowed"), [("log_format", ["text", "json"]), ("log_level", ["debug", "info", "warning", "error"])])
def test_a_wrong_choice_is_told_the_choices(name: str, allowed: list[str]) -> None:
    error = refused({name: "nonsense"})
    assert [word for word in allowed if word not in error.allowed] == []


def test_a_wrong_spec_says_where_it_came_from() -> None:
    assert refused(engines=("pod=a",)).key == "--engine"
    assert refused(environ={"KV_INDEXER_ENGINES": f"{SPEC};pod=b"}).key == "KV_INDEXER_ENGINES"


def test_a_pod_and_rank_given_twice_stops_the_start() -> None:
    error = refused(engines=(SPEC, SPEC.replace(":1", ":2")))
    assert (error.key, error.value) == ("--engine", "a")
    assert "rank 0" in error.allowed


def test_limits_come_from_their_table_by_flat_names() -> None:
    table = {"inbox_frames_max": 7, "frame_bytes_max": 9, "copies_max": 3, "block_size_max": 32, "replay_idle_s": 0.5}
    limits = read_settings({}, (), {}, {"limits": table}).limits
    receive = limits.receive
    assert (receive.inbox_frames_max, receive.frame_bytes_max, receive.heartbeat_s) == (7, 9, 1.0)
    assert (receive.replay_idle_s, receive.replay_total_s) == (0.5, 120.0)
    assert (limits.state.copies_max, limits.wire.block_size_max) == (3, 32)


def test_a_limit_has_neither_a_flag_nor_a_variable() -> None:
    error = refused(environ={"KV_INDEXER_SILENCE_S": "2"})
    assert (error.key, error.value) == ("KV_INDEXER_SILENCE_S", "2")
    assert "silence_s in the table [limits]" in error.allowed


def test_settings_and_limits_have_one_name_each() -> None:
    names = [field.name for field in (*fields(), *limit_fields())]
    assert sorted(set(names)) == sorted(names)


def test_every_setting_is_in_one_group_of_the_help() -> None:
    groups = [field.group for field in fields()]
    assert list(dict.fromkeys(groups)) == list(GROUPS)
    assert [group for group, _ in groupby(groups)] == list(GROUPS), "the members of a group are side by side"


def test_what_changed_is_named_as_a_user_writes_it() -> None:
    before = Settings(port=1)
    after = Settings(port=2, lease_s=1.0, limits=Limits.of(silence_s=0.5))
    assert changed_settings(before, before) == []
    assert changed_settings(before, after) == ["lease_s", "limits.silence_s", "port"]

"""Nothing secret is shown."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import environment, run
from tests.engine import Engine, stored
from tests.ports import free_port
from tests.processes import api, ingest, serve
from tests.redis_server import RedisServer, User
from tests.running import Command
from tests.settings import QUICK, words_of
from tests.waiting import wait_until

WORD = "s3cret/Pass@word"  # as it has to be quoted in a URL, and as people forget to
QUOTED = "s3cret%2FPass%40word"
PIECES = ("s3cret", "Pass", QUOTED)
TOKEN, ADMIN = "ap1-t0ken", "adm1n-t0ken"


def shown(text: str) -> list[str]:
    """The pieces of secrets in a text."""
    return [piece for piece in (*PIECES, TOKEN, ADMIN) if piece in text]


def answers(service: Command) -> str:
    """All that the service tells those who ask, with and without a token, rightly and wrongly."""
    found = []
    for headers in ({}, {"Authorization": f"Bearer {TOKEN}"}, {"Authorization": f"Bearer {TOKEN}x"}, {"Authorization": f"Bearer {ADMIN}"}):
        for path in ("/readyz", "/healthz", "/metrics", "/v1/pods", "/v1/models", "/openapi.json", "/docs", "/nothing"):
            response = service.http.get(service.url + path, headers=headers)
            found.append(f"{response.headers}{response.text}")
        response = service.http.put(f"{service.url}/v1/pods/x", json={"model": "m", "events": "tcp://8.8.8.8:1"}, headers=headers)
        found.append(f"{response.headers}{response.text}")
        response = service.http.delete(f"{service.url}/v1/pods/x", headers=headers)
        found.append(f"{response.headers}{response.text}")
    return "\n".join(found)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "api").write_text(TOKEN)
    (tmp_path / "admin").write_text(ADMIN)
    return {"api_token_file": str(tmp_path / "api"), "admin_token_file": str(tmp_path / "admin"), "log_level": "debug"}


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with RedisServer(users=[User("kvi", WORD)]) as server:
        yield server


@pytest.mark.rule("C14")
@pytest.mark.parametrize("role", ["serve", "ingest", "api"])
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_a_service_that_loses_redis_shows_no_password_and_no_token(files: dict[str, str], role: str, log_format: str) -> None:
    with RedisServer(users=[User("kvi", WORD)]) as redis, Engine() as engine:
        assert QUOTED in redis.url
        engine.publish(stored([1], [1, 2, 3, 4]))
        settings = {"log_format": log_format, "ready_after_s": "0.1", "redis_timeout_s": "0.3", **files}
        env = {"KV_INDEXER_REDIS": redis.url}
        words = words_of({"port": "0", **(QUICK if role != "api" else {}), **settings})
        engines = [] if role == "api" else ["--engine", engine.spec()]
        with Command(role, *words, *engines, env=env, is_fresh=True) as service:
            service.wait_url()
            wait_until(lambda: service.http.get(f"{service.url}/readyz").status_code == 200)
            told = answers(service)
            redis.kill()
            wait_until(lambda: any("redis in trouble" in line for line in service.lines))
            wait_until(lambda: "Redis is unreachable" in service.http.get(f"{service.url}/readyz").text)
            told += answers(service)
            process = Path(f"/proc/{service.process.pid}")
            assert shown((process / "cmdline").read_text() + (process / "comm").read_text()) == []
        assert shown(told) == []
        assert shown("\n".join(service.lines)) == []
        (line, *_) = [line for line in service.lines if "redis in trouble" in line]
        assert "redis://kvi:***@127.0.0.1" in line


@pytest.mark.rule("C14")
@pytest.mark.parametrize("role", ["serve", "ingest", "api"])
def test_what_redis_says_of_a_wrong_password_or_an_unknown_auth_is_shown_without_it(redis: RedisServer, role: str) -> None:
    starting = {"serve": serve, "ingest": ingest, "api": api}[role]
    with RedisServer(**{"rename-command": 'AUTH ""'}) as knows_no_auth:
        for url in (
            redis.url.replace(QUOTED, f"{QUOTED}x"),
            f"redis://kvi:{QUOTED}@127.0.0.1:{knows_no_auth.port}",
            f"redis://127.0.0.1:{knows_no_auth.port}?username=kvi&password={QUOTED}",
        ):
            with starting(url) as service:
                service.wait_url()
                wait_until(lambda service=service: any("redis in trouble" in line for line in service.lines))
                assert shown(service.http.get(f"{service.url}/readyz").text) == []
            assert shown("\n".join(service.lines)) == []
            assert any("***" in line for line in service.lines if "redis in trouble" in line)


def complaint(*words: str, **env: str) -> str:
    code, out, err = run(*words, env=environment(**env))
    assert (code, out, len(err.splitlines())) == (2, "", 1), err
    return err


URLS = [
    f"http://:{QUOTED}@h:1",
    f"redsi://kvi:{WORD}@h",
    f"redis://kvi:{WORD}@h:1",
    f"redis://kvi:{WORD}",
    f"redis://kvi:{WORD}@[h",
    f"redis://kvi:{QUOTED}@h:port",
]


@pytest.mark.rule("C14")
@pytest.mark.parametrize("url", URLS)
@pytest.mark.parametrize("role", ["serve", "api"])
def test_a_wrong_url_is_named_without_its_password(role: str, url: str) -> None:
    said = complaint(role, "--port", "0", "--redis", url)
    assert (shown(said), "--redis" in said, "***" in said) == ([], True, True), said


@pytest.mark.rule("C14")
def test_unknown_settings_are_named_without_their_values(tmp_path: Path) -> None:
    url = f"redis://:{QUOTED}@h"
    file = tmp_path / "kv-indexer.toml"
    for name, value in (("redis_url", url), ("redis_password", WORD), ("api_token", TOKEN)):
        file.write_text(f'{name} = "{value}"\n')
        flag = f"--{name.replace('_', '-')}"
        variable = f"KV_INDEXER_{name.upper()}"
        for said, key in (
            (complaint("serve", "--config", str(file)), name),
            (complaint("serve", flag, value), flag),
            (complaint("serve", f"{flag}={value}"), flag),
            (complaint("serve", **{variable: value}), variable),
        ):
            assert (shown(said), key in said) == ([], True), said


@pytest.mark.rule("C14")
def test_a_file_that_became_wrong_is_told_of_without_what_is_secret_in_it(tmp_path: Path) -> None:
    file = tmp_path / "kv-indexer.toml"
    file.write_text("port = 0\n")
    with Command("serve", "--config", str(file)) as service:
        service.wait_url()
        for wrong, word in (
            (f'redis_password = "{WORD}"', "unknown entry"),
            (f'redis = "redsi://:{WORD}@h"', "should be a URL"),
            (f'redis = "{WORD}', "TOML"),
        ):
            file.write_text(f"port = 0\n{wrong}\n")
            wait_until(lambda word=word: any("settings not read again" in line and word in line for line in service.lines))
        file.write_text(f'port = 0\nredis = "redis://:{QUOTED}@127.0.0.1:{free_port()}"\n')
        wait_until(lambda: any("settings changed that need a restart" in line for line in service.lines))
    assert shown("\n".join(service.lines)) == []


@pytest.mark.rule("C14")
def test_help_shows_no_value_that_was_set() -> None:
    env = {"KV_INDEXER_REDIS": f"redis://:{QUOTED}@h", "PATH": os.environ["PATH"]}
    code, out, err = run("serve", "--help", env=env)
    assert (code, shown(out + err)) == (0, [])

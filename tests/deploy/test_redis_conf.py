"""deploy/redis.conf: a real server takes it, and every line of it says why."""

import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from tests.deploy.manifests import CHART, DEPLOY, KUBERNETES
from tests.engine import Engine, removed, stored
from tests.processes import api, ingest
from tests.redis_server import RedisServer, User, find_server
from tests.waiting import wait_until

CONF = DEPLOY / "redis.conf"
# What the command line says otherwise in these tests.
OF_THE_TEST = {"bind", "port", "dir", "maxmemory", "protected-mode"}


def directives() -> list[tuple[str, str]]:
    lines = [line for line in CONF.read_text().splitlines() if line and not line.startswith("#")]
    return [(name, value.strip('"')) for name, _, value in (line.partition(" ") for line in lines)]


@contextmanager
def started(folder: Path, password: str) -> Iterator[redis.Redis]:
    """A server with the file as it is but for where it may write, and for what the manifests too have the command line say."""
    socket, conf = folder / "redis.sock", folder / "redis.conf"
    assert "\ndir /data\n" in CONF.read_text()
    conf.write_text(CONF.read_text().replace("\ndir /data\n", f"\ndir {folder}\n"))
    elsewhere = ["--port", "0", "--bind", "127.0.0.1", "--unixsocket", str(socket)]
    words = [find_server(), str(conf), *elsewhere, "--maxmemory", "200mb", "--protected-mode", "no", "--requirepass", password]
    with (folder / "log").open("wb") as log, subprocess.Popen(words, cwd=folder, stdout=log, stderr=subprocess.STDOUT) as process:
        try:
            wait_until(lambda: socket.exists() or process.poll() is not None, 30)
            assert process.poll() is None, (folder / "log").read_text()
            with redis.Redis(unix_socket_path=str(socket), password=password or None, decode_responses=True) as client:
                yield client
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What CONFIG GET shows."""
    with started(tmp_path_factory.mktemp("redis"), "") as client:
        found: dict[str, str] = client.config_get("*")
        return found


def test_a_server_starts_with_every_line_of_it_and_shows_each_value(shown: dict[str, str]) -> None:
    sizes = {"kb": 1024, "mb": 1024**2, "gb": 1024**3}

    def in_bytes(value: str) -> str:
        return re.sub(r"\b(\d+)(kb|mb|gb)\b", lambda found: str(int(found[1]) * sizes[found[2]]), value)

    wrong = []
    for name, value in directives():
        if name in OF_THE_TEST:
            continue
        expected = in_bytes(value)
        # The limits of all classes are one value; a replica was called slave once.
        is_shown = expected in shown[name].replace("slave", "replica") if name == "client-output-buffer-limit" else shown[name] == expected
        if not is_shown:
            wrong.append((name, expected, shown[name]))
    assert wrong == []


def test_the_command_line_has_the_last_word_on_memory_and_password(tmp_path: Path) -> None:
    with started(tmp_path, "secret") as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(200 * 1024**2)}
        with redis.Redis(unix_socket_path=str(tmp_path / "redis.sock")) as stranger, pytest.raises(redis.AuthenticationError):
            stranger.ping()


def test_what_the_index_relies_on(shown: dict[str, str]) -> None:
    assert shown["maxmemory-policy"] == "noeviction"
    assert shown["lazyfree-lazy-expire"] == "yes"
    assert ("maxmemory", "1gb") in directives()
    assert shown["appendonly"] == "yes"
    assert shown["save"] == ""


def test_every_directive_has_its_reason_above_it() -> None:
    lines = CONF.read_text().splitlines()
    without = []
    for number, line in enumerate(lines):
        if not line or line.startswith("#"):
            continue
        above = lines[number - 1]
        # The classes of one limit share theirs.
        is_another_of_the_same = above.partition(" ")[0] == line.partition(" ")[0]
        if not above.startswith("# ") and not is_another_of_the_same:
            without.append(line)
    assert without == []
    names = [name for name, _ in directives() if name != "client-output-buffer-limit"]
    assert len(names) == len(set(names)) > 20


@pytest.mark.parametrize("copied", [KUBERNETES / "redis/redis.conf", CHART / "files/redis.conf"], ids=["kustomize", "helm"])
def test_the_copies_of_it_are_the_same(copied: Path) -> None:
    assert copied.read_bytes() == CONF.read_bytes()


def test_no_password_stands_in_it() -> None:
    assert not {"requirepass", "user", "masterauth"} & {name for name, _ in directives()}


def test_the_user_that_it_proposes_may_do_what_the_service_does_and_no_more() -> None:
    found = re.search(r"^#   user kv-indexer on #<sha256 of its password> (.+)$", CONF.read_text(), re.MULTILINE)
    assert found
    users = [User("kv-indexer", "secret", found[1]), User("admin", "secret")]
    with Engine() as engine, RedisServer(users=users) as server:
        engine.publish(stored([1], [1, 2, 3, 4]))
        own = server.client()
        for command in (["SET", "other", "1"], ["KEYS", "*"], ["FLUSHALL"], ["CONFIG", "GET", "*"], ["PUBLISH", "kvi:x", "1"]):
            with pytest.raises(redis.exceptions.NoPermissionError):
                own.execute_command(*command)
        with ingest(server.url, engine.spec()) as indexer, api(server.url) as scorer:
            indexer.wait_url()
            scorer.wait_url()
            wait_until(lambda: scorer.http.get(f"{scorer.url}/v1/pods").json()["pods"])
            scorer.wait_for(sequence=0, trust="live")
            assert scorer.matched([1, 2, 3, 4, 5]) == 4
            engine.publish(removed([1]))
            scorer.wait_for(sequence=1)
            assert scorer.http.put(f"{scorer.url}/v1/pods/new", json={"model": "m", "events": "tcp://127.0.0.1:9"}).status_code == 201
            assert scorer.http.delete(f"{scorer.url}/v1/pods/new").status_code == 204
            assert indexer.stop() == 0
            assert not [line for command in (indexer, scorer) for line in command.lines if "redis in trouble" in line]

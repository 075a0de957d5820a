"""The tests' own redis-server does what tests believe of it."""

import time

import pytest
import redis

from tests.redis_server import VARIABLE, RedisServer, User, find_server
from tests.waiting import wait_until


def test_it_starts_empty_on_a_port_of_its_own() -> None:
    with RedisServer() as one, RedisServer() as other:
        assert one.port != other.port
        one.client().set("a", "b")
        assert one.client().get("a") == b"b"
        assert (one.keys(), other.keys()) == ([b"a"], [])
        assert one.version >= (6, 2)


def test_it_is_gone_at_the_end() -> None:
    with RedisServer() as server:
        process, folder = server.process, server.folder
        server.freeze()
    assert process is not None
    assert process.poll() is not None
    assert not folder.exists()


def test_scripts_run() -> None:
    with RedisServer() as server:
        assert server.client().eval("return redis.call('SET', KEYS[1], ARGV[1])", 1, "a", "b") == b"OK"


def test_a_frozen_server_answers_after_it_is_thawed() -> None:
    with RedisServer() as server:
        client = server.client(socket_timeout=0.2)
        client.set("a", "b")
        server.freeze()
        with pytest.raises(redis.TimeoutError):
            client.get("a")
        server.thaw()
        assert server.client().get("a") == b"b"


def test_a_killed_server_comes_back_on_its_port_without_what_was_not_saved() -> None:
    with RedisServer() as server:
        port, client = server.port, server.client()
        client.set("saved", 1)
        server.save()
        client.set("late", 1)
        server.kill()
        with pytest.raises(redis.ConnectionError):
            server.client().ping()
        server.start()
        assert (server.port, server.keys()) == (port, [b"saved"])


def test_it_comes_back_empty_when_asked_to() -> None:
    with RedisServer(appendonly="yes") as server:
        server.client().set("a", 1)
        server.save()
        server.kill()
        server.start(with_data=False)
        assert server.keys() == []


def test_with_an_append_only_file_nothing_is_lost_by_a_kill() -> None:
    with RedisServer(appendonly="yes") as server:
        server.client().mset({f"key-{number}": number for number in range(1000)})
        server.kill()
        server.start()
        assert len(server.keys("key-")) == 1000


def test_an_older_snapshot_can_be_put_back() -> None:
    with RedisServer() as server:
        client = server.client()
        client.set("a", "old")
        old = server.save()
        client.set("a", "new")
        server.save()
        server.stop()
        server.put_back(old)
        server.start()
        assert server.client().get("a") == b"old"


def test_options_are_the_servers() -> None:
    with RedisServer(maxmemory="3mb", maxmemory_policy="noeviction") as server:
        client = server.client()
        client.set("little", "x")
        with pytest.raises(redis.OutOfMemoryError):
            client.mset({f"a-{number}": "x" * 100_000 for number in range(100)}) and client.set("more", "x")


def test_a_password_is_in_the_url() -> None:
    with RedisServer(requirepass="p@ss/word") as server:
        assert server.client().ping()
        with pytest.raises(redis.AuthenticationError), redis.Redis(port=server.port, host="127.0.0.1") as stranger:
            stranger.ping()


def test_users_may_do_what_their_rules_say() -> None:
    everything, little = User("alice", "se:cret"), User("bob", "hidden", "~kvi:* +get +ping")
    with RedisServer(users=[everything, little]) as server, redis.Redis.from_url(server.url_of(little)) as client:
        server.client().set("kvi:a", 1)
        assert client.get("kvi:a") == b"1"
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.get("other")
        with pytest.raises(redis.AuthenticationError), redis.Redis(port=server.port, host="127.0.0.1") as stranger:
            stranger.ping()
        assert server.keys() == [b"kvi:a"]


def test_it_is_reached_by_its_socket_too() -> None:
    with RedisServer(requirepass="secret") as server, redis.Redis.from_url(server.unix_url) as client:
        client.set("a", 1)
        assert server.keys() == [b"a"]


def test_a_replica_follows_its_master() -> None:
    with RedisServer() as master, RedisServer(replicaof=f"127.0.0.1 {master.port}") as replica:
        master.client().set("a", 1)
        wait_until(lambda: replica.keys() == [b"a"])
        with pytest.raises(redis.ReadOnlyError):
            replica.client().set("b", 1)


def test_commands_are_counted_and_those_inside_scripts_too() -> None:
    with RedisServer() as server:
        client = server.client()
        client.set("before", 1)
        with server.counting() as calls:
            client.mget("a", "b")
            client.eval("for i = 1, 3 do redis.call('INCR', KEYS[1]) end", 1, "c")
        assert calls == {"mget": 1, "eval": 1, "incr": 3}


def test_commands_are_seen_one_by_one() -> None:
    with RedisServer() as server:
        client = server.client()
        with server.monitoring() as seen:
            client.set("a", 1)
            client.eval("redis.call('HSET', KEYS[1], 'f', 1)", 1, "b")
        client.set("after", 1)
        assert [command.split()[0].lower() for command in seen] == ["set", "eval", "hset"]


def test_keys_of_every_database_are_seen() -> None:
    with RedisServer() as server:
        server.client().set("kvi:a", 1)
        server.client(db=3).set("kvi:b", 1)
        server.client().set("other", 1)
        assert server.keys("kvi:") == [b"kvi:a", b"kvi:b"]


def test_waiting_for_the_end_of_keys_names_those_that_stay() -> None:
    with RedisServer() as server:
        server.client().set("kvi:gone", 1, px=300)
        server.wait_empty(prefix="kvi:")
        server.client().set("kvi:kept", 1)
        started_s = time.monotonic()
        with pytest.raises(AssertionError, match=r"1 keys are left .*kvi:kept.*string, ttl -1"):
            server.wait_empty(0.3, prefix="kvi:")
        assert time.monotonic() - started_s >= 0.3


def test_a_wrong_path_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "/no/such/server")
    with pytest.raises(FileNotFoundError, match="/no/such/server"):
        find_server()


def test_the_package_has_a_server_where_the_system_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("PATH", "")
    assert "site-packages" in find_server()
    with RedisServer() as server:
        assert server.client().ping()

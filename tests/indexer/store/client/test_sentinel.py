"""URLs of Sentinels, whose word counts, and a client whose master moves; the last with real Sentinels."""

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from indexer.errors import SettingError
from indexer.store.client.connection import answer_of, check_url, connect, server_epoch_of, why
from indexer.store.client.sentinel import MasterReport, SentinelClient, choose_master, parse
from indexer.store.scripts import Call, call, call_all
from tests.ports import free_port
from tests.redis_sentinel import SERVICE, WatchedRedis

# URLs


def test_a_url_names_sentinels_service_database_and_credentials_of_both() -> None:
    watched = parse(
        "redis+sentinel://us%2Fer:p%40ss:word@h:1,[::1]:2,other/my%20service/3?sentinel_username=s&sentinel_password=t%3Ap&client_name=me"
    )
    assert watched.sentinels == (("h", 1), ("::1", 2), ("other", 26379))
    assert watched.service == "my service"
    assert not watched.is_tls
    assert watched.options == {"username": "us/er", "password": "p@ss:word", "db": 3, "client_name": "me"}
    assert watched.sentinel_options == {"username": "s", "password": "t:p"}


def test_the_least_that_a_url_says() -> None:
    watched = parse("redis+sentinel://h/s")
    assert (watched.sentinels, watched.service, watched.options, watched.sentinel_options) == ((("h", 26379),), "s", {"db": 0}, {})


def test_tls_is_spoken_with_sentinels_and_master_alike() -> None:
    watched = parse("rediss+sentinel://h:1/s?ssl_ca_certs=/ca.pem&sentinel_password=x")
    assert watched.is_tls
    assert watched.options == {"db": 0, "ssl_ca_certs": "/ca.pem"}
    assert watched.sentinel_options == {"password": "x", "ssl_ca_certs": "/ca.pem"}


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("redis+sentinel://h:1,h:2", "names no service"),
        ("redis+sentinel://h:1,h:2/", "names no service"),
        ("redis+sentinel:///s", "has an empty host"),
        ("redis+sentinel://h:1,,h:2/s", "has an empty host"),
        ("redis+sentinel://:1/s", "has an empty host"),
        ("redis+sentinel://h:1,h:s3cret/s", "has a port that is none"),
        ("redis+sentinel://h:1,h:99999/s", "has a port that is none"),
        ("redis+sentinel://h:1/s/nine", "has a database that is no number"),
        ("redis+sentinel://h:1/s/", "has a database that is no number"),
        ("redis+sentinel://u:s3cret@h:1/s?socket_timeout=s3cret", "has a parameter of a wrong value"),
    ],
)
def test_a_wrong_url_is_named_with_what_would_be_right(url: str, complaint: str) -> None:
    with pytest.raises(SettingError, match=complaint) as raised:
        check_url(url, "--redis")
    assert "redis+sentinel://user:password@host:port,host:port/service/database" in str(raised.value)
    assert "u:s3cret" not in str(raised.value)


async def test_an_unknown_parameter_stops_the_start_too() -> None:
    with pytest.raises(SettingError, match="cannot be used"):
        connect("redis+sentinel://h:1/s?passwort=1", 1)


# Whose word counts

OLD, NEW = MasterReport(("old", 1), 4), MasterReport(("new", 1), 5)


def test_the_newest_word_counts_however_few_say_it() -> None:
    assert choose_master(None, [OLD, OLD, NEW], 3) == (NEW, False)
    assert choose_master(OLD, [OLD, OLD, NEW], 3) == (NEW, False)
    assert choose_master(OLD, [NEW], 3) == (NEW, False)


def test_what_is_known_stays_known_while_nobody_answers() -> None:
    assert choose_master(OLD, [], 3) == (OLD, False)
    assert choose_master(None, [], 3) == (None, False)


def test_an_older_word_is_no_reason_to_go_back() -> None:
    """A Sentinel that was cut off with the old master, or has not heard yet."""
    assert choose_master(NEW, [OLD], 3) == (NEW, False)
    assert choose_master(NEW, [OLD, OLD], 3) == (NEW, True), "most say so: that counts when it stays"
    assert choose_master(NEW, [OLD], 1) == (NEW, True)
    assert choose_master(NEW, [OLD, NEW], 2) == (NEW, False)


def test_another_address_in_the_same_epoch_is_a_correction() -> None:
    moved = MasterReport(("moved", 1), 5)
    assert choose_master(NEW, [moved, moved], 3) == (moved, False)
    assert choose_master(NEW, [NEW, moved], 3) == (NEW, False)


# A client


@pytest.fixture
def watched() -> Iterator[WatchedRedis]:
    with WatchedRedis(replicas=1, sentinel_word="s3cret:word") as running:
        yield running


@asynccontextmanager
async def connected(url: str, timeout_s: float = 1.0) -> AsyncIterator[SentinelClient]:
    client = connect(url, timeout_s)
    assert isinstance(client, SentinelClient)
    try:
        yield client
    finally:
        await client.aclose()
        await client.aclose()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, "what the client began ends with it"


async def has_moved(client: SentinelClient, since: int) -> None:
    async with asyncio.timeout(20):
        while client.server_epoch == since:  # noqa: ASYNC110 - a counter tells nobody
            await asyncio.sleep(0.05)


async def test_the_master_moves_although_it_answers(watched: WatchedRedis) -> None:
    """What waits for an answer of the former master fails, what was made for it and not sent is not sent to the new one, and the rest goes there."""

    # It waits for longer than the Sentinels take.
    async with connected(watched.url, timeout_s=20.0) as client:
        former = watched.master
        assert await answer_of(client.set("name", "value"))
        assert server_epoch_of(client) == 0
        waiting = asyncio.create_task(answer_of(client.blpop(["nothing"], timeout=30)))
        unsent = client.pipeline(transaction=False)
        unsent.set("late", "write")
        await asyncio.to_thread(watched.cut_off, former)
        assert await answer_of(client.incr("only on the former")) == 1
        await has_moved(client, 0)
        with pytest.raises(RedisConnectionError):
            await waiting
        with pytest.raises(RedisConnectionError, match="another one now"):
            await answer_of(unsent.execute())
        master = await asyncio.to_thread(watched.wait_master, former)
        assert await answer_of(client.mget("name", "late", "only on the former")) == [b"value", None, None]
        assert former.visitors() == 0
        assert master.visitors() > 0
        # No connection, new or of somebody's who still has it, leads back.
        assert former.client().get("late") is None
        await asyncio.to_thread(watched.heal, former)
        assert server_epoch_of(client) == 1


async def test_calls_made_for_one_master_are_not_sent_to_the_next(watched: WatchedRedis, monkeypatch: pytest.MonkeyPatch) -> None:
    """They say until when streams are trusted, by the former's clock: also where the former did not know their script yet."""

    async with connected(watched.url) as client:
        make = client.pipeline

        def move_after_the_first(*arguments: Any, **options: Any) -> Any:
            pipeline = make(*arguments, **options)
            execute = pipeline.execute

            async def execute_and_move(*how: Any, **further: Any) -> Any:
                answers = await execute(*how, **further)
                client.server_epoch += 1
                return answers

            monkeypatch.undo()
            pipeline.execute = execute_and_move
            return pipeline

        monkeypatch.setattr(client, "pipeline", move_after_the_first)
        calls = [Call("peek", ["state", "log"])]
        with pytest.raises(RedisConnectionError, match="another server"):
            await call_all(client, calls)
        assert await call(client, "peek", ["state", "log"]), "and here is one made for this one"


async def test_a_service_that_no_sentinel_knows_is_said(watched: WatchedRedis) -> None:
    async with connected(watched.url.replace(SERVICE, "nobody")) as client:
        with pytest.raises(RedisConnectionError, match=r"no Sentinel names a master called nobody: .*knows no such master") as raised:
            await answer_of(client.ping())
        assert why(raised.value) == "unreachable"


async def test_a_wrong_password_for_sentinels_is_said_and_not_shown(watched: WatchedRedis, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async with connected(watched.url.partition("?")[0] + "?sentinel_password=wr0ng") as client:
        with pytest.raises(RedisError, match=r"no Sentinel names a master.*invalid") as raised:
            await answer_of(client.ping())
        assert "wr0ng" not in str(raised.value)
    assert "wr0ng" not in caplog.text


async def test_one_sentinel_that_hangs_and_one_that_is_gone_delay_nobody(watched: WatchedRedis) -> None:
    hanging, gone, _ = watched.sentinels
    hanging.freeze()
    gone.kill()

    async with connected(watched.url) as client:
        async with asyncio.timeout(0.9):
            assert await answer_of(client.ping())


async def test_no_sentinel_at_all() -> None:
    async with connected(f"redis+sentinel://127.0.0.1:{free_port()}/s") as client:
        for _ in range(2):
            with pytest.raises(RedisConnectionError, match="no Sentinel names a master"):
                await answer_of(client.ping())


async def test_a_replica_that_is_named_as_the_master_is_refused(watched: WatchedRedis) -> None:
    """It would be read from, and not written to."""
    replica = next(server for server in watched.servers if server is not watched.master)

    async with connected(watched.url) as client:
        await client.wait_for_master()
        client._pool.set_address(("127.0.0.1", replica.port))
        with pytest.raises(RedisError) as raised:
            await answer_of(client.get("name"))
        assert why(raised.value) == "read-only"


def test_a_master_without_replicas_is_called_so(watched: WatchedRedis) -> None:
    master = watched.master
    client = master.client()
    client.config_set("min-replicas-to-write", 2)
    with pytest.raises(RedisError) as raised:
        client.set("name", "value")
    assert why(raised.value) == "short of replicas"

"""Which node of a Cluster is asked, and what is made of its answers. The Cluster is real."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any
from urllib.parse import quote

import pytest
from redis.exceptions import ClusterDownError, ResponseError, TryAgainError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from indexer.core.names import StreamKey
from indexer.errors import SettingError
from indexer.store.client.cluster import SLOTS, Cluster, parse_url, slot_of_key
from indexer.store.client.connection import answer_of, check_url, connect, node_of, slot_of, why
from indexer.store.inspection import inspect
from indexer.store.keyspace import Keyspace, incarnation_beside
from indexer.store.scripts import Call, call_all
from tests.redis_cluster import Member, RedisCluster
from tests.redis_server import User
from tests.running import ROOT
from tests.waiting import wait_until

TIMEOUT_S = 1.0


@pytest.mark.parametrize(
    ("url", "nodes", "first"),
    [
        ("redis+cluster://h", [("h", 6379)], "redis://h:6379/0"),
        ("redis+cluster://a:7000,b:7001", [("a", 7000), ("b", 7001)], "redis://a:7000/0"),
        ("redis+cluster://a:7000,a:7000/", [("a", 7000)], "redis://a:7000/0"),
        ("redis+cluster://u:p%40%2C@a:7000,b/0", [("a", 7000), ("b", 6379)], "redis://u:p%40%2C@a:7000/0"),
        ("redis+cluster://:p@[::1]:7000,[fe80::1]", [("::1", 7000), ("fe80::1", 6379)], "redis://:p@[::1]:7000/0"),
        ("rediss+cluster://a?ssl_cert_reqs=none", [("a", 6379)], "rediss://a:6379/0?ssl_cert_reqs=none"),
    ],
)
def test_urls_name_nodes(url: str, nodes: list[tuple[str, int]], first: str) -> None:
    parsed = parse_url(url)
    assert list(parsed.nodes) == nodes
    assert parsed.of(nodes[0]) == first


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://a,,b",
        "redis+cluster://a:,b",
        "redis+cluster://a:70000",
        "redis+cluster://a:secret",
        "redis+cluster://:secret@a/1",
        "redis+cluster://:secret@a#x",
    ],
)
def test_urls_that_cannot_be_used_are_told_of_without_the_password(url: str) -> None:
    for check in (lambda: check_url(url, "--redis"), lambda: connect(url, 1.0)):
        with pytest.raises(SettingError, match=r"redis\+cluster://user:password@host:port,host:port") as raised:
            check()
        assert "secret" not in str(raised.value)


def test_an_option_that_cannot_be_used_is_found_before_anything_is_asked() -> None:
    with pytest.raises(SettingError, match="cannot be used"):
        connect("redis+cluster://a?socket_timeout=soon", 1.0)


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        ("123456789", 0x31C3),  # the check value of CRC16/XMODEM, as the specification has it
        ("{123456789}.a", 0x31C3),
        ("kvi:1:{123456789}:log", 0x31C3),
        (b"a{123456789}{b}", 0x31C3),
    ],
)
def test_a_key_lies_in_the_slot_of_its_hash_tag(key: str | bytes, slot: int) -> None:
    assert slot_of_key(key) == slot


def test_a_redis_that_is_no_cluster_is_one_slot() -> None:
    client = connect("redis://h", 1.0)
    assert {slot_of(client, key) for key in ("a", "b", "c")} == {0}
    assert node_of(client, "a") == ""


def test_beside_each_key_lies_its_incarnation() -> None:
    """That may be set to see whether a node takes writes, and nothing else may."""
    keys, stream = Keyspace("kvi"), StreamKey("a {model}: b", "pod:{x}:1", 0)
    model, directory = keys.model(stream.model), keys.directory
    assert {incarnation_beside(key) for key in (model.log, model.lease(stream), model.state(stream), *model.parts(stream, 1))} == {model.incarnation}
    assert {incarnation_beside(key) for key in (directory.pods, directory.members, directory.incarnation)} == {directory.incarnation}
    assert slot_of_key(model.lease(stream)) == slot_of_key(model.incarnation)


# With a Cluster


@pytest.fixture(scope="module")
def cluster() -> Iterator[RedisCluster]:
    with RedisCluster() as running:
        yield running


@asynccontextmanager
async def connected(cluster: RedisCluster) -> AsyncIterator[Cluster]:
    client = connect(cluster.url, TIMEOUT_S)
    assert isinstance(client, Cluster)
    async with aclosing(client):
        yield client


def one_key_each(cluster: RedisCluster) -> dict[Member, str]:
    """A key of each master's."""
    found: dict[Member, str] = {}
    for number in range(1000):
        found.setdefault(cluster.owner_of(f"key {number}"), f"key {number}")
        if len(found) == 3:
            return found
    raise AssertionError("a master has no slot")


def test_slots_are_those_of_the_server(cluster: RedisCluster) -> None:
    for key in ("a", "{a}b", "a{}b", "a{b", "é{ü}", "kvi:1:{directory}:pods"):
        assert cluster.living[0].ask("CLUSTER", "KEYSLOT", key) == slot_of_key(key)


async def test_commands_go_to_the_node_that_has_the_key_and_answers_come_back_in_order(cluster: RedisCluster) -> None:
    keys = [f"order {number}" for number in range(60)]

    async with connected(cluster) as client:
        pipeline = client.pipeline(transaction=False)
        for number, key in enumerate(keys):
            pipeline.hset(key, "field", number)
        assert await pipeline.execute() == [1] * len(keys)
        for key in keys:
            pipeline.hget(key, "field")
        assert await pipeline.execute() == [str(number).encode() for number in range(len(keys))]
        assert {node_of(client, key) for key in keys} == {f"127.0.0.1:{member.port}" for member in cluster.living if member.role() == "master"}


async def test_what_has_no_key_goes_where_the_first_key_is(cluster: RedisCluster) -> None:
    async with connected(cluster) as client:
        pipeline = client.pipeline(transaction=False)
        pipeline.time()
        pipeline.hgetall("a")
        (seconds, _), found = await pipeline.execute()
        assert abs(seconds - time.time()) < 5
        assert found == {}


async def test_what_is_about_a_server_goes_to_the_one_that_has_the_directory(cluster: RedisCluster) -> None:
    async with connected(cluster) as client:
        assert await client.ping()
        assert (await client.info("server"))["tcp_port"] == cluster.owner_of("{directory}").port


async def test_the_doctor_can_look_at_a_cluster(cluster: RedisCluster) -> None:
    seen = await inspect(cluster.url, "kvi", TIMEOUT_S)
    assert (seen.failure, seen.error, seen.is_empty, seen.role) == (None, "", True, "master")


async def test_a_script_is_loaded_where_it_is_needed(cluster: RedisCluster) -> None:
    keys = list(one_key_each(cluster).values())

    async with connected(cluster) as client:
        for member in cluster.living:
            member.ask("SCRIPT", "FLUSH")
        calls = [Call("read_clock", [key]) for key in keys]
        for _ in range(2):
            assert all(abs(int(now_ms) / 1000 - time.time()) < 5 for now_ms in await call_all(client, calls))


async def test_keys_of_several_slots_in_one_script_are_refused(cluster: RedisCluster) -> None:
    """What the tests that run every script on a Cluster rely on."""

    async with connected(cluster) as client:
        (answer,) = await call_all(client, [Call("read_clock", list(one_key_each(cluster).values()))])
        assert isinstance(answer, ResponseError)
        assert "slot" in str(answer)


async def test_a_slot_that_has_moved_is_found(cluster: RedisCluster) -> None:
    async with connected(cluster) as client:
        await client.set("moving", "a")
        before = node_of(client, "moving")
        target = cluster.other_than(cluster.owner_of("moving"))
        await asyncio.to_thread(cluster.migrate, "moving", target)
        pipeline = client.pipeline(transaction=False)
        for key in ("moving", "{moving}2", "moving"):
            pipeline.set(key, "b")
        assert await pipeline.execute() == [True] * 3
        assert before != node_of(client, "moving") == f"127.0.0.1:{target.port}"
        assert await client.zscore("{moving}3", "x") is None


async def test_a_slot_on_the_move_is_asked_for_key_by_key_and_scripts_over_several_keys_wait(cluster: RedisCluster) -> None:
    key, others = "leaving", [f"{{leaving}}{number}" for number in range(20)]
    seen: list[object] = []

    async with connected(cluster) as client:
        for name in (key, *others):
            await client.hset(name, "field", name)
        source = cluster.owner_of(key)
        target = cluster.other_than(source)

        async def during() -> None:
            found = [await client.hget(name, "field") for name in (key, *others)]
            seen.append(found == [name.encode() for name in (key, *others)])
            (answer,) = await call_all(client, [Call("read_clock", [key, "{leaving}none", others[-1]])])
            seen.append(answer)
            await client.set("{leaving}new", "a")  # one that is not there is made where the slot goes to
            seen.append(node_of(client, key))

        loop = asyncio.get_running_loop()

        def halfway() -> None:
            asyncio.run_coroutine_threadsafe(during(), loop).result(30)

        await asyncio.to_thread(cluster.migrate, key, target, halfway)
        assert seen[0] is True
        assert isinstance(seen[1], TryAgainError)
        assert why(seen[1]) == "unreachable"
        assert seen[2] == f"127.0.0.1:{target.port}", "whoever answered last"
        assert isinstance((await call_all(client, [Call("read_clock", [key, "{leaving}none", others[-1]])]))[0], bytes)
        assert await client.hget(others[3], "field") == others[3].encode()
        assert target.keys("{leaving}new") == [b"{leaving}new"]


async def test_nothing_is_sent_again_whose_answer_was_lost(cluster: RedisCluster) -> None:
    async with connected(cluster) as client:
        await client.hset("counted", "field", 0)
        owner = cluster.owner_of("counted")
        owner.freeze()
        try:
            with pytest.raises(RedisTimeoutError):
                await client.execute_command("EVAL", "return redis.call('HINCRBY', KEYS[1], 'field', 1)", 1, "counted")
        finally:
            owner.thaw()
        await asyncio.sleep(2 * TIMEOUT_S)  # enough for a second try
        assert int(owner.client().hget("counted", "field") or 0) <= 1  # type: ignore[arg-type]
    cluster.wait_well()


async def test_a_call_that_nobody_waits_for_any_more_ends(cluster: RedisCluster) -> None:
    async with connected(cluster) as client:
        await client.zscore("a", "b")
        for asking in (client.xread({"a log": "0-0"}, block=900), client.xread({"a log": "0-0"}, block=900)):
            task = asyncio.create_task(answer_of(asking))
            await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.wait([task], timeout=0.5)
            assert task.cancelled()


async def test_a_node_that_is_away_takes_nothing_else_with_it_and_its_replica_is_found() -> None:
    with RedisCluster() as cluster:
        keys = one_key_each(cluster)
        victim = cluster.masters[0]
        others = [key for member, key in keys.items() if member is not victim]

        async with connected(cluster) as client:
            assert await client.set(keys[victim], "a")
            await asyncio.sleep(0.5)  # its replica has it
            victim.freeze()
            pipeline = client.pipeline(transaction=False)
            for key in (others[0], keys[victim], others[1]):
                pipeline.set(key, "a")
            found = await pipeline.execute(raise_on_error=False)
            assert found[0] is found[2] is True
            assert isinstance(found[1], RedisTimeoutError)
            victim.kill()
            reasons: set[str] = set()
            until_s = time.monotonic() + 30
            while True:
                assert time.monotonic() < until_s, "the replica was not found"
                try:
                    assert await client.hget(keys[victim] + "{no}", "field") is None
                    assert await client.pexpire(keys[victim], 60_000)
                    break
                except (RedisConnectionError, RedisTimeoutError, ClusterDownError) as error:
                    reasons.add(why(error))
                await asyncio.sleep(0.1)
            assert reasons == {"unreachable"}
            (answer,) = await call_all(client, [Call("read_clock", [keys[victim]])])
            assert isinstance(answer, bytes), "scripts are loaded where a replica does not know them"
            assert node_of(client, keys[victim]) != f"127.0.0.1:{victim.port}"
        cluster.wait_promoted(keys[victim], victim)


async def test_a_cluster_that_was_never_there_and_a_redis_that_is_none_are_told_of() -> None:
    async def ask(url: str) -> None:
        client = connect(url, 0.3)
        try:
            for _ in range(2):
                with pytest.raises((RedisConnectionError, ResponseError)) as raised:
                    await client.set("a", "b")
                found.append(str(raised.value))
        finally:
            await client.aclose()

    found: list[str] = []
    await ask("redis+cluster://127.0.0.1:1,127.0.0.1:2")
    with Member() as member:
        await ask(f"redis+cluster://127.0.0.1:{member.port}")
        assert "no node has any slot" in found[-1]
        wait_until(lambda: member.is_running)
    assert all(found)


async def test_a_user_with_few_rights_is_enough() -> None:
    """That of deploy/redis.conf, and what docs/operations.md adds for a Cluster."""
    (rules,) = re.findall(r"user kv-indexer on #<.*?> (.*)", (ROOT / "deploy/redis.conf").read_text())
    (more,) = re.findall(r"needs `(\+.*?)` behind its `-@dangerous`", (ROOT / "docs/operations.md").read_text())
    test, user = User("test", "for-the-test"), User("kv-indexer", "p@ss:w,rd", f"{rules} {more}")
    with Member(users=[test, user]) as member:
        member.ask("CLUSTER", "ADDSLOTS", *range(SLOTS))
        wait_until(lambda: member.says("cluster_state") == "ok", 30, "the node to serve its slots")

        client: Any = connect(f"redis+cluster://{quote(user.name, '')}:{quote(user.password, '')}@127.0.0.1:{member.port}", TIMEOUT_S)
        try:
            assert await client.hset("kvi:1:{a}:state", "field", 1) == 1
            (now_ms,) = await call_all(client, [Call("read_clock", ["kvi:1:{a}:state"])])
            assert abs(int(now_ms) / 1000 - time.time()) < 5
            await client._client(("127.0.0.1", member.port)).execute_command("ASKING")
            with pytest.raises(ResponseError, match=r"(?i)no permission"):
                await client.hset("other:{a}", "field", 1)
        finally:
            await client.aclose()


async def test_addresses_that_a_node_leaves_out_are_those_that_it_was_reached_by() -> None:
    client = Cluster(parse_url("redis+cluster://h:7000"), lambda url: connect(url, 1.0))
    client._learn(("h", 7000), [[0, 16382, [None, 7001, b"id", []], [b"", 7002, b"id"]], [16383, 16383, [b"b", 7003, b"id"]]])
    assert client._owners[0] == client._owners[16382] == ("h", 7001)
    assert client._owners[16383] == ("b", 7003)
    assert set(client._nodes) == {("h", 7000), ("h", 7001), ("h", 7002), ("b", 7003)}
    await client.aclose()

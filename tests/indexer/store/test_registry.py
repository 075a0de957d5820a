"""Pods that are registered for everybody, in a real Redis."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import msgspec
import pytest
from redis.exceptions import RedisError

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.engines.spec import EngineSpec
from indexer.errors import StoreError
from indexer.store.client.connection import connect
from indexer.store.keyspace import Keyspace
from indexer.store.records import Kind, decode_entry
from indexer.store.registry import RegisteredPods, Registry
from tests.redis_server import RedisServer

KEYS = Keyspace("kvi")
ONE = (EngineSpec("pod", "m", events="tcp://127.0.0.1:9"),)
OTHER = (EngineSpec("pod", "other", events="tcp://127.0.0.1:10"),)


@asynccontextmanager
async def registry_on(server: RedisServer, note: Callable[[RedisError, str], None] | None = None) -> AsyncIterator[Registry]:
    async with connect(server.url, 0.5) as client:
        yield Registry(client, KEYS, Settings(redis=server.url), note)


def registered(server: RedisServer) -> dict[str, tuple[EngineSpec, ...]]:
    client = server.client()
    return RegisteredPods().read(client.hgetall(KEYS.directory.pods).items(), client.hgetall(KEYS.directory.specs).items())


async def test_a_pod_is_registered_replaced_kept_and_forgotten(server: RedisServer) -> None:
    async with registry_on(server) as registry:
        assert await registry.register(ONE)
        assert registered(server) == {"pod": ONE}
        assert not await registry.register(OTHER)
        assert registered(server) == {"pod": OTHER}
        assert not await registry.register(ONE, keeps_old=True)
        assert registered(server) == {"pod": OTHER}
        assert await registry.unregister("pod")
        assert registered(server) == {}
        assert server.client().zscore(KEYS.directory.forgotten, "pod") is not None
        assert not await registry.unregister("pod")
        assert not await registry.register(ONE, keeps_old=True), "it stays forgotten"
        assert registered(server) == {}
        assert await registry.register(ONE)
        assert registered(server) == {"pod": ONE}
        assert server.client().zscore(KEYS.directory.forgotten, "pod") is None


async def test_a_stream_is_deleted_whatever_its_generation(server: RedisServer) -> None:
    keys, stream = KEYS.model("m"), StreamKey("m", "pod", 0)
    client = server.client()
    client.hset(keys.state(stream), mapping={"gen": 77, "fence": 5})
    client.hset(keys.parts(stream, 77)[0], "block", "value")
    client.zadd(keys.streams, {"0:pod": 1, "0:another": 1})

    async with registry_on(server) as registry:
        await registry.delete(stream)
        await registry.delete(stream)
    assert server.keys() == sorted([keys.streams.encode(), keys.log.encode()])
    assert client.zrange(keys.streams, 0, -1) == [b"0:another"]
    entries = [decode_entry(fields[b"e"]) for _, fields in client.xrange(keys.log)]
    assert [(entry.stream, entry.kind, entry.generation) for entry in entries] == [("0:pod", Kind.GONE, 77), ("0:pod", Kind.GONE, 0)]


async def test_what_redis_does_not_do_is_told_to_whoever_asks_and_noted(server: RedisServer) -> None:
    noted: list[RedisError] = []

    async def act(registry: Registry) -> None:
        for call in (lambda: registry.register(ONE), lambda: registry.unregister("pod"), lambda: registry.delete(StreamKey("m", "pod", 0))):
            with pytest.raises(StoreError, match="unreachable"):
                await call()

    server.kill()
    async with registry_on(server, lambda error, key: noted.append(error)) as registry:
        await act(registry)
    assert len(noted) == 3
    async with registry_on(server) as registry:
        await act(registry)


@pytest.mark.rule("R3")
def test_pods_that_cannot_be_read_are_passed_over_and_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    fields = [
        *((b"good", msgspec.json.encode(ONE)), (b"text", b"nonsense"), (b"other", b'[{"pod": "x", "surplus": 1}]'), (b"none", b"[]")),
        (b"\xff", b"{}"),
    ]
    pods = RegisteredPods()
    with caplog.at_level(logging.ERROR):
        assert [pods.read(fields) for _ in range(3)] == [{"good": ONE}] * 3
    assert sorted(record.__dict__["pod"] for record in caplog.records) == ["other", "text", "\ufffd"]


WITH_HTTP = (EngineSpec("pod", "m", events="tcp://127.0.0.1:9", http="http://127.0.0.1:8000"),)


def as_older_replicas_read(server: RedisServer) -> dict[str, tuple[EngineSpec, ...]]:
    """They refuse keys that they do not know, and know nothing of the hash `specs`."""
    for text in server.client().hgetall(KEYS.directory.pods).values():
        known = {"pod", "model", "events", "replay", "ranks", "rank", "topic", "counting", "offload_block_size"}
        assert [key for spec in msgspec.json.decode(text) for key in spec if key not in known] == []
    return RegisteredPods().read(server.client().hgetall(KEYS.directory.pods).items())


async def test_what_older_replicas_cannot_read_lies_where_they_do_not_look(server: RedisServer) -> None:
    async with registry_on(server) as registry:
        await registry.register(WITH_HTTP)
        assert (registered(server), as_older_replicas_read(server)) == ({"pod": WITH_HTTP}, {"pod": ONE})
        await registry.register(ONE)
        assert registered(server) == {"pod": ONE}
        assert not server.client().exists(KEYS.directory.specs)
        await registry.register(WITH_HTTP)
        await registry.unregister("pod")
        assert registered(server) == {}
        assert not server.client().exists(KEYS.directory.specs)


async def test_what_an_older_replica_replaced_or_forgot_counts_as_it_left_it(server: RedisServer) -> None:
    async with registry_on(server) as registry:
        await registry.register(WITH_HTTP)
        server.client().hset(KEYS.directory.pods, "pod", msgspec.json.encode(OTHER))
        assert registered(server) == {"pod": OTHER}
        server.client().hdel(KEYS.directory.pods, "pod")
        assert registered(server) == {}


@pytest.mark.parametrize("text", [b"", b"null", b'[{"pod": "pod", "model": "m", "events": "tcp://127.0.0.1:9", "newer": 1}]', b'[{"pod": 1}]'])
async def test_what_a_newer_replica_adds_and_cannot_be_read_costs_nothing_else(server: RedisServer, text: bytes) -> None:
    async with registry_on(server) as registry:
        await registry.register(ONE)
        server.client().hset(KEYS.directory.specs, "pod", text)
        assert registered(server) == {"pod": ONE}


async def test_an_api_base_in_redis_that_is_none_is_passed_over(server: RedisServer) -> None:
    async with registry_on(server) as registry:
        await registry.register(ONE)
        specs = msgspec.json.encode([msgspec.structs.replace(ONE[0], http="http://user@127.0.0.1/?x")])
        server.client().hset(KEYS.directory.specs, "pod", specs)
        assert registered(server) == {"pod": ONE}

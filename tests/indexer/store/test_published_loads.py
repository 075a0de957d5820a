"""How busy pods are reaches scorers by a real Redis, and is forgotten by it."""

import asyncio
import time
from contextlib import aclosing

import msgspec
import pytest
from prometheus_client import CollectorRegistry

from indexer.core.names import StreamKey
from indexer.engines.load import Load
from indexer.store.keyspace import Keyspace
from indexer.store.published_loads import TTL_MS
from indexer.store.reader import Reader
from scorer_api.following.follower import Follower
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics
from tests.owner import owner_of, settings_of
from tests.redis_server import RedisServer
from tests.waiting import wait_until_async

MODEL = "my/{odd} model:"
POD = "10.0.0.7:8000"
BUSY, IDLE = Load(7, 30, 0.95, 812.5, 4096.0, 471_258.0), Load(0, 0)


def key_of(pod: str) -> str:
    return Keyspace("kvi").model(MODEL).load(pod)


async def told(server: RedisServer, load: Load) -> None:
    """Wait until Redis has it."""
    words = msgspec.msgpack.encode(msgspec.structs.astuple(load))
    await wait_until_async(lambda: (server.client().get(key_of(POD)) or b"").endswith(b" " + words))


async def test_what_is_told_is_read_with_its_age(server: RedisServer) -> None:
    settings = settings_of(server)
    async with owner_of(settings) as owner, aclosing(Reader(settings)) as reader:
        owner.store.loads.note(MODEL, POD, BUSY, time.monotonic() - 4)
        owner.store.loads.note(MODEL, "b {x}", IDLE, time.monotonic())
        await wait_until_async(lambda: server.client().exists(key_of(POD), key_of("b {x}")) == 2)
        now_ms, loads = await reader.loads(MODEL, ["nobody", POD, "b {x}"])
        assert {pod: load for pod, (load, _) in loads.items()} == {POD: BUSY, "b {x}": IDLE}
        assert 4_000 <= now_ms - loads[POD][1] < 12_000
        assert 0 <= now_ms - loads["b {x}"][1] < 8_000
        assert (await reader.loads("another", [POD]))[1] == {}
        assert await reader.loads(MODEL, []) == (0, {})
        assert 0 < server.client().pttl(key_of(POD)) <= TTL_MS


async def test_a_newer_one_takes_its_place(server: RedisServer) -> None:
    settings = settings_of(server)
    async with owner_of(settings) as owner, aclosing(Reader(settings)) as reader:
        for load in (BUSY, IDLE):
            owner.store.loads.note(MODEL, POD, load, time.monotonic())
            await told(server, load)
            assert (await reader.loads(MODEL, [POD]))[1][POD][0] == load


async def test_many_pods_are_read_in_several_calls(server: RedisServer) -> None:
    settings = settings_of(server)
    pods = [f"pod-{number}" for number in range(450)]
    async with owner_of(settings) as owner, aclosing(Reader(settings)) as reader:
        for number, pod in enumerate(pods):
            owner.store.loads.note(MODEL, pod, Load(number, 0), time.monotonic())
        await wait_until_async(lambda: server.client().exists(*map(key_of, pods)) == 450)
        _, loads = await reader.loads(MODEL, pods)
        assert [loads[pod][0].running for pod in pods] == list(range(450))


@pytest.mark.parametrize(
    "value", [b"", b"x", b"12 ", b"now " + msgspec.msgpack.encode((1, 2, None, None, None)), b"12 " + msgspec.msgpack.encode((1, "2")), b"\xff"]
)
async def test_what_somebody_else_wrote_there_is_passed_over(server: RedisServer, value: bytes) -> None:
    async with aclosing(Reader(settings_of(server))) as reader:
        server.client().set(key_of(POD), value)
        assert (await reader.loads(MODEL, [POD]))[1] == {}


async def test_another_version_may_say_more_or_less(server: RedisServer) -> None:
    async with aclosing(Reader(settings_of(server))) as reader:
        server.client().set(key_of(POD), b"12 " + msgspec.msgpack.encode((*msgspec.structs.astuple(Load(1, 2)), "more")))
        _, loads = await reader.loads(MODEL, [POD])
        assert loads[POD][0] == Load(1, 2)
        server.client().set(key_of(POD), b"12 " + msgspec.msgpack.encode((1, 2)))
        assert (await reader.loads(MODEL, [POD]))[1][POD][0] == Load(1, 2)


async def test_a_scorer_follows_the_loads_of_its_pods(server: RedisServer) -> None:
    settings = settings_of(server)
    view = View(settings, "redis")
    async with owner_of(settings) as owner, Follower(settings, view, FollowerMetrics(CollectorRegistry(), view)):
        await owner.own(StreamKey(MODEL, POD, 0))
        for load in (BUSY, IDLE):
            began_s = time.monotonic()
            owner.store.loads.note(MODEL, POD, load, began_s)
            await wait_until_async(lambda load=load: (view.loads.get(MODEL, POD) or (None,))[0] == load)
            found = view.loads.get(MODEL, POD)
            assert found is not None
            assert abs(found[1] - began_s) < 8


async def test_loads_are_lost_with_a_redis_that_is_away_and_told_again_when_it_is_back(server: RedisServer) -> None:
    settings = settings_of(server)
    async with owner_of(settings) as owner:
        await owner.own(StreamKey(MODEL, POD, 0))
        server.kill()
        owner.store.loads.note(MODEL, POD, BUSY, time.monotonic())
        await asyncio.sleep(0.2)
        server.start(with_data=False)
        client = server.client()

        def is_told() -> bool:
            owner.store.loads.note(MODEL, POD, IDLE, time.monotonic())
            return bool(client.exists(key_of(POD)))

        await wait_until_async(is_told)

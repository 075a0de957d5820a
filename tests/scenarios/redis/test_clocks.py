"""Clocks are set by an hour while everything runs: nobody trusts what no owner stands for, and nothing looks younger or older than it is."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from indexer.config.settings import Settings
from indexer.core.names import StreamKey, Trust
from indexer.engines.load import Load
from tests.command import environment
from tests.engine import Engine, stored
from tests.events import stored as stored_event
from tests.owner import owner_of
from tests.owner import settings_of as owner_settings
from tests.redis_server import RedisServer
from tests.running import Command
from tests.scorer_api.following.test_follower import scorer_of
from tests.settings import QUICK, words_of
from tests.shifted_clock import COMPILER, ShiftedClock
from tests.waiting import wait_until, wait_until_async

HOUR_S = 3600
JUMPS = [HOUR_S, -HOUR_S]
LEASE_S = 1.0
A = StreamKey("m", "pod", 0)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="there is no C compiler for a clock that can be set")


@pytest.fixture
def clock(tmp_path: Path) -> ShiftedClock:
    return ShiftedClock(tmp_path)


@pytest.fixture
def redis(clock: ShiftedClock) -> Iterator[RedisServer]:
    server = RedisServer()
    server.environment = clock.environment
    with server:
        yield server


def settings_of(server: RedisServer) -> Settings:
    return owner_settings(server, lease_s=LEASE_S)


async def test_the_clock_is_redis_own(redis: RedisServer, clock: ShiftedClock) -> None:
    for jump_s in (0, *JUMPS):
        clock.shift(jump_s)
        assert abs(redis.client().time()[0] - time.time() - jump_s) < 30


@pytest.mark.parametrize("jump_s", JUMPS)
async def test_what_an_owner_stands_for_is_live_again_and_no_older_than_it_is(redis: RedisServer, clock: ShiftedClock, jump_s: int) -> None:
    async with owner_of(settings_of(redis)) as owner, scorer_of(settings_of(redis)) as scorer:
        stream = await owner.own(A)
        stream.apply(stored_event([1, 2, 3], [1, 2, 3]))
        await scorer.holds(A, [1, 2, 3], 3)
        clock.shift(jump_s)
        ended_s = time.monotonic() + 5
        while time.monotonic() < ended_s:
            assert scorer.trust(A) in (Trust.LIVE, Trust.STALE, None)
            assert scorer.view.age_s < 60
            await asyncio.sleep(0.05)
        await scorer.holds(A, [1, 2, 3], 3)
        stream.apply(stored_event([4], [4], parent=3))
        await scorer.holds(A, [1, 2, 3, 4], 4)
        await wait_until_async(lambda: scorer.view.age_s < 3, what="signs of the owner")


@pytest.mark.parametrize("dies_first", [True, False])
@pytest.mark.parametrize("jump_s", JUMPS)
async def test_what_nobody_stands_for_is_not_live(redis: RedisServer, clock: ShiftedClock, jump_s: int, dies_first: bool) -> None:
    async with owner_of(settings_of(redis)) as owner, scorer_of(settings_of(redis)) as scorer:
        stream = await owner.own(A)
        stream.apply(stored_event([1, 2, 3], [1, 2, 3]))
        await scorer.holds(A, [1, 2, 3], 3)
        if dies_first:
            owner.is_keeping = False
            await asyncio.sleep(0.3)
            clock.shift(jump_s)
        else:
            clock.shift(jump_s)
            await owner.keep()  # by what it takes for Redis's time
            owner.is_keeping = False
        died_s = time.monotonic()
        await asyncio.sleep(LEASE_S + 1)
        while (since_s := time.monotonic() - died_s) < 6:
            assert scorer.trust(A) is not Trust.LIVE
            assert since_s - 2 < scorer.view.age_s < since_s + 60
            await asyncio.sleep(0.05)
        async with scorer_of(settings_of(redis)) as late:
            await asyncio.sleep(2 * LEASE_S)
            assert late.trust(A) is not Trust.LIVE


@pytest.mark.parametrize("jump_s", JUMPS)
async def test_a_load_is_no_younger_than_it_is(redis: RedisServer, clock: ShiftedClock, jump_s: int) -> None:
    async with owner_of(settings_of(redis)) as owner, scorer_of(settings_of(redis)) as scorer:
        await owner.own(A)
        await scorer.holds(A, [1], 0)
        told_s = time.monotonic()
        owner.store.loads.note("m", "pod", Load(1, 2), told_s)
        await wait_until_async(lambda: scorer.view.loads.get("m", "pod") is not None)
        clock.shift(jump_s)
        ended_s = time.monotonic() + 4
        while time.monotonic() < ended_s:
            known = scorer.view.loads.get("m", "pod")
            assert known is None or told_s - 1 < known[1] < told_s + 3
            await asyncio.sleep(0.05)
        again_s = time.monotonic()
        owner.store.loads.note("m", "pod", Load(3, 4), again_s)
        await wait_until_async(lambda: (known := scorer.view.loads.get("m", "pod")) is not None and known[0] == Load(3, 4))
        known = scorer.view.loads.get("m", "pod")
        assert known is not None
        assert again_s - 3 < known[1] <= time.monotonic()


@pytest.mark.parametrize("jump_s", JUMPS)
@pytest.mark.parametrize("whose", ["ingest", "api"])
def test_an_indexers_or_a_scorers_own_clock_decides_nothing(tmp_path: Path, clock: ShiftedClock, whose: str, jump_s: int) -> None:
    with RedisServer() as redis, Engine() as engine:
        flags = words_of({**QUICK, "port": "0", "redis": redis.url})
        roles = {}
        for role, words in (("ingest", [*flags, "--engine", engine.spec()]), ("api", flags)):
            env = environment(**(clock.environment if role == whose else {}))
            roles[role] = Command(role, *words, env=env, is_fresh=True)
        with roles["ingest"] as indexer, roles["api"] as scorer:
            indexer.wait_url()
            scorer.wait_url()
            number = engine.publish(stored([1, 2], range(8), block_size=4))
            wait_until(lambda: any(pod["streams"] for pod in scorer.http.get(f"{scorer.url}/v1/pods").json()["pods"]), what="the stream to be known")
            scorer.wait_for(sequence=number, trust="live")
            clock.shift(jump_s)
            ended_s = time.monotonic() + 5
            while time.monotonic() < ended_s:
                answer = scorer.score(range(9))
                assert (answer["pods"][0]["matched_tokens"], answer["pods"][0]["trust"]) == (8, "live")
                assert answer["view"]["age_s"] < 10
                assert 0 <= scorer.stream()["last_batch_age_s"] < 60
                time.sleep(0.1)
            number = engine.publish(stored([3], range(8, 12), parent=2, block_size=4))
            wait_until(lambda: scorer.matched(range(13)) == 12, what="what was published since")
            scorer.wait_for(sequence=number)
            indexer.kill()
            wait_until(lambda: scorer.score(range(13))["pods"][0]["trust"] == "stale", 30, "the end of the trust")
            age_s = scorer.score([1])["view"]["age_s"]
            assert 0 < age_s < 30

"""Reading many logs with few connections, from a real Redis."""

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import RedisError

from indexer.errors import StoreError
from indexer.store.client.connection import answer_of
from indexer.store.log_reads import READS_MAX, Entries, LogReads, entries_of
from tests.redis_server import RedisServer
from tests.waiting import wait_until_async


class Logs:
    """Logs of a Redis, read by `reads`. `asked`: how many logs each XREAD named; `waiting`: how many wait now, `most` at once so far."""

    def __init__(self, url: str) -> None:
        self.client = redis.asyncio.Redis.from_url(url, socket_timeout=None)
        self.reads = LogReads(self._read)
        self.asked: list[int] = []
        self.waiting = self.most = 0

    async def _read(self, logs: Mapping[str, str], count: int, wait_ms: int | None) -> dict[str, Entries]:
        self.asked.append(len(logs))
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        try:
            return entries_of(await answer_of(self.client.xread(dict[Any, Any](logs), count=count, block=wait_ms)))
        except RedisError as error:
            raise StoreError("refusing" if "WRONGTYPE" in str(error) else "unreachable") from error
        finally:
            self.waiting -= 1

    async def next(self, log: str, wait_ms: int = 20_000, after: str = "0-0", count: int = 100) -> list[bytes]:
        return [(fields or {})[b"e"] for _, fields in await self.reads.entries(log, after, count, wait_ms)]

    async def add(self, log: str, text: str) -> None:
        await self.client.xadd(log, {"e": text})


@asynccontextmanager
async def logs_of(server: RedisServer) -> AsyncIterator[Logs]:
    logs = Logs(server.url)
    try:
        yield logs
    finally:
        await logs.reads.aclose()
        await logs.client.aclose()


async def test_many_logs_are_waited_for_with_one_read_and_each_gets_its_own_entries(server: RedisServer) -> None:
    async with logs_of(server) as logs:
        waiting = [asyncio.create_task(logs.next(f"log {number}")) for number in range(300)]
        await wait_until_async(lambda: logs.asked == [300])
        for number in (7, 250):
            await logs.add(f"log {number}", f"text {number}")
        assert await waiting[7] == [b"text 7"]
        assert await waiting[250] == [b"text 250"]
        assert not any(task.done() for number, task in enumerate(waiting) if number not in (7, 250))
        await logs.add("log 0", "text 0")
        assert await waiting[0] == [b"text 0"]
        assert logs.most == 1
        for task in waiting:
            task.cancel()


async def test_who_asks_later_does_not_wait_for_the_read_that_is_under_way(server: RedisServer) -> None:
    async with logs_of(server) as logs:
        idle = asyncio.create_task(logs.next("idle"))
        await wait_until_async(lambda: logs.waiting == 1)
        await logs.add("busy", "one")
        assert await logs.next("busy") == [b"one"]
        assert not idle.done()
        idle.cancel()


async def test_beyond_so_many_reads_who_asks_joins_the_next_that_ends(server: RedisServer) -> None:
    async with logs_of(server) as logs:
        waiting = []
        for number in range(READS_MAX + 20):
            waiting.append(asyncio.create_task(logs.next(f"log {number}", wait_ms=1_000)))
            await asyncio.sleep(0.005)
        await logs.add(f"log {READS_MAX + 5}", "late")
        assert await waiting[READS_MAX + 5] == [b"late"]
        assert logs.most <= READS_MAX
        assert await asyncio.gather(*waiting) == [[b"late"] if number == READS_MAX + 5 else [] for number in range(READS_MAX + 20)]


async def test_a_wait_ends_after_its_time_without_entries(server: RedisServer) -> None:
    async with logs_of(server) as logs:
        long = asyncio.create_task(logs.next("other"))
        began_s = time.monotonic()
        assert await logs.next("log", wait_ms=100) == []
        assert 0.09 < time.monotonic() - began_s < 5
        assert not long.done()
        assert await logs.next("log", wait_ms=0) == []
        long.cancel()


async def test_entries_after_one_are_read_and_no_more_than_so_many(server: RedisServer) -> None:
    async with logs_of(server) as logs:
        first = await logs.client.xadd("log", {"e": "0"})
        for number in range(1, 5):
            await logs.add("log", str(number))
        assert await logs.next("log", after=first.decode(), count=3) == [b"1", b"2", b"3"]
        assert await logs.next("log", after=first.decode(), count=3, wait_ms=0) == [b"1", b"2", b"3"]


async def test_a_log_that_cannot_be_read_fails_alone(server: RedisServer) -> None:
    async with logs_of(server) as logs:
        await logs.client.set("wrong", "no log")
        await logs.add("right", "text")
        right, wrong = asyncio.create_task(logs.next("right")), asyncio.create_task(logs.next("wrong"))
        assert await right == [b"text"]
        with pytest.raises(StoreError) as caught:
            await wrong
        assert caught.value.failure == "refusing"


async def test_when_redis_goes_away_all_who_wait_are_told(server: RedisServer) -> None:
    async with logs_of(server) as logs:
        waiting = [asyncio.create_task(logs.next(f"log {number}")) for number in range(5)]
        await wait_until_async(lambda: logs.waiting == 1)
        server.stop()
        outcomes = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 20)
        assert [getattr(outcome, "failure", None) for outcome in outcomes] == ["unreachable"] * 5


async def test_one_who_waits_no_longer_leaves_the_others(server: RedisServer) -> None:
    async with logs_of(server) as logs:
        one, other = asyncio.create_task(logs.next("one")), asyncio.create_task(logs.next("other"))
        await wait_until_async(lambda: logs.waiting == 1)
        one.cancel()
        await asyncio.gather(one, return_exceptions=True)
        await logs.add("one", "nobody waits for it")
        await logs.add("other", "text")
        assert await other == [b"text"]


async def test_closing_ends_all_waits(server: RedisServer) -> None:
    async with logs_of(server) as logs:
        waiting = asyncio.create_task(logs.next("log"))
        await wait_until_async(lambda: server.client().info("clients")["blocked_clients"] == 1)
        # Up to Python 3.11 the library swallows a cancellation that comes as sending ends, one turn of the loop later: the wait would only end late.
        await asyncio.sleep(0.05)
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_an_error_of_ours_reaches_who_waits() -> None:
    async def read(logs: Mapping[str, str], count: int, wait_ms: int | None) -> dict[str, Entries]:
        raise ValueError("unexpected")

    reads = LogReads(read)
    outcomes = await asyncio.gather(reads.entries("one", "0-0", 1, 1_000), reads.entries("other", "0-0", 1, 1_000), return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["unexpected"] * 2
    await reads.aclose()

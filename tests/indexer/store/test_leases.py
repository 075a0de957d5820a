"""Leases of single streams, in a real Redis."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.names import StreamKey, Trust
from indexer.core.stream_state import StreamState
from indexer.errors import StoreError
from indexer.metrics import IndexerMetrics
from indexer.store.keyspace import Keyspace
from indexer.store.leases import Claim, ClaimMode, Leases
from indexer.store.records import Head, encode_head
from indexer.store.session import StoreSession
from tests.redis_server import RedisServer
from tests.waiting import wait_until_async

KEY, OTHER = StreamKey("m", "10.0.0.7:8000", 0), StreamKey("other", "10.0.0.8:8000", 3)
LEASE = Keyspace("kvi").model("m").lease(KEY)
STATE = Keyspace("kvi").model("m").state(KEY)


@asynccontextmanager
async def leases_of(server: RedisServer, member: str, lease_s: float = 30.0) -> AsyncIterator[Leases]:
    settings = Settings(redis=server.url, redis_timeout_s=0.5, lease_s=lease_s, pod_expiry_s=max(60.0, 4 * lease_s))
    session = StoreSession(settings, IndexerMetrics(CollectorRegistry()), member)
    async with session.client:
        yield Leases(session)


async def claimed(leases: Leases, mode: ClaimMode = "free") -> Claim:
    claim = await leases.claim(KEY, mode)
    assert isinstance(claim, Claim), claim
    return claim


async def test_one_has_it_until_it_is_given_back(server: RedisServer) -> None:
    async with leases_of(server, "one") as one, leases_of(server, "two") as two:
        assert (await claimed(one)).generation is None, "there is no state yet"
        assert await two.claim(KEY, "free") == "one"
        await two.release(KEY)
        assert await two.owners([KEY]) == {KEY: "one"}, "who does not have it gives nothing back"
        await one.release(KEY)
        assert await one.owners([KEY, OTHER]) == {KEY: None, OTHER: None}
        await claimed(two)
        assert await one.owners([KEY, OTHER]) == {KEY: "two", OTHER: None}


async def test_who_wants_it_is_noted_until_it_is_claimed_again(server: RedisServer) -> None:
    async with leases_of(server, "one") as one, leases_of(server, "two") as two:
        await claimed(one)
        assert await two.claim(KEY, "want") == "one"
        assert server.client().hgetall(LEASE) == {b"owner": b"one", b"want": b"two"}
        await claimed(one)
        assert server.client().hgetall(LEASE) == {b"owner": b"one"}


async def test_a_claim_by_force_gets_the_state_and_replaces_the_fence(server: RedisServer) -> None:
    client = server.client()
    head = Head(41, b"fingerprint", True, Trust.LIVE, "copies", "", StreamState("m", "").traits())
    client.hset(STATE, mapping={"gen": 7, "fence": 11, "number": 5, "head": encode_head(head), "lengths": "1,2,3"})
    async with leases_of(server, "one") as one, leases_of(server, "two") as two:
        first = await claimed(one)
        assert first == Claim(first.fence, 7, 11, 5, head, (1, 2, 3))
        assert int(client.hget(STATE, "fence") or 0) == first.fence, "who had the former fence cannot write"
        forced = await claimed(two, "force")
        assert forced == Claim(forced.fence, 7, first.fence, 5, head, (1, 2, 3))
        assert await one.owners([KEY]) == {KEY: "two"}


async def test_a_lease_runs_out_unless_it_is_extended(server: RedisServer) -> None:
    async with leases_of(server, "one", lease_s=1.0) as one, leases_of(server, "two") as two:
        await claimed(one)
        extending = asyncio.create_task(one.extend(KEY))
        await asyncio.sleep(2.5)
        assert await two.claim(KEY, "free") == "one"
        extending.cancel()
        await wait_until_async(lambda: not server.client().exists(LEASE))
        await claimed(two)


async def test_a_lease_that_a_clock_set_back_would_make_last_for_years_is_free(server: RedisServer) -> None:
    async with leases_of(server, "one") as one, leases_of(server, "two") as two:
        await claimed(one)
        server.client().pexpire(LEASE, 30_000 + 240_000 + 60_000)
        await claimed(two)


async def test_what_redis_does_not_do(server: RedisServer) -> None:
    async with leases_of(server, "one") as one:
        await claimed(one)
        server.kill()
        with pytest.raises(StoreError, match="unreachable"):
            await one.claim(KEY, "free")
        with pytest.raises(StoreError, match="unreachable"):
            await one.owners([KEY])
        await one.release(KEY)  # says so in the log alone

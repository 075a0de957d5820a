"""Redis becomes another server, with a clock and a log of its own: what owners say to it and what scorers take from it. Real servers, two of them."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from indexer.core.names import StreamKey, Trust
from indexer.engines.spec import EngineSpec
from indexer.store.keyspace import Keyspace, stream_id
from indexer.store.registry import RegisteredPods
from tests.events import removed, stored
from tests.moving import Moving
from tests.owner import Owner, owner_of, settings_of
from tests.redis_server import RedisServer
from tests.scorer_api.following.test_follower import Scorer, scorer_of
from tests.waiting import wait_until_async

MODEL = "m"
A, B = StreamKey(MODEL, "a", 0), StreamKey(MODEL, "b", 0)
LEASE_MS = 1000
# Far beyond any lease, and in both directions.
SKEWS_MS = [-60_000, 60_000]


@pytest.fixture
def moving() -> Iterator[Moving]:
    with Moving() as both:
        yield both


def client(user: Owner | Scorer) -> Any:
    return user.store._session.client if isinstance(user, Owner) else user.follower.reader.client


def trusted_until_ms(moving: Moving, stream: StreamKey) -> float:
    found = moving.second.client().zscore(Keyspace("kvi").model(stream.model).streams, stream_id(stream))
    return 0.0 if found is None else float(found)


@pytest.mark.parametrize("skew_ms", SKEWS_MS)
async def test_owners_confirm_by_the_clock_of_the_server_that_is_redis_now(moving: Moving, monkeypatch: pytest.MonkeyPatch, skew_ms: int) -> None:
    """Neither what was sealed for the former server, nor the first round after the move, says a word by the former's clock."""
    moving.skew(skew_ms, monkeypatch)
    said: list[tuple[float, int]] = []

    async with owner_of(settings_of(moving)) as owner:
        moving.begin(client(owner))
        stream = await owner.own(A)
        stream.apply(stored([1], [1]))
        await stream.flushed()
        moving.promote()
        # From the move on everything that the second server holds is looked at, as often as it goes.
        inherited = trusted_until_ms(moving, A)
        stream.apply(stored(range(2, 1000), range(2, 1000), 1))
        assert owner.store._flusher.streams[A].sealed, "it is sealed, and says until when it is trusted"
        moving.move(client(owner))
        for content in range(1000, 1060):
            stream.apply(stored([content], [content], content - 1))
            said.append((trusted_until_ms(moving, A), moving.now_ms(moving.second)))
            await asyncio.sleep(0.02)
        await stream.flushed()
        own = [(until_ms, now_ms) for until_ms, now_ms in said if until_ms != inherited]
        assert own, "it was confirmed anew"
        for until_ms, now_ms in own:
            # By the former's clock it would be a minute off. On a busy machine a confirmation is seconds old when it is looked at.
            assert -abs(skew_ms) / 2 < until_ms - now_ms < LEASE_MS + 500, (until_ms, now_ms)


async def test_what_was_confirmed_by_another_clock_does_not_count(moving: Moving, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second server's clock is a minute behind: a dead owner's last word would count for a minute too long."""
    moving.skew(-60_000, monkeypatch)

    async with owner_of(settings_of(moving)) as owner, scorer_of(settings_of(moving)) as scorer:
        moving.begin(client(owner), client(scorer))
        stream = await owner.own(A)
        stream.apply(stored([1, 2], [1, 2]))
        await scorer.holds(A, [1, 2], 2)
        owner.is_keeping = False
        await scorer.holds(A, [1, 2], 2, Trust.STALE)
        moving.promote()
        assert trusted_until_ms(moving, A) > moving.now_ms(moving.second), "by the second's clock it is trusted"
        moving.move(client(scorer))
        surveys = moving.second.commands()["hmget"]
        await wait_until_async(lambda: moving.second.commands()["hmget"] > surveys + 3)
        assert (scorer.matched(A, [1, 2]), scorer.trust(A)) == (2, Trust.STALE)
        moving.move(client(owner))
        owner.is_keeping = True
        await scorer.holds(A, [1, 2], 2)


async def test_a_log_that_went_its_own_way_is_not_read_on_from_the_place_in_the_former(moving: Moving) -> None:
    """One owner moved before the scorer, another after it: what the first wrote meanwhile lies before the scorer's offset, and is not lost on it."""

    settings = settings_of(moving)
    async with owner_of(settings, "early") as early, owner_of(settings, "late") as late, scorer_of(settings) as scorer:
        moving.begin(client(early), client(late), client(scorer))
        first, second = await early.own(A), await late.own(B)
        first.apply(stored([1, 2], [1, 2]))
        second.apply(stored([1], [1]))
        await scorer.holds(A, [1, 2], 2)
        await scorer.holds(B, [1, 2], 1)
        moving.promote()
        moving.move(client(early))
        first.apply(removed([2]), stored([3], [3], 1))
        await first.flushed()
        second.apply(stored([2], [2], 1))
        await scorer.holds(B, [1, 2], 2)
        moving.move(client(scorer))
        await scorer.holds(A, [1, 3], 2)
        assert scorer.matched(A, [1, 2]) == 1
        moving.move(client(late))
        await scorer.holds(B, [1, 2], 2)


async def test_a_load_that_began_at_one_server_does_not_end_at_another(moving: Moving) -> None:
    settings = settings_of(moving)
    async with owner_of(settings) as owner:
        moving.begin(client(owner))
        stream = await owner.own(A)
        stream.apply(stored([1, 2], [1, 2]))
        await stream.flushed()
        moving.promote()
        async with scorer_of(settings) as scorer:
            moving.begin(client(scorer))
            reader = scorer.follower.reader
            blocks = reader.blocks

            async def read_and_move(name: str, cursor: int, count: int) -> Any:
                found = await blocks(name, cursor, count)
                if client(scorer).server_epoch == 0:
                    moving.move(client(owner), client(scorer))
                    stream.apply(removed([2]))
                return found

            reader.blocks = read_and_move  # type: ignore[method-assign]
            await scorer.holds(A, [1, 2], 1)
            assert scorer.loads("again") > 0


SPECS = (EngineSpec("pod", MODEL, events="tcp://127.0.0.1:9"),)
OTHERS = (EngineSpec("pod", MODEL, events="tcp://127.0.0.1:10"),)


def registered(server: RedisServer) -> dict[str, tuple[EngineSpec, ...]]:
    names, asking = Keyspace("kvi").directory, server.client()
    return RegisteredPods().read(asking.hgetall(names.pods).items(), asking.hgetall(names.specs).items())


def is_forgotten(server: RedisServer) -> bool:
    return server.client().zscore(Keyspace("kvi").directory.forgotten, "pod") is not None


async def test_a_registration_that_a_failover_lost_is_made_again_by_who_made_it(moving: Moving) -> None:
    async with scorer_of(settings_of(moving)) as scorer:
        moving.begin(client(scorer))
        await wait_until_async(lambda: scorer.follower.is_empty)
        moving.promote()
        assert await scorer.pods.register(SPECS)
        assert registered(moving.second) == {}
        moving.move(client(scorer))
        await wait_until_async(lambda: registered(moving.second) == {"pod": SPECS})
        moving.second.client().hdel(Keyspace("kvi").directory.pods, "pod")
        await scorer.follower.look()
        assert registered(moving.second) == {}, "once is enough"


async def test_a_deletion_that_a_failover_lost_is_made_again_by_who_made_it(moving: Moving) -> None:
    """With the streams that were deleted."""
    stream = StreamKey(MODEL, "pod", 0)

    async with owner_of(settings_of(moving)) as owner, scorer_of(settings_of(moving)) as scorer:
        moving.begin(client(owner), client(scorer))
        owned = await owner.own(stream)
        owned.apply(stored([1], [1]))
        await scorer.pods.register(SPECS)
        await scorer.holds(stream, [1], 1)
        owner.is_keeping = False
        moving.promote()
        owner.store.disown(stream)
        assert await scorer.pods.forget("pod")
        state = Keyspace("kvi").model(MODEL).state(stream)
        assert registered(moving.second) == {"pod": SPECS}
        assert moving.second.client().exists(state)
        moving.move(client(scorer))
        await wait_until_async(lambda: registered(moving.second) == {})
        assert is_forgotten(moving.second)
        await wait_until_async(lambda: not moving.second.client().exists(state))
        await wait_until_async(lambda: scorer.trust(stream) is None)


async def test_a_pod_that_was_registered_since_it_was_deleted_stays(moving: Moving) -> None:
    """By somebody else, who knows of the new server already. Whether by the same specs does not matter."""

    async with scorer_of(settings_of(moving)) as scorer, scorer_of(settings_of(moving)) as other:
        moving.begin(client(scorer), client(other))
        await scorer.pods.register(SPECS)
        moving.promote()
        assert await scorer.pods.forget("pod")
        moving.move(client(other))
        await other.pods.register(SPECS)
        moving.move(client(scorer))
        await scorer.follower.look()
        assert registered(moving.second) == {"pod": SPECS}
        assert not is_forgotten(moving.second)


async def test_a_pod_that_was_replaced_or_deleted_since_it_was_registered_stays_so(moving: Moving) -> None:
    async with scorer_of(settings_of(moving)) as scorer, scorer_of(settings_of(moving)) as other:
        moving.begin(client(scorer), client(other))
        await scorer.pods.register(SPECS)
        await other.pods.register(OTHERS)
        moving.promote()
        moving.move(client(scorer))
        await scorer.follower.look()
        assert registered(moving.second) == {"pod": OTHERS}
        moving.move(client(other))
        assert await other.pods.forget("pod")
        await scorer.follower.look()
        assert registered(moving.second) == {}


async def test_a_move_counts_as_an_outage(moving: Moving) -> None:
    """Leases may be gone that others have not had the time to renew."""

    async with owner_of(settings_of(moving)) as owner:
        moving.begin(client(owner))
        stream = await owner.own(A)
        await stream.flushed()
        owner.is_keeping = False
        moving.promote()
        moving.move(client(owner))
        now_s = time.monotonic()
        await owner.keep()
        assert owner.store.outage_ended_s() >= now_s

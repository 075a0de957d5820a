"""A scorer follows all shards of its models, and finds in Redis how many there are."""

import time

from indexer.core.names import StreamKey, Trust
from indexer.engines.load import Load
from indexer.store.condition import RedisCondition
from indexer.store.inspection import inspect
from indexer.store.keyspace import Keyspace
from scorer_api.doctor.checks.redis import check_redis
from tests.events import offloaded, removed, stored
from tests.owner import Owner, owner_of, settings_of
from tests.redis_server import RedisServer
from tests.scorer_api.following.test_follower import Scorer, scorer_of
from tests.waiting import wait_until_async

MODEL, SHARDS = "org/model", 3
PODS = ("pod-0", "pod-1", "10.0.0.7:8000", "b", "c")
STREAMS = [StreamKey(MODEL, pod, rank) for pod in PODS for rank in range(2)]


async def write(owner: Owner) -> None:
    """Stream number n holds the first n + 1 of ten blocks, every third one also a block on the CPU behind them."""
    for number, key in enumerate(STREAMS):
        stream = await owner.own(key)
        stream.apply(stored(range(1, 12), range(1, 12)), removed(range(number + 2, 12)))
        if number % 3 == 0:
            stream.apply(offloaded([number + 2]))
        await stream.flushed()


def answers(scorer: Scorer) -> list[tuple[int | None, Trust | None]]:
    return [(scorer.matched(key, list(range(1, 12))), scorer.trust(key)) for key in STREAMS]


# Worked out by hand: n + 1 blocks on the gpu, and one more on the cpu for 0, 3, 6 and 9.
EXPECTED = [(2, Trust.LIVE)] + [(number + 1 + (number % 3 == 0), Trust.LIVE) for number in range(1, 10)]


async def test_what_is_written_to_shards_is_answered_as_without_them(server: RedisServer) -> None:
    """By a scorer that was there before, and by one that comes late; neither is told how many shards there are."""
    sharded, whole = settings_of(server, shards=SHARDS), settings_of(server, namespace="whole")
    async with owner_of(sharded) as owner, owner_of(whole) as other, scorer_of(settings_of(server)) as early, scorer_of(whole) as reference:
        await write(owner)
        await write(other)
        async with scorer_of(settings_of(server)) as late:
            for scorer in (reference, early, late):
                await wait_until_async(lambda scorer=scorer: answers(scorer) == EXPECTED, what=lambda scorer=scorer: str(answers(scorer)))  # type: ignore[misc]
            assert late.follower.is_settled
            seen = await inspect(server.url, "kvi", 1.0)
            assert [(model.model, model.streams, model.unowned) for model in seen.models] == [(MODEL, len(STREAMS), [])]
            (well,) = check_redis(RedisCondition(version="7.0.0", members=1, models=seen.models, shards=seen.shards), "kvi")
            assert "10 streams, 3 shards a model" in well.detail
            owner.store.loads.note(MODEL, "pod-1", Load(3, 4), time.monotonic())
            await wait_until_async(lambda: late.view.loads.get(MODEL, "pod-1") is not None)
            await owner.store.registry.delete(STREAMS[3])
            await wait_until_async(lambda: late.trust(STREAMS[3]) is None and early.trust(STREAMS[3]) is None)
    tags = {key.split(b"{")[1].split(b"}")[0] for key in server.client().keys("kvi:2:*:state:*")}
    keyspace = Keyspace("kvi", SHARDS)
    assert tags == {keyspace.of(key).prefix.split("{")[1].split("}")[0].encode() for key in STREAMS}
    assert len(tags) == SHARDS


async def test_a_shard_without_a_stream_does_not_keep_a_scorer_from_being_settled(server: RedisServer) -> None:
    settings = settings_of(server, shards=16)
    async with owner_of(settings) as owner:
        stream = await owner.own(STREAMS[0])
        stream.apply(stored([1], [1]))
        await stream.flushed()
        async with scorer_of(settings_of(server)) as scorer:
            await scorer.holds(STREAMS[0], [1], 1)
            await wait_until_async(lambda: scorer.follower.is_settled)


async def test_a_scorer_follows_another_number_of_shards(server: RedisServer) -> None:
    """The namespace was emptied, and the indexers came back with another number. While it is empty the scorer keeps what it has."""
    async with scorer_of(settings_of(server)) as scorer:
        async with owner_of(settings_of(server, shards=2)) as owner:
            await write(owner)
            await wait_until_async(lambda: answers(scorer) == EXPECTED)
        server.client().flushall()
        await wait_until_async(lambda: scorer.trust(STREAMS[0]) is Trust.STALE)
        assert scorer.matched(STREAMS[0], list(range(1, 12))) == 2
        async with owner_of(settings_of(server, shards=5)) as owner:
            await write(owner)
            await wait_until_async(lambda: answers(scorer) == EXPECTED, what=lambda: str(answers(scorer)))
            assert scorer.follower.reader.keyspace.shards == 5
            assert len(list(scorer.follower.streams_of(MODEL))) == len(STREAMS)

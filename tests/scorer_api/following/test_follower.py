"""A scorer follows what owners write to a real Redis, through everything that can be lost on the way.

A block's content is a number; a prompt is a list of them. What is asked is how many blocks of it a stream holds from the first on.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.events import Cleared, Stored, Tier
from indexer.core.names import StreamKey, Trust
from indexer.core.snapshot import Snapshot
from indexer.core.stream_state import StreamState
from indexer.engines.spec import EngineSpec
from indexer.errors import StoreError
from indexer.store.keyspace import Keyspace
from indexer.store.reader import Reader
from indexer.store.registry import Registry
from scorer_api.following import follower as follower_module
from scorer_api.following import loading
from scorer_api.following.follower import Follower
from scorer_api.following.shared_pods import SharedPods
from scorer_api.index.prompt import Prompt
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics
from tests.events import BLOCK_SIZE, offloaded, removed, stored, tokens_of
from tests.owner import OwnedStream, keys_of, owner_of, settings_of
from tests.redis_server import RedisServer
from tests.waiting import wait_until_async

MODEL = "my/{odd} model:"
A, A1, B = StreamKey(MODEL, "10.0.0.7:8000", 0), StreamKey(MODEL, "10.0.0.7:8000", 1), StreamKey(MODEL, "b {x}", 0)


class Scorer:
    """A follower, its view and what to ask of them."""

    def __init__(self, settings: Settings) -> None:
        self.view = View(settings, "redis")
        self.registry = CollectorRegistry()
        self.metrics = FollowerMetrics(self.registry, self.view)
        self.follower = Follower(settings, self.view, self.metrics)
        self.pods = SharedPods(settings, self.follower)

    def matched(self, stream: StreamKey, contents: list[int]) -> int | None:
        """How many of these blocks the stream holds from the first on; None where nobody knows it."""
        try:
            scores = self.view.score(Prompt(stream.model, tokens_of([*contents, 0])))
        except KeyError:
            return None
        return next((rank.match.matched_blocks for pod in scores if pod.pod == stream.pod for rank in pod.ranks if rank.rank == stream.rank), None)

    def trust(self, stream: StreamKey) -> Trust | None:
        try:
            return self.view.trust(stream)
        except KeyError:
            return None

    def count(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0

    def loads(self, reason: str) -> float:
        return self.count("kv_indexer_follower_loads_total", reason=reason)

    async def holds(self, stream: StreamKey, contents: list[int], blocks: int | None, trust: Trust | None = Trust.LIVE) -> None:
        """Wait until it does."""
        try:
            await wait_until_async(lambda: (self.matched(stream, contents), self.trust(stream)) == (blocks, trust))
        except AssertionError:
            raise AssertionError(f"{stream}: {self.matched(stream, contents)} {self.trust(stream)}, not {blocks} {trust}") from None


@asynccontextmanager
async def scorer_of(settings: Settings) -> AsyncIterator[Scorer]:
    scorer = Scorer(settings)
    async with scorer.follower:
        yield scorer


def numbers(first: int, count: int) -> list[int]:
    return list(range(first, first + count))


async def test_changes_reach_a_scorer_by_the_log_without_a_load(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        await scorer.holds(A, [1], 0)
        loads = scorer.loads("new") + scorer.loads("reload")
        stream.apply(stored([1, 2, 3], [1, 2, 3]))
        await scorer.holds(A, [1, 2, 3], 3)
        stream.apply(removed([2]))
        await scorer.holds(A, [1, 2, 3], 1)
        stream.apply(stored([2], [2], 1, Tier.CPU))
        await scorer.holds(A, [1, 2, 3], 3)
        stream.apply(Cleared())
        await scorer.holds(A, [1, 2, 3], 0)
        assert scorer.loads("new") + scorer.loads("reload") == loads
        assert scorer.loads("lost") == scorer.loads("survey") == 0


async def test_a_scorer_that_starts_late_loads_what_there_is(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner:
        first, second, third = [await owner.own(key) for key in (A, A1, B)]
        first.apply(stored(numbers(1, 3000), numbers(1, 3000)))
        second.apply(stored([1], [1]), offloaded([1], Tier.DISK), removed([1]))
        third.apply(stored([7], [7]))
        third.apply(stored([8], [8], 7, Tier.REMOTE))
        for stream in (first, second, third):
            await stream.flushed()
        async with scorer_of(settings) as scorer:
            await wait_until_async(lambda: scorer.follower.is_settled)
            assert scorer.matched(A, numbers(1, 3000)) == 3000
            assert scorer.matched(A1, numbers(1, 3000)) == 1
            assert scorer.matched(B, [7, 8]) == 1
            await scorer.holds(A, [1], 1)
            assert scorer.loads("new") == 3
            assert scorer.count("kv_indexer_follower_loaded_blocks_total") == 3003


async def test_what_changes_during_a_load_is_not_lost(server: RedisServer) -> None:
    """Hash by hash, with a batch between any two pieces."""
    settings = settings_of(server)

    async with owner_of(settings) as owner:
        stream = await owner.own(A)
        stream.apply(stored(numbers(1, 6000), numbers(1, 6000)))
        await stream.flushed()
        pieces = 0

        async def between() -> None:
            nonlocal pieces
            pieces += 1
            stream.apply(removed([3000 + pieces]), stored([10_000 + pieces], [10_000 + pieces], 1))
            await stream.flushed()

        async with scorer_of(settings) as scorer:
            _before_each_piece(scorer, between)
            await scorer.holds(A, numbers(1, 3000), 3000)
            assert pieces >= 6
            assert scorer.matched(A, numbers(1, 6000)) == 3000
            for piece in range(1, pieces + 1):
                await scorer.holds(A, [1, 10_000 + piece], 2)


def _before_each_piece(scorer: Scorer, act: Callable[[], Coroutine[Any, Any, None]]) -> None:
    reader = scorer.follower.reader
    read = reader.blocks

    async def blocks(name: str, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
        await act()
        return await read(name, cursor, count)

    reader.blocks = blocks  # type: ignore[method-assign]


@pytest.mark.parametrize("order", ["new first", "old first"])
async def test_a_key_whose_hash_is_exchanged_for_another_during_a_load_is_held(server: RedisServer, order: str) -> None:
    """Two engine hashes with one key: whichever of them the load gets to see, the key is held at the end."""
    settings = settings_of(server)

    async with owner_of(settings) as owner:
        stream = await owner.own(A)
        stream.apply(stored(numbers(1, 5000), numbers(1, 5000)))
        # The same content under a second hash.
        stream.apply(stored(numbers(100_001, 5000), numbers(1, 5000)))
        await stream.flushed()
        gone = 0

        async def between() -> None:
            nonlocal gone
            batch = numbers(1 + 1000 * gone, 1000) if gone < 5 else []
            gone += 1
            if not batch:
                return
            if order == "old first":
                stream.apply(removed(batch))
            else:
                parent = batch[0] - 1 or None
                stream.apply(stored([200_000 + number for number in batch], batch, parent and 100_000 + parent))
                stream.apply(removed(batch), removed([100_000 + number for number in batch]))
            await stream.flushed()

        async with scorer_of(settings) as scorer:
            _before_each_piece(scorer, between)
            await scorer.holds(A, numbers(1, 5000), 5000)
            assert gone >= 5
            assert scorer.loads("again") == scorer.loads("lost") == 0


async def test_a_lost_last_entry_is_noticed_while_the_engine_is_silent_and_that_stream_alone_is_loaded(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream, other = await owner.own(A), await owner.own(B)
        stream.apply(stored([1], [1]))
        other.apply(stored([1], [1]))
        await scorer.holds(A, [1, 2], 1)
        await scorer.holds(B, [1], 1)
        log = Keyspace(settings.namespace).model(MODEL).log
        async with deaf(scorer):
            stream.apply(stored([2], [2], 1))
            await stream.flushed()
            client = server.client()
            newest = client.xinfo_stream(log)["last-generated-id"]
            assert client.xdel(log, newest) == 1
        with server.counting() as calls:
            await scorer.holds(A, [1, 2], 2)
        assert scorer.loads("survey") == 1
        assert calls["hscan"] == len(Tier), "a hash per tier, of one stream"


@asynccontextmanager
async def deaf(scorer: Scorer) -> AsyncIterator[None]:
    """Meanwhile the scorer reads nothing of the log."""
    reader = scorer.follower.reader
    read = reader.entries
    is_deaf = asyncio.Event()

    async def nothing(*_: Any) -> list[Any]:
        is_deaf.set()
        await asyncio.sleep(0.01)
        raise StoreError("unreachable")

    reader.entries = nothing  # type: ignore[method-assign]
    await is_deaf.wait()
    yield
    reader.entries = read  # type: ignore[method-assign]


async def test_a_log_that_was_trimmed_while_nobody_read_costs_a_load_of_what_changed(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream, other = await owner.own(A), await owner.own(B)
        stream.apply(stored([1], [1]))
        other.apply(stored([1], [1]))
        await scorer.holds(A, [1, 2], 1)
        await scorer.holds(B, [1], 1)
        async with deaf(scorer):
            for number in range(2, 50):
                stream.apply(stored([number], [number], number - 1))
                await stream.flushed()
            server.client().xtrim(Keyspace(settings.namespace).model(MODEL).log, maxlen=3, approximate=False)
        with server.counting() as calls:
            await scorer.holds(A, numbers(1, 49), 49)
        assert scorer.loads("lost") + scorer.loads("survey") == 1
        assert calls["hscan"] == len(Tier)


async def test_an_entry_that_does_not_follow_makes_its_stream_stale_until_it_is_loaded(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        stream.apply(stored([1], [1]))
        await scorer.holds(A, [1, 2], 1)
        may_load = asyncio.Event()
        _before_each_piece(scorer, may_load.wait)
        async with deaf(scorer):
            stream.apply(stored([2], [2], 1))
            await stream.flushed()
            client = server.client()
            client.xtrim(Keyspace(settings.namespace).model(MODEL).log, maxlen=0, approximate=False)
            stream.apply(stored([3], [3], 2))
            await stream.flushed()
        await scorer.holds(A, [1, 2, 3], 1, Trust.STALE)
        may_load.set()
        await scorer.holds(A, [1, 2, 3], 3)
        assert scorer.loads("lost") == 1


async def test_a_new_generation_is_loaded_while_the_old_one_serves(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        stream.apply(stored(numbers(1, 100), numbers(1, 100)))
        await scorer.holds(A, numbers(1, 100), 100)
        may_load = asyncio.Event()
        _before_each_piece(scorer, may_load.wait)
        stream.state.forget()
        stream._owner.store._flusher.streams[A].require_full_write()
        stream.apply(stored(numbers(1, 7), numbers(501, 7)))
        await stream.flushed()
        await wait_until_async(lambda: scorer.loads("reload") == 1)
        assert scorer.matched(A, numbers(1, 100)) == 100
        assert scorer.trust(A) is Trust.LIVE
        assert scorer.count("kv_indexer_follower_loading") == 1
        may_load.set()
        await scorer.holds(A, numbers(501, 7), 7)
        assert scorer.matched(A, numbers(1, 100)) == 0
        await wait_until_async(lambda: sum(index.holders for index in scorer.view.indexes) == 7)


async def test_a_change_too_large_for_the_log_is_loaded(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        await scorer.holds(A, [1], 0)
        stream.apply(stored(numbers(1, 1500), numbers(1, 1500)))
        await scorer.holds(A, numbers(1, 1500), 1500)
        assert scorer.loads("reload") == 1
        assert scorer.loads("lost") == 0


async def test_what_a_restarted_engine_held_is_gone_without_a_load(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        stream.apply(stored(numbers(1, 900), numbers(1, 900)))
        await scorer.holds(A, numbers(1, 900), 900)
        before = scorer.loads("new") + scorer.loads("reload")
        with server.counting() as calls:
            stream.forget()
            await scorer.holds(A, numbers(1, 900), 0)
        assert calls["hscan"] == 0
        stream.apply(stored([1], [1]))
        await scorer.holds(A, numbers(1, 900), 1)
        assert scorer.loads("new") + scorer.loads("reload") == before


async def test_a_new_owner_goes_on_without_a_load(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings, "first") as first, scorer_of(settings) as scorer:
        stream = await first.own(A)
        stream.apply(stored([1], [1]))
        await scorer.holds(A, [1, 2], 1)
        before = scorer.loads("new") + scorer.loads("reload")
        first.is_keeping = False
        async with owner_of(settings, "second") as second:
            heir = await second.own(A, "force")
            heir.apply(stored([2], [2], 1))
            await scorer.holds(A, [1, 2], 2)
            stream.apply(stored([3], [3], 2))  # too late
            heir.apply(stored([4], [4], 2))
            await scorer.holds(A, [1, 2, 4], 3)
            assert scorer.matched(A, [1, 2, 3]) == 2
            assert scorer.loads("new") + scorer.loads("reload") == before
            assert scorer.loads("lost") == scorer.loads("survey") == 0


async def test_a_state_read_between_a_claim_and_the_first_entry_is_a_right_one(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings, "first") as first, owner_of(settings, "second") as second:
        stream = await first.own(A)
        stream.apply(stored([1], [1]))
        await stream.flushed()
        claim = await second.store.claim(A, "force")
        first.is_keeping = False
        async with scorer_of(settings) as scorer:
            await wait_until_async(lambda: scorer.matched(A, [1]) == 1)
            heir = second.streams[A] = OwnedStream(second, A)
            head = await second.store.load(claim, A, heir.state)  # type: ignore[arg-type]
            heir.resume(head)
            second.store.own(A, claim, Snapshot(heir.state), heir.position, is_loaded=True)  # type: ignore[arg-type]
            heir.apply(stored([2], [2], 1))
            await scorer.holds(A, [1, 2], 2)
            assert scorer.loads("lost") == scorer.loads("survey") == 0


async def test_trust_follows_what_the_owner_says(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        stream.apply(stored([1], [1]))
        await scorer.holds(A, [1], 1)
        for trust in (Trust.PARTIAL, Trust.STALE, Trust.LIVE):
            stream.set_trust(trust)
            await scorer.holds(A, [1], 1, trust)


async def test_a_stream_that_no_owner_confirms_is_stale_and_keeps_its_blocks(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        stream.apply(stored([1], [1]))
        await scorer.holds(A, [1], 1)
        owner.is_keeping = False
        await scorer.holds(A, [1], 1, Trust.STALE)
        assert scorer.view.age_s >= settings.lease_s
        owner.is_keeping = True
        await scorer.holds(A, [1], 1)
        assert scorer.loads("survey") == scorer.loads("lost") == 0


async def test_trust_runs_out_while_redis_hangs_and_answers_go_on(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        stream.apply(stored([1], [1]))
        await scorer.holds(A, [1], 1)
        server.freeze()
        try:
            await scorer.holds(A, [1], 1, Trust.STALE)
            await wait_until_async(lambda: scorer.view.age_s > 2 * settings.lease_s)
            await wait_until_async(lambda: any("Redis is unreachable since" in reason for reason in scorer.pods.readiness().reasons))
            assert scorer.pods.readiness().status == "degraded"
        finally:
            server.thaw()
        stream.apply(stored([2], [2], 1))
        await scorer.holds(A, [1, 2], 2)
        assert scorer.view.age_s < settings.lease_s
        assert scorer.pods.readiness().status == "ready"


async def test_a_redis_that_says_nothing_is_away_however_long_its_answer_is_waited_for(server: RedisServer) -> None:
    settings = settings_of(server, redis_timeout_s=600.0)

    async with scorer_of(settings) as scorer:
        await wait_until_async(lambda: scorer.pods.readiness().status == "ready")
        server.freeze()
        try:
            await wait_until_async(lambda: scorer.pods.readiness().status == "degraded")
            with pytest.raises(StoreError):
                await scorer.pods.register((EngineSpec("a", "m", events="tcp://127.0.0.1:9"),))
        finally:
            server.thaw()
        await wait_until_async(lambda: scorer.pods.readiness().status == "ready")


async def test_a_redis_that_comes_back_empty_is_filled_again_while_the_scorer_serves(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        stream.apply(stored([1, 2], [1, 2]))
        await scorer.holds(A, [1, 2], 2)
        owner.is_keeping = False
        server.kill()
        server.start(with_data=False)
        await wait_until_async(lambda: server.commands()["hmget"] > 3)  # it was surveyed
        assert (scorer.matched(A, [1, 2]), scorer.trust(A)) == (2, Trust.STALE)
        owner.is_keeping = True
        stream.apply(stored([3], [3], 2))
        await scorer.holds(A, [1, 2, 3], 3)


async def test_a_redis_older_than_what_was_read_is_followed_where_it_stands(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        stream.apply(stored([1], [1]))
        await scorer.holds(A, [1, 2], 1)
        snapshot = server.save()
        stream.apply(stored([2], [2], 1))
        await scorer.holds(A, [1, 2], 2)
        owner.is_keeping = False
        server.kill()
        server.put_back(snapshot)
        server.start()
        # What it holds is right, but Redis does not say so.
        await scorer.holds(A, [1, 2], 2, Trust.STALE)
        async with scorer_of(settings) as late:
            await late.holds(A, [1, 2], 1, Trust.STALE)
            owner.is_keeping = True
            await scorer.holds(A, [1, 2], 2)
            await late.holds(A, [1, 2], 2)


async def test_a_deleted_stream_is_forgotten_and_its_blocks_are_given_back(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        for key in (A, B):
            stream = await owner.own(key)
            stream.apply(stored(numbers(1, 3000), numbers(1, 3000)))
            await scorer.holds(key, numbers(1, 3000), 3000)
        await Registry(scorer.follower.reader.client, Keyspace(settings.namespace), settings).delete(A)
        owner.store.disown(A)
        await scorer.holds(A, [1], None, None)
        assert scorer.view.models() == {MODEL: [B.pod]}
        await wait_until_async(lambda: sum(index.holders for index in scorer.view.indexes) == 3000)
        assert scorer.matched(B, numbers(1, 3000)) == 3000


async def test_a_stream_whose_state_expired_is_forgotten(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        other = await owner.own(B)
        for each in (stream, other):
            each.apply(stored([1], [1]))
            await scorer.holds(each.key, [1], 1)
        owner.store.disown(A)
        server.client().delete(Keyspace(settings.namespace).model(MODEL).state(A))
        await scorer.holds(A, [1], None, None)
        assert scorer.matched(B, [1]) == 1


async def test_models_with_any_name_are_followed_and_forgotten(server: RedisServer) -> None:
    settings = settings_of(server, pod_expiry_s=3.0)
    models = ["org/a b", "{org}/a:b", "org}{/", "*?[x]", "ü"]

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        for number, model in enumerate(models):
            stream = await owner.own(StreamKey(model, "pod", 0))
            stream.apply(stored([1], [number]))
        for number, model in enumerate(models):
            await scorer.holds(StreamKey(model, "pod", 0), [number], 1)
            assert keys_of(model, [number]) == sorted(stream_keys(scorer, model))
        gone = StreamKey(models[0], "pod", 0)
        owner.store.disown(gone)
        del owner.streams[gone]
        server.client().zrem(Keyspace(settings.namespace).directory.models, models[0])
        await scorer.holds(gone, [0], None, None)
        assert set(scorer.view.models()) == set(models[1:])


def stream_keys(scorer: Scorer, model: str) -> set[int]:
    """The block keys that anybody holds of a model."""
    indexes = scorer.view._models[model].indexes.values()
    holders = [(index, number) for index in indexes for number in range(index.mask.bit_length()) if index.mask >> number & 1]
    return {key for index, number in holders for tier in Tier for key in index.held(number, tier)}


async def test_two_namespaces_and_foreign_keys_share_a_database(server: RedisServer) -> None:
    ours, theirs = settings_of(server), settings_of(server, namespace="other:one")

    client = server.client()
    client.set("kvi:1:{directory}:unknown", "text")
    client.set("kvi", "text")
    client.hset("pods", "a", "b")
    before = {name: client.dump(name) for name in client.keys()}  # noqa: SIM118 - of Redis
    async with owner_of(ours) as owner, owner_of(theirs) as other, scorer_of(ours) as scorer, scorer_of(theirs) as other_scorer:
        (await owner.own(A)).apply(stored([1], [1]))
        (await other.own(A)).apply(stored([2], [2]))
        await scorer.holds(A, [1], 1)
        await other_scorer.holds(A, [2], 1)
        assert scorer.matched(A, [2]) == 0
        assert other_scorer.matched(A, [1]) == 0
    assert {name: client.dump(name) for name in before} == before


@pytest.mark.rule("R3")
async def test_what_nobody_can_read_costs_itself_only(server: RedisServer) -> None:
    settings = settings_of(server, redis_timeout_s=5.0, lease_s=10.0)  # an owner that wrote the stream again would mend it
    keys = Keyspace(settings.namespace).model(MODEL)

    async with owner_of(settings) as owner:
        stream = await owner.own(A)
        stream.apply(stored(numbers(1, 10), numbers(1, 10)))
        await stream.flushed()
        client = server.client()
        client.hset(keys.parts(A, int(client.hget(keys.state(A), "gen")))[0], mapping={b"x": b"", b"y": b"short", b"z": b"1" * 21})
        client.zadd(keys.streams, {b"\xff\xfe": 1, b"no rank": 1})
        client.hset(keys.state(B), mapping={"gen": "1", "fence": "2", "number": "3", "head": b"\xc1"})
        client.zadd(keys.streams, {f"0:{B.pod}": 9e15})
        client.hset(Keyspace(settings.namespace).directory.pods, mapping={"odd": "no JSON", "odder": '[{"pod": 1}]'})
        async with scorer_of(settings) as scorer:
            await scorer.holds(A, numbers(1, 10), 10)
            client.xadd(keys.log, {"e": b"\xc1"})
            client.xadd(keys.log, {"other": b"field"})
            stream.apply(stored([11], [11], 10))
            await scorer.holds(A, numbers(1, 11), 11)
            await scorer.holds(B, [1], 0, Trust.STALE)
            await wait_until_async(lambda: scorer.count("kv_indexer_follower_entries_total", outcome="unreadable") >= 3)
            assert scorer.loads("lost") == 0
            assert scorer.follower.pods == {}


async def test_keys_of_an_engine_without_extra_keys_that_two_hashes_claim_are_not_indexed(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner:
        stream = await owner.own(A)
        stream.apply(stored([1, 2, 3], [1, 2, 3], announces_extra_keys=False))
        stream.apply(stored([12], [2], 1, announces_extra_keys=False))
        await stream.flushed()
        async with scorer_of(settings) as scorer:
            await scorer.holds(A, [1, 2, 3], 1)
            assert stream_keys(scorer, MODEL) == {keys_of(MODEL, [1])[0], keys_of(MODEL, [1, 2, 3])[2]}


async def test_two_streams_are_loaded_at_a_time(server: RedisServer) -> None:
    settings = settings_of(server)
    keys = [StreamKey(MODEL, f"pod {number}", 0) for number in range(6)]

    async with owner_of(settings) as owner:
        for key in keys:
            stream = await owner.own(key)
            stream.apply(stored(numbers(1, 2500), numbers(1, 2500)))
            await stream.flushed()
        async with scorer_of(settings) as scorer:
            names: set[str] = set()
            reader, read = scorer.follower.reader, scorer.follower.reader.blocks

            async def blocks(name: str, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
                names.add(name)
                assert len(names) <= follower_module.LOADS_MAX
                found = await read(name, cursor, count)
                names.discard(name)
                return found

            reader.blocks = blocks  # type: ignore[method-assign]
            for key in keys:
                await scorer.holds(key, numbers(1, 2500), 2500)
            assert scorer.loads("again") == 0


async def test_a_load_reads_in_pieces_and_no_piece_is_large(server: RedisServer) -> None:
    """The event loop has its turn between any two of them."""
    settings = settings_of(server)

    async with owner_of(settings) as owner:
        stream = await owner.own(A)
        for start in range(1, 40_000, 5_000):
            stream.apply(stored(numbers(start, 5_000), numbers(start, 5_000), start - 1 or None))
        await stream.flushed()
        async with scorer_of(settings) as scorer:
            sizes: list[int] = []
            reader, read = scorer.follower.reader, scorer.follower.reader.blocks

            async def blocks(name: str, cursor: int, count: int) -> tuple[int, dict[bytes, bytes]]:
                after, found = await read(name, cursor, count)
                sizes.append(len(found))
                return after, found

            reader.blocks = blocks  # type: ignore[method-assign]
            await scorer.holds(A, numbers(1, 40_000), 40_000)
            assert sum(sizes) == 40_000
            assert max(sizes) <= 2 * loading.PIECE_FIELDS
            given_back = 0
            give_back = follower_module.Holding.give_back

            def counted(self: Any, blocks_max: int) -> bool:
                nonlocal given_back
                given_back += 1
                assert blocks_max <= 1_000
                return give_back(self, blocks_max)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(follower_module.Holding, "give_back", counted)
                stream.forget()
                await scorer.holds(A, [1], 0)
                await wait_until_async(lambda: not list(scorer.view.indexes))
            assert given_back >= 40


def stored_in(group: int, contents: list[int], tier: Tier = Tier.GPU, parent: int | None = None) -> Stored:
    """Blocks of the full group 0, of a window of two blocks, or states."""
    kind = ("full_attention", "sliding_window", "mamba")[group]
    return stored(contents, contents, parent, tier, group=group, kind=kind, window=2 * BLOCK_SIZE if group == 1 else None)


async def test_groups_reach_a_scorer_by_the_log_and_one_that_loads(server: RedisServer) -> None:
    """A window and a state group join a stream that a scorer follows already; each answer is the engine's hit rule."""
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        stream.apply(stored_in(0, numbers(1, 8)))
        await scorer.holds(A, numbers(1, 8), 8)
        loads = scorer.loads("new") + scorer.loads("reload")

        async def everybody_says(blocks: int) -> None:
            await scorer.holds(A, numbers(1, 8), blocks)
            await stream.flushed()
            async with scorer_of(settings) as late:
                await wait_until_async(lambda: late.follower.is_settled)
                assert (late.matched(A, numbers(1, 8)), held_by(late, A)) == (blocks, held_in(stream.state))
            assert held_by(scorer, A) == held_in(stream.state)

        stream.apply(stored_in(1, numbers(1, 8)), removed([5, 6], group=1))
        await everybody_says(8)
        stream.apply(removed([8], group=1))
        await everybody_says(4)
        stream.apply(stored_in(2, numbers(1, 8)), removed([3, 4], group=2))
        await everybody_says(2)
        stream.apply(offloaded([5, 6], Tier.CPU, group=1))
        await everybody_says(7)
        stream.apply(Cleared(), stored_in(0, numbers(1, 6)), stored_in(2, [6], parent=5))
        await everybody_says(6)
        assert scorer.loads("new") + scorer.loads("reload") == loads
        stream.apply(stored_in(0, numbers(1, 3000)), stored_in(1, numbers(1, 3000)), stored_in(2, [8], parent=7))
        await everybody_says(8)
        assert scorer.loads("reload") > 0, "so many blocks are loaded, in every group"


async def test_a_group_that_joins_during_a_load_is_not_taken_for_the_first_one(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner:
        stream = await owner.own(A)
        stream.apply(stored_in(0, numbers(1, 3000)))
        await stream.flushed()
        pieces = 0

        async def between() -> None:
            nonlocal pieces
            pieces += 1
            if pieces == 1:
                stream.apply(stored_in(1, numbers(5001, 300)))
                await stream.flushed()

        async with scorer_of(settings) as scorer:
            _before_each_piece(scorer, between)
            await wait_until_async(lambda: scorer.trust(A) is Trust.LIVE and held_by(scorer, A) == held_in(stream.state))
            assert pieces > 1


async def test_a_new_owner_goes_on_with_the_groups_of_the_former_one(server: RedisServer) -> None:
    settings = settings_of(server)

    async with scorer_of(settings) as scorer:
        async with owner_of(settings, "first") as first:
            stream = await first.own(A)
            stream.apply(stored_in(1, numbers(1, 8)), stored_in(0, numbers(1, 8)), removed([8], group=1))
            await scorer.holds(A, numbers(1, 8), 7)
            await stream.flushed()
            await first.store.release(A)
        async with owner_of(settings, "second") as second:
            heir = await second.own(A)
            assert (heir.state.shape, held_in(heir.state)) == (stream.state.shape, held_in(stream.state))
            heir.apply(removed([6], group=1))
            await scorer.holds(A, numbers(1, 8), 5)
            heir.apply(stored([6], [6], group=1, kind=None), offloaded([8], Tier.GPU, group=1))
            await scorer.holds(A, numbers(1, 8), 8)
            assert held_by(scorer, A) == held_in(heir.state)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_happens_a_scorer_ends_with_what_the_stream_holds(server: RedisServer, seed: int, groups: int) -> None:
    settings = settings_of(server)
    chance = random.Random(seed)
    log = Keyspace(settings.namespace).model(MODEL).log

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        streams = [await owner.own(key) for key in (A, A1, B)]
        client = server.client()
        for step in range(60):
            stream = chance.choice(streams)
            first = chance.randrange(1, 400)
            tier = chance.choice([Tier.GPU, Tier.GPU, Tier.CPU, Tier.REMOTE])
            some = [group for group in range(groups) if chance.random() < 0.7] or [0]
            match chance.randrange(12):
                case 0:
                    stream.forget()
                case 1:
                    stream.apply(Cleared())
                case 2 | 3 | 4:
                    gone = numbers(first, chance.randrange(1, 300))
                    stream.apply(*(removed(gone, tier, group) for group in some))
                case 5:
                    client.xtrim(log, maxlen=chance.randrange(3), approximate=False)
                case 6:
                    server.freeze()
                    await asyncio.sleep(chance.random() / 2)
                    server.thaw()
                case _:
                    count = chance.choice([1, 5, 64, 300, 1500])
                    start = first + chance.choice([0, 1000 * chance.randrange(3)])
                    stream.apply(*(stored_in(group, numbers(start, count), tier) for group in some))
            if step % 7 == 0:
                await asyncio.sleep(0.02)
        for stream in streams:
            await stream.flushed()

        def is_right() -> bool:
            return all(held_by(scorer, stream.key) == held_in(stream.state) for stream in streams)

        await wait_until_async(is_right, what=lambda: str([differing(scorer, stream) for stream in streams]))
        await wait_until_async(lambda: all(scorer.trust(stream.key) is Trust.LIVE for stream in streams))
        await asyncio.sleep(0.1)
        assert is_right()


Held = dict[tuple[int, Tier], set[int]]
"""Slot and tier → block keys, where there are any."""


def held_by(scorer: Scorer, stream: StreamKey) -> Held:
    """What a stream holds, for a scorer, which may not know it yet."""
    model = scorer.view._models.get(stream.model)
    indexed = None if model is None else model.pods.get(stream.pod, {}).get(stream.rank)
    if indexed is None or indexed.holders is None:
        return {}
    holders = indexed.holders
    return {(slot, tier): set(keys) for slot, holder in enumerate(holders.by_slot) for tier in Tier if (keys := holders.index.held(holder, tier))}


def differing(scorer: Scorer, stream: OwnedStream) -> dict[tuple[int, Tier], int]:
    """Slot and tier → how many keys the scorer and the owner do not both have."""
    ours, theirs = held_by(scorer, stream.key), held_in(stream.state)
    return {
        place: len(ours.get(place, set()) ^ theirs.get(place, set())) for place in ours.keys() | theirs.keys() if ours.get(place) != theirs.get(place)
    }


def held_in(state: StreamState) -> Held:
    """The same for its owner."""
    slots = range(1 if state.shape is None else len(state.shape.groups))
    return {(slot, tier): keys for slot in slots for tier in Tier if (keys := state.held(tier, slot))}


async def test_a_failure_of_ours_begins_the_model_again(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(server)
    monkeypatch.setattr(follower_module, "AFTER_FAILURE_S", 0.05)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        stream = await owner.own(A)
        stream.apply(stored([1], [1]))
        await scorer.holds(A, [1], 1)
        survey = Reader.survey

        async def failing(*_: Any) -> Any:
            monkeypatch.setattr(Reader, "survey", survey)
            raise RuntimeError("a bug")

        monkeypatch.setattr(Reader, "survey", failing)
        await wait_until_async(lambda: Reader.survey is survey)
        stream.apply(stored([2], [2], 1))
        await scorer.holds(A, [1, 2], 2)


# Registered pods


async def test_a_registered_pod_is_known_before_anything_is_known_of_it(server: RedisServer) -> None:
    settings = settings_of(server)

    async with scorer_of(settings) as scorer, scorer_of(settings) as other:
        spec = EngineSpec("p/1", "m {1}", events="tcp://127.0.0.1:9", ranks=2)
        assert await scorer.pods.register((spec,))
        assert [(pod.pod, pod.model, len(pod.streams)) for pod in scorer.pods.pods()] == [("p/1", "m {1}", 2)]
        await wait_until_async(lambda: other.view.models() == {"m {1}": ["p/1"]})
        assert not await other.pods.register((EngineSpec("p/1", "m {1}", events="tcp://127.0.0.1:9"),))
        await wait_until_async(lambda: [len(pod.streams) for pod in scorer.pods.pods()] == [1])
        (status,) = next(scorer.pods.pods()).streams
        assert (status.trust, status.sequence, status.blocks, status.owner) == (Trust.STALE, None, {}, None)
        assert await scorer.pods.forget("p/1")
        assert not await scorer.pods.forget("p/1")
        assert scorer.view.models() == {}
        await wait_until_async(lambda: other.view.models() == {})


async def test_a_pod_deleted_at_one_scorer_is_gone_at_all_and_in_redis(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer, scorer_of(settings) as other:
        spec = EngineSpec(A.pod, MODEL, events="tcp://127.0.0.1:9", ranks=2)
        assert await scorer.pods.register((spec,))
        for key in (A, A1):
            stream = await owner.own(key)
            stream.apply(stored([1], [1]))
            for each in (scorer, other):
                await each.holds(key, [1], 1)
        status = next(scorer.pods.pods()).streams[0]
        assert (status.owner, status.trust, status.blocks, status.sequence) == ("owner", Trust.LIVE, {"gpu": 1}, 0)
        assert await other.pods.forget(A.pod)
        assert other.view.models() == {}
        await wait_until_async(lambda: scorer.view.models() == {})
        names = server.keys()
        assert [name for name in names if b":state:" in name or b":gpu:" in name] == []


async def test_all_replicas_know_the_role_of_a_registered_pod(server: RedisServer) -> None:
    spec = EngineSpec(A.pod, MODEL, events="tcp://127.0.0.1:9", role="prefill")
    async with scorer_of(settings_of(server)) as scorer, scorer_of(settings_of(server)) as other:
        await scorer.pods.register((spec,))
        await wait_until_async(lambda: other.pods.api(A.pod, MODEL).role == "prefill")
        assert other.pods.apis(MODEL)[A.pod].role == "prefill"
        assert other.pods.api("another", MODEL).role == "both"


async def test_a_registered_pod_whose_streams_are_gone_stays_listed(server: RedisServer) -> None:
    settings = settings_of(server)

    async with owner_of(settings) as owner, scorer_of(settings) as scorer:
        await scorer.pods.register((EngineSpec(A.pod, MODEL, events="tcp://127.0.0.1:9"),))
        stream = await owner.own(A)
        stream.apply(stored([1], [1]))
        await scorer.holds(A, [1], 1)
        owner.store.disown(A)
        await Registry(scorer.follower.reader.client, Keyspace(settings.namespace), settings).delete(A)
        await scorer.holds(A, [1], 0, Trust.STALE)
        await wait_until_async(lambda: next(scorer.pods.pods()).streams[0].owner is None)


async def test_readiness_waits_for_what_there_was_at_first(server: RedisServer) -> None:
    settings = settings_of(server, ready_after_s=0.001)

    async with owner_of(settings) as owner:
        stream = await owner.own(A)
        stream.apply(stored([1], [1]))
        await stream.flushed()
        scorer = Scorer(settings)
        may_load = asyncio.Event()
        _before_each_piece(scorer, may_load.wait)
        async with scorer.follower:
            await wait_until_async(lambda: scorer.count("kv_indexer_follower_loading") == 1)
            readiness = scorer.pods.readiness()
            assert (readiness.status, readiness.is_ready) == ("starting", False)
            may_load.set()
            await wait_until_async(lambda: scorer.pods.readiness().status == "ready")
            stream.set_trust(Trust.STALE)
            await wait_until_async(lambda: scorer.pods.readiness().status == "degraded")
            assert scorer.pods.readiness().reasons == [f"pod {A.pod} rank 0 is stale"]


async def test_a_scorer_that_finds_nothing_waits_for_somebody_to_write(server: RedisServer) -> None:
    """A Redis that has just lost everything looks like one that nobody has used yet."""

    async with scorer_of(settings_of(server, ready_after_s=60.0)) as scorer, scorer_of(settings_of(server, ready_after_s=0.001)) as hasty:
        await wait_until_async(lambda: scorer.follower.is_empty and hasty.follower.is_empty)
        assert hasty.pods.readiness().status == "ready"
        assert scorer.pods.readiness().status == "starting"
        async with owner_of(settings_of(server)) as owner:
            stream = await owner.own(A)
            stream.apply(stored([1], [1]))
            await wait_until_async(lambda: scorer.pods.readiness().status == "ready")
            assert scorer.matched(A, [1]) == 1


async def test_a_scorer_that_could_load_nothing_is_not_ready_and_says_why() -> None:
    settings = Settings(redis="redis://127.0.0.1:1/0", ready_after_s=0.001)

    async with scorer_of(settings) as scorer:
        await wait_until_async(lambda: scorer.pods.readiness().reasons)
        assert scorer.pods.readiness().status == "starting"
        (reason,) = scorer.pods.readiness().reasons
        assert reason.startswith("Redis is unreachable since ")
        with pytest.raises(StoreError):
            await scorer.pods.register((EngineSpec("a", "m", events="tcp://127.0.0.1:9"),))
        with pytest.raises(StoreError):
            await scorer.pods.forget("a")

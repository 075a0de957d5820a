"""Engine hashes stand for the same block keys whether a stream runs in the scorer's process, is followed by the log or is loaded from Redis."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.change import Change
from indexer.core.event_pieces import result_of
from indexer.core.events import Cleared, Event, Stored, Tier
from indexer.core.groups import CacheShape
from indexer.core.names import StreamKey
from indexer.core.store import StreamPosition
from scorer_api.following.follower import Follower
from scorer_api.index.engine_hashes import EngineHashes
from scorer_api.index.scoring import NO_MATCH
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics
from tests.events import BLOCK_SIZE, offloaded, removed, stored
from tests.owner import OwnedStream, owner_of, settings_of
from tests.redis_server import RedisServer
from tests.waiting import wait_until_async

KEY = StreamKey("m", "a", 0)
CHAINS = [*((engine_hash,) for engine_hash in range(1, 8)), (1, 2, 3)]
CPU = Tier.CPU


class BothModes:
    """One owned stream, whose changes go to Redis and into a view of the same process."""

    def __init__(self, settings: Settings, stream: OwnedStream) -> None:
        self.stream = stream
        self._settings = settings
        self.embedded = View(Settings())
        self.embedded.open(KEY)
        self.embedded.mapped_key = lambda key: stream.state.table.mapped_key
        self._append = stream._owner.store.append
        stream._owner.store.append = self._append_to_both  # type: ignore[method-assign]  # the tee of this test

    def _append_to_both(self, key: StreamKey, shape: CacheShape | None, change: Change, position: StreamPosition) -> None:
        self.embedded.append(key, shape, change)
        self._append(key, shape, change, position)

    async def apply(self, *events: Event) -> None:
        self.stream.apply(*events)
        await self.stream.flushed()

    async def drop_held(self) -> None:
        """History was lost: the same engine goes on."""
        result_of(self.stream.state.drop_held())
        self.embedded.drop(KEY)
        self.stream._owner.store.drop(KEY, self.stream.position)
        await self.stream.flushed()

    async def agree(self, follower: View, chains: Sequence[tuple[int, ...]] = CHAINS) -> tuple[set[int], int]:
        """Wait until a scorer that follows answers as the embedded one, and see that one which loads does too.

        Returns the hashes that match alone, and how many of the chain 1, 2, 3 match.
        """
        expected = answers(self.embedded, chains)
        await wait_until_async(lambda: answers(follower, chains) == expected, 10.0)
        loading = View(self._settings, "redis")
        async with Follower(self._settings, loading, FollowerMetrics(CollectorRegistry(), loading)) as late:
            await wait_until_async(lambda: late.is_settled)
            assert answers(loading, chains) == expected
        return {chain[0] for chain, (blocks, _) in expected.items() if len(chain) == 1 and blocks}, expected[1, 2, 3][0]


@asynccontextmanager
async def both_modes(server: RedisServer) -> AsyncIterator[tuple[BothModes, View]]:
    """An owned stream, and the view of a scorer that follows it from the start."""
    settings = settings_of(server, engine_hashes=True)
    view = View(settings, "redis")
    async with owner_of(settings) as owner:
        modes = BothModes(settings, await owner.own(KEY))
        async with Follower(settings, view, FollowerMetrics(CollectorRegistry(), view)):
            yield modes, view


def answers(view: View, chains: Sequence[tuple[int, ...]] = CHAINS) -> dict[tuple[int, ...], tuple[int, tuple[int, ...]]]:
    """Matched blocks, and those by tier, for each chain of engine hashes."""
    found = {}
    for chain in chains:
        match = view.score(EngineHashes("m", chain))[0].ranks[0].match if view.has_model("m") else NO_MATCH
        found[chain] = match.matched_blocks, match.tiers
    return found


def offloaded_run(last: int, blocks: int) -> Stored:
    """A tier update: one hash on the cpu stands for a run of blocks that ends with its own."""
    return offloaded([last], CPU, blocks * BLOCK_SIZE, kind="full_attention")


async def test_all_modes_answer_the_same_for_engine_hashes(server: RedisServer) -> None:
    async with both_modes(server) as (modes, view):
        await modes.apply(stored([1, 2, 3], [1, 2, 3]))
        assert await modes.agree(view) == ({1, 2, 3}, 3)
        await modes.apply(stored([5], [1]), removed([1]))
        assert await modes.agree(view) == ({2, 3, 5}, 0), "another hash holds what the removed one held, which stands for nothing"
        await modes.apply(stored([1], [1]))
        assert await modes.agree(view) == ({1, 2, 3, 5}, 3), "it is added again"
        await modes.apply(offloaded_run(3, 3), removed([1, 2, 3, 5]))
        assert await modes.agree(view) == ({1, 2, 3, 5}, 3), "the run covers the blocks of the removed hashes"
        await modes.apply(stored([4], [1]), Cleared())
        assert await modes.agree(view) == ({1, 2, 3, 4, 5}, 3), "a clear of the gpu leaves the run"
        await modes.apply(removed([3], CPU))
        assert await modes.agree(view) == (set(), 0)
        await modes.apply(stored([6], [1]))
        assert await modes.agree(view) == ({1, 4, 5, 6}, 1), "where blocks are offloaded, removed hashes stand for what they held"
        await modes.apply(stored([1, 2, 3], [1, 2, 3]))
        await modes.drop_held()
        assert await modes.agree(view) == (set(), 0)
        await modes.apply(offloaded_run(3, 3))
        assert await modes.agree(view) == ({1, 2, 3, 4, 5, 6}, 3), "a lost stream's hashes are remembered"


async def test_all_modes_leave_ambiguous_keys_out_of_the_index(server: RedisServer) -> None:
    """The engine announces no extra keys: two hashes of the same tokens may be two images."""
    async with both_modes(server) as (modes, view):
        await modes.apply(stored([1, 2, 3], [1, 2, 3], announces_extra_keys=False))
        assert await modes.agree(view) == ({1, 2, 3}, 3)
        await modes.apply(stored([5], [1], announces_extra_keys=False))
        assert await modes.agree(view) == ({2, 3}, 0), "neither hash counts: nothing tells their blocks apart"
        await modes.apply(stored([6], [2], 1, announces_extra_keys=False), offloaded([6], announces_extra_keys=False))
        assert await modes.agree(view) == ({3}, 0), "nor does one in another tier"
        await modes.apply(removed([1, 5]))
        assert await modes.agree(view) == ({3}, 0)
        await modes.apply(stored([7], [1], announces_extra_keys=False))
        assert await modes.agree(view) == ({7, 3, 1, 5}, 1), "all that claimed the key are gone, so it counts again"


async def test_all_modes_answer_the_same_where_a_second_group_joins(server: RedisServer) -> None:
    """A window group joins a full one: a hash stands for its block as long as either of them holds it."""
    window = {"group": 1, "kind": "sliding_window", "window": 2 * BLOCK_SIZE + 1}

    async with both_modes(server) as (modes, view):
        await modes.apply(stored([1, 2, 3], [1, 2, 3]))
        assert await modes.agree(view) == ({1, 2, 3}, 3)
        await modes.apply(stored([1, 2], [1, 2], **window))
        assert await modes.agree(view) == ({1, 2}, 2), "the window group lacks the third block"
        await modes.apply(stored([3], [3], 2, **window), removed([1], group=1))
        assert await modes.agree(view) == ({2, 3}, 3), "a hit of three blocks needs the last two of the window group"
        await modes.apply(removed([2]))
        assert await modes.agree(view) == ({3}, 0), "the window group holds the second block alone, by the same hash"
        await modes.apply(removed([2], group=1), stored([5], [2], 1), stored([5], [2], 1, **window))
        assert await modes.agree(view) == ({3, 5}, 0), "another hash holds the block, the removed one stands for nothing"
        await modes.apply(stored([2], [2], 1), stored([2], [2], 1, **window))
        assert await modes.agree(view) == ({2, 3, 5}, 3)
        await modes.apply(offloaded([1, 2, 3]), offloaded([2, 3], group=1), Cleared())
        assert await modes.agree(view) == ({2, 3, 5}, 3), "below the gpu too each group has its own"
        await modes.apply(removed([2], CPU, group=1))
        assert await modes.agree(view) == ({3}, 0)
        await modes.apply(removed([3], CPU))
        assert await modes.agree(view) == (set(), 0)
        await modes.apply(stored([1, 2, 3], [1, 2, 3]), stored([1, 2, 3], [1, 2, 3], **window))
        await modes.drop_held()
        assert await modes.agree(view) == (set(), 0)
        await modes.apply(offloaded([1, 2, 3]), offloaded([1, 2, 3], group=1))
        assert await modes.agree(view) == ({1, 2, 3, 5}, 3), "a lost stream's hashes are remembered"


async def test_all_modes_answer_the_same_where_groups_have_blocks_of_different_sizes(server: RedisServer) -> None:
    """The full group's blocks are twice as long as the window group's: its hashes are those of every second block."""
    window = {"group": 1, "kind": "sliding_window", "window": BLOCK_SIZE + 1}

    async with both_modes(server) as (modes, view):
        chains: list[tuple[int, ...]] = [(1, 2), (1, 2, 3), (1, 2, 3, 4)]

        async def matched() -> list[int]:
            await modes.agree(view, chains)
            return [answers(modes.embedded, chains)[chain][0] for chain in chains]

        await modes.apply(stored([2], [1], block_size=2 * BLOCK_SIZE))
        assert await matched() == [0, 0, 0], "the first hash is not known"
        # The keys lie closer together now: what was held before is read anew.
        await modes.apply(stored([1, 2, 3, 4], [1, 1, 2, 2], **window), stored([2], [1], block_size=2 * BLOCK_SIZE))
        assert await matched() == [1, 1, 1], "in blocks that a hit is a multiple of"
        await modes.apply(stored([4], [2], 2, block_size=2 * BLOCK_SIZE))
        assert await matched() == [1, 1, 2]
        await modes.apply(removed([4], group=1))
        assert await matched() == [1, 1, 1], "the window group lost the last one"
        await modes.apply(removed([1, 3], group=1), stored([4], [2], 3, **window))
        assert await matched() == [0, 0, 0], "hashes that only the window group had stand for nothing"
        await modes.apply(stored([1, 2, 3], [1, 1, 2], **window))
        assert await matched() == [1, 1, 2]
        await modes.apply(removed([2], group=0))
        assert await matched() == [0, 0, 0], "the full group lacks what the window group holds by the same hash"
        await modes.apply(Cleared())
        assert await matched() == [0, 0, 0]

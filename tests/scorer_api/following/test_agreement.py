"""What a scorer answers follows from what Redis holds: whoever followed from the start, loads in between or at the end, or asks after a takeover.

Random histories of one stream. The content of a block is a number, and so is its engine hash: several hashes have the same content, as two images
have the same placeholders. The reference is the owner's own state, by the keys of some prompts.
"""

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.events import Cleared, Event, Tier
from indexer.core.names import StreamKey
from scorer_api.following.follower import Follower
from scorer_api.index.view import View
from scorer_api.metrics import FollowerMetrics
from tests.events import offloaded, removed, stored
from tests.owner import keys_of, owner_of, settings_of
from tests.redis_server import RedisServer
from tests.waiting import wait_until_async

KEY = StreamKey("m", "a", 0)
CONTENTS = range(1, 5)
# Hash → content: three of each, the later ones behind another parent too.
HASHES = {10 * content + number: content for content in CONTENTS for number in range(3)}
PROMPTS = [[content, *rest] for content in CONTENTS for rest in ([], [1], [2], [2, 3])]
STEPS, CHECKED_EVERY = 24, 8
TIERS = (Tier.GPU, Tier.CPU)


def history(seed: int, *, announces_extra_keys: bool) -> list[list[Event]]:
    rng = random.Random(seed)

    def event() -> Event:
        match rng.choices(("store", "chain", "remove", "offload", "forget", "clear"), (6, 4, 6, 3, 2, 1))[0]:
            case "store":
                engine_hash = rng.choice(list(HASHES))
                return stored([engine_hash], [HASHES[engine_hash]], announces_extra_keys=announces_extra_keys)
            case "chain":
                one, two = rng.sample(list(HASHES), 2)
                # A hash stands for a block behind its parent: here each has one of its own for each parent.
                return stored([1000 * one + two], [HASHES[two]], one, announces_extra_keys=announces_extra_keys)
            case "remove":
                return removed(rng.sample(list(HASHES), 3))
            case "offload":
                return offloaded([rng.choice(list(HASHES))], announces_extra_keys=announces_extra_keys)
            case "forget":
                return removed(rng.sample(list(HASHES), 3), Tier.CPU)
            case _:
                return Cleared()

    return [[event() for _ in range(rng.randint(1, 4))] for _ in range(STEPS)]


@asynccontextmanager
async def scorer(settings: Settings) -> AsyncIterator[tuple[Follower, View]]:
    view = View(settings, "redis")
    async with Follower(settings, view, FollowerMetrics(CollectorRegistry(), view)) as follower:
        yield follower, view


def held_in(view: View) -> dict[Tier, set[int]]:
    """Which keys of the prompts a scorer finds in each tier."""
    holders = view._find(KEY)[1].holders if view.has_model(KEY.model) else None
    return {tier: set() if holders is None else {key for key in KEYS if holders.holds(tier, key)} for tier in TIERS}


KEYS = {key for prompt in PROMPTS for key in keys_of("m", prompt)}


@pytest.mark.parametrize("announces_extra_keys", [False, True], ids=["no extra keys", "extra keys"])
@pytest.mark.parametrize("seed", range(8))
async def test_all_scorers_and_the_next_owner_agree(server: RedisServer, seed: int, announces_extra_keys: bool) -> None:
    settings = settings_of(server)
    async with AsyncExitStack() as stack:
        owner = await stack.enter_async_context(owner_of(settings))
        stream = await owner.own(KEY)
        _, first = await stack.enter_async_context(scorer(settings))
        views = [first]
        for number, batch in enumerate(history(seed, announces_extra_keys=announces_extra_keys), 1):
            stream.apply(*batch)
            if number % CHECKED_EVERY:
                continue
            await stream.flushed()
            late, view = await stack.enter_async_context(scorer(settings))
            await wait_until_async(lambda late=late: late.is_settled)  # type: ignore[misc]
            views.append(view)
            expected = {tier: stream.state.held(tier) & KEYS for tier in TIERS}
            for seen in views:
                await wait_until_async(lambda seen=seen, expected=expected: held_in(seen) == expected)  # type: ignore[misc]
            next_owner = await stack.enter_async_context(owner_of(settings, f"owner {number}"))
            taken = await next_owner.own(KEY, "force")
            assert {tier: taken.state.held(tier) & KEYS for tier in expected} == expected
            owner.is_keeping = False
            owner.streams.clear()
            owner, stream = next_owner, taken

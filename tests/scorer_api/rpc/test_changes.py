"""What clients that watch are told, whatever their speed."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from indexer.http.problems import Problem
from indexer.streams.pool import PodStatus
from indexer.streams.status import StreamStatus
from scorer_api.rpc.changes import LOOKS_MAX, MESSAGE_CHANGES_MAX, Changes
from scorer_api.rpc.metrics import RpcMetrics
from tests.scorer_stub import messages
from tests.waiting import wait_until_async

WATCHES_MAX = 3


def stream(rank: int = 0, trust: Any = "live", *, restarts: int = 0, connected: bool = True, last_error: str | None = None) -> StreamStatus:
    return StreamStatus(rank, 1, trust, connected, 16, {}, 1, 0, 0, restarts, 0.0, last_error)


class Fleet:
    """The pods, and how often they were looked at."""

    def __init__(self) -> None:
        self.pods: dict[tuple[str, str], list[StreamStatus]] = {}
        self.looks = 0
        self.is_broken = False
        self.registry = CollectorRegistry()
        self.changes = Changes(self.look, 0.001, WATCHES_MAX, RpcMetrics(self.registry))

    def look(self) -> Iterator[PodStatus]:
        self.looks += 1
        assert not self.is_broken
        for (pod, model), streams in self.pods.items():
            yield PodStatus(pod, model, streams)

    async def wait_for_looks(self, count: int) -> None:
        """So many whole looks from now on."""
        enough = self.looks + count + 1
        await wait_until_async(lambda: self.looks >= enough)

    @asynccontextmanager
    async def watch(self, model: str | None = None) -> AsyncIterator[AsyncGenerator[bytes, None]]:
        watch = self.changes.watch(model)
        try:
            yield watch
        finally:
            await watch.aclose()


async def told(watch: AsyncGenerator[bytes, None]) -> list[tuple[str, Any]]:
    """The next message, as (kind, change)."""
    found = messages.Changes.FromString(await asyncio.wait_for(anext(watch), 30))
    return [(kind := change.WhichOneof("change"), getattr(change, kind)) for change in found.changes]


async def kinds(watch: AsyncGenerator[bytes, None]) -> list[str]:
    return [kind for kind, _ in await told(watch)]


async def test_it_begins_with_all_that_there_is() -> None:
    fleet = Fleet()
    fleet.pods = {("a", "m"): [stream(0), stream(1, "stale", connected=False)]}
    async with fleet.watch() as watch:
        (appeared, first, second) = await told(watch)
        assert (appeared[0], appeared[1].pod, appeared[1].model) == ("pod_appeared", "a", "m")
        assert (first[0], first[1].rank, first[1].trust, first[1].connected) == ("stream_appeared", 0, "live", True)
        assert (second[1].rank, second[1].trust, second[1].connected) == (1, "stale", False)
        assert await kinds(watch) == ["up_to_date"]


async def test_then_come_changes() -> None:
    fleet = Fleet()
    fleet.pods = {("a", "m"): [stream()]}
    async with fleet.watch() as watch:
        assert [await kinds(watch), await kinds(watch)] == [["pod_appeared", "stream_appeared"], ["up_to_date"]]
        fleet.pods = {("a", "m"): [stream(trust="stale", restarts=2, connected=False, last_error="away")]}
        restarted, disconnected, changed = await told(watch)
        assert (restarted[0], restarted[1].times) == ("restarted", 2)
        assert (disconnected[0], disconnected[1].why) == ("disconnected", "away")
        assert (changed[0], changed[1].before, changed[1].trust) == ("trust_changed", "live", "stale")
        fleet.pods = {("a", "m"): [stream(1, restarts=2)]}
        assert await kinds(watch) == ["stream_gone", "stream_appeared"]
        fleet.pods = {}
        assert await kinds(watch) == ["pod_gone"]


async def test_only_of_one_model() -> None:
    fleet = Fleet()
    fleet.pods = {("a", "other"): [stream()]}
    async with fleet.watch("m") as watch:
        assert await kinds(watch) == ["up_to_date"]
        fleet.pods = {("a", "other"): [], ("b", "m"): []}
        ((kind, change),) = await told(watch)
        assert (kind, change.pod) == ("pod_appeared", "b")


async def test_a_slow_client_gets_the_looks_that_are_kept() -> None:
    fleet = Fleet()
    async with fleet.watch() as watch:
        assert await kinds(watch) == ["up_to_date"]
        for name in "abc":
            fleet.pods = {**fleet.pods, (name, "m"): []}
            await fleet.wait_for_looks(1)
        seen = [change.pod for _ in range(3) for _, change in await told(watch)]
        assert seen == ["a", "b", "c"]
        assert fleet.registry.get_sample_value("kv_indexer_rpc_watch_missed_total") == 0


async def test_a_client_that_is_too_slow_is_told_so_and_then_all_anew() -> None:
    fleet = Fleet()
    fleet.pods = {("a", "m"): []}
    async with fleet.watch() as watch:
        assert [await kinds(watch), await kinds(watch)] == [["pod_appeared"], ["up_to_date"]]
        fleet.pods = {("b", "m"): []}
        await fleet.wait_for_looks(LOOKS_MAX + 2)
        assert await kinds(watch) == ["missed"]
        ((kind, change),) = await told(watch)
        assert (kind, change.pod) == ("pod_appeared", "b")
        assert await kinds(watch) == ["up_to_date"]
        assert fleet.registry.get_sample_value("kv_indexer_rpc_watch_missed_total") == 1


async def test_nothing_that_a_client_does_not_take_is_kept() -> None:
    fleet = Fleet()
    async with fleet.watch() as watch:
        assert await kinds(watch) == ["up_to_date"]
        for number in range(3 * LOOKS_MAX):
            fleet.pods = {(str(number), "m"): []}
            await fleet.wait_for_looks(1)
        assert len(fleet.changes._looks) == LOOKS_MAX


async def test_many_changes_take_several_messages() -> None:
    fleet = Fleet()
    fleet.pods = {(str(number), "m"): [] for number in range(MESSAGE_CHANGES_MAX + 1)}
    async with fleet.watch() as watch:
        assert [len(await told(watch)), len(await told(watch)), await kinds(watch)] == [MESSAGE_CHANGES_MAX, 1, ["up_to_date"]]


async def test_nobody_looks_where_nobody_watches() -> None:
    fleet = Fleet()
    async with fleet.watch() as watch:
        await told(watch)
    before = fleet.looks
    await asyncio.sleep(0.05)
    assert fleet.looks == before
    fleet.pods = {("a", "m"): []}
    async with fleet.watch() as watch:
        assert [await kinds(watch), await kinds(watch)] == [["pod_appeared"], ["up_to_date"]], "nothing of before is told"
    assert fleet.registry.get_sample_value("kv_indexer_rpc_watches") == 0


async def test_a_look_that_fails_is_followed_by_another(caplog: pytest.LogCaptureFixture) -> None:
    fleet = Fleet()
    async with fleet.watch() as watch:
        assert await kinds(watch) == ["up_to_date"]
        fleet.is_broken = True
        await fleet.wait_for_looks(1)
        assert "look at the pods failed" in caplog.messages
        fleet.is_broken, fleet.pods = False, {("a", "m"): []}
        assert await kinds(watch) == ["pod_appeared"]


@pytest.mark.rule("G4")
async def test_there_is_room_for_so_many() -> None:
    fleet = Fleet()
    watches = [fleet.changes.watch(None) for _ in range(WATCHES_MAX + 1)]
    for watch in watches[:-1]:
        await told(watch)
    with pytest.raises(Problem, match="there are 3 watches") as caught:
        await anext(watches[-1])
    assert caught.value.status == 429
    await watches[0].aclose()
    async with fleet.watch() as another:
        assert await kinds(another) == ["up_to_date"]
    for watch in watches:
        await watch.aclose()


async def test_they_end_with_the_service() -> None:
    fleet = Fleet()
    async with fleet.watch() as watch:
        await told(watch)
        waiting = asyncio.create_task(anext(watch))
        await asyncio.sleep(0)
        fleet.changes.end()
        with pytest.raises(Problem, match="the service ends") as caught:
            await waiting
        assert caught.value.status == 503

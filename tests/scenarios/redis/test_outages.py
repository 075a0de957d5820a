"""Redis restarts, forgets, hangs, is full or read-only. Scorers answer all the time, indexers go on, and afterwards all is as the engines said."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.fleet import Fleet
from tests.running import Client, Command
from tests.scenarios.redis.world import Explained, World, age_s, readiness, wait_owned, wait_ready
from tests.waiting import wait_until

mechanism = pytest.mark.mechanism
MakeWorld = Callable[..., World]
# Engines are asked for nothing by themselves, so that whatever they are asked is because of the outage.
NO_PROBES = {"silence_s": "3600", "silence_max_s": "3600"}
# A live answer may be as old as this: four times what is promised.
LIVE_S = 4.0
OUTAGE_S = 4.0
HANG_S = 10.0


def settled(world: World, fleet: Fleet, **settings: str) -> tuple[list[Command], list[Command]]:
    """Two indexers and two scorers that know what the fleet holds after some hundred batches."""
    indexers, scorers = world.sharing_indexers(fleet, **settings), world.scorers(2)
    wait_owned(scorers[0], len(fleet.publishers), by=2)
    wait_ready(*indexers, *scorers)
    fleet.play(300)
    fleet.settle(*scorers)
    return indexers, scorers


def wait_degraded(*clients: Client) -> None:
    """Wait until each says, with 200, that it is degraded, and that it is Redis."""
    for client in clients:

        def says_so(client: Client = client) -> bool:
            code, status, reasons = readiness(client)
            assert code == 200
            return status == "degraded" and any("redis" in reason.lower() for reason in reasons)

        wait_until(says_so, 20, "a process to say that Redis is away")


@contextmanager
def asked_nothing(fleet: Fleet) -> Iterator[None]:
    """No engine is asked for a replay, and none sees a new subscription."""

    def seen() -> list[tuple[int, int]]:
        return [(len(publisher.engine.asked), publisher.engine.subscriptions()) for publisher in fleet.publishers]

    before = seen()
    yield
    assert seen() == before


@mechanism("no_buffering")
def test_redis_restarts_with_its_data(make_world: MakeWorld) -> None:
    """Indexers buffer, then flush in order. Scorers answer all the time, and say how old their view is."""
    world = make_world(pod_expiry_s=30, appendonly="yes")
    fleet = world.fleet(streams=4)
    indexers, scorers = settled(world, fleet)
    fleet.resume()
    explained = Explained(fleet, LIVE_S)
    explained.during(1, *scorers)
    world.redis.kill()
    until_s = time.monotonic() + OUTAGE_S
    wait_degraded(*indexers, *scorers)
    ages = []
    while time.monotonic() < until_s or not ages or ages[-1] < 1:
        explained.once(*scorers)
        ages.append(age_s(scorers[0], fleet))
    assert ages == sorted(ages)
    assert all(client.metric("kv_indexer_redis_up") == 0 for client in [*indexers, *scorers])
    with asked_nothing_but_probes(fleet):
        world.redis.start()
        wait_ready(*indexers, *scorers)
        explained.during(1, *scorers)
        fleet.settle(*scorers)
    assert all(client.metric("kv_indexer_redis_up") == 1 for client in [*indexers, *scorers])
    assert explained.wrong == []
    wait_until(lambda: age_s(scorers[0], fleet) < 4)
    assert sum(indexer.metric("kv_indexer_restarts_total") for indexer in indexers) == 0


@contextmanager
def asked_nothing_but_probes(fleet: Fleet) -> Iterator[None]:
    """No engine is asked to begin anew."""
    before = [len(publisher.engine.asked) for publisher in fleet.publishers]
    recent = [publisher.engine.next_number // 2 for publisher in fleet.publishers]
    yield
    for publisher, count, least in zip(fleet.publishers, before, recent, strict=True):
        assert all(start >= least for start in publisher.engine.asked[count:])


@mechanism("no_full_write")
def test_redis_comes_back_empty(world: World) -> None:
    """The owners write their full state again as a new generation. Scorers end up right, and no engine is asked for anything."""
    fleet = world.fleet(streams=4)
    indexers, scorers = settled(world, fleet, **NO_PROBES)
    with asked_nothing(fleet):
        world.redis.kill()
        wait_degraded(*indexers, *scorers)
        fleet.play(100)
        world.redis.start(with_data=False)
        wait_ready(*indexers, *scorers)
        fleet.settle(*scorers)
        fleet.play(100)
        fleet.settle(*scorers)
        (late,) = world.scorers(1)
        fleet.settle(late, *scorers)


@mechanism("no_full_write")
def test_redis_comes_back_older_than_what_was_written(world: World) -> None:
    """An old snapshot is put back: the same as if it were empty."""
    fleet = world.fleet(streams=4)
    indexers, scorers = settled(world, fleet, **NO_PROBES)
    with asked_nothing(fleet):
        snapshot = world.redis.save()
        fleet.play(300)
        fleet.settle(*scorers)
        world.redis.kill()
        world.redis.put_back(snapshot)
        world.redis.start()
        wait_ready(*indexers, *scorers)
        fleet.settle(*scorers)
        fleet.play(100)
        fleet.settle(*scorers)
        (late,) = world.scorers(1)
        fleet.settle(late, *scorers)


@mechanism("no_full_write")
def test_redis_comes_back_older_and_the_engines_stay_silent(world: World) -> None:
    """Nobody has anything to write that would show it: the owners notice by themselves."""
    fleet = world.fleet(streams=4)
    indexers, scorers = settled(world, fleet)
    snapshot = world.redis.save()
    fleet.play(200)
    fleet.settle(*scorers)
    world.redis.kill()
    world.redis.put_back(snapshot)
    world.redis.start()
    wait_ready(*indexers, *scorers)
    (late,) = world.scorers(1)
    fleet.settle(late, *scorers)


@mechanism("requests_wait")
def test_redis_hangs(make_world: MakeWorld) -> None:
    """SIGSTOP for ten seconds: the receive loops go on, buffers stay within their limits, no request waits on Redis."""
    world = make_world(pod_expiry_s=60)
    fleet = world.fleet(streams=4)
    # With this patience a request that waited for Redis would wait until it is thawed.
    patient = {"redis_timeout_s": str(4 * HANG_S)}
    indexers, scorers = world.indexers(2, fleet), world.scorers(1, **patient) + world.scorers(1)
    wait_ready(*indexers, *scorers)
    fleet.resume()
    explained = Explained(fleet, LIVE_S)
    explained.during(1, *scorers)
    received = sum(indexer.metric("kv_indexer_batches_total") for indexer in indexers)
    world.redis.freeze()
    until_s = time.monotonic() + HANG_S
    slowest_s = 0.0
    while time.monotonic() < until_s:
        explained.once(*scorers)
        for client in (*indexers, *scorers):
            for path in ("healthz", "readyz", "metrics", "v1/pods", "v1/models"):
                started_s = time.monotonic()
                client.http.get(f"{client.url}/{path}")
                slowest_s = max(slowest_s, time.monotonic() - started_s)
    wait_degraded(*indexers, scorers[1])
    assert max(slowest_s, explained.slowest_s) < HANG_S / 2
    published = fleet.batches
    wait_until(lambda: sum(indexer.metric("kv_indexer_batches_total") for indexer in indexers) >= published, what="all batches to be received")
    assert sum(indexer.metric("kv_indexer_batches_total") for indexer in indexers) > received
    assert all(indexer.metric("kv_indexer_inbox_dropped_frames_total") == 0 for indexer in indexers)
    world.redis.thaw()
    wait_ready(*indexers, *scorers)
    explained.during(1, *scorers)
    fleet.settle(*scorers)
    assert explained.wrong == []


def refuse_as_full(world: World) -> Callable[[], object]:
    client = world.redis.client()
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", client.info("memory")["used_memory"] // 2)
    return lambda: client.config_set("maxmemory", "0")


def refuse_as_read_only(world: World) -> Callable[[], object]:
    """A master that was made a replica of one which is not there."""
    client = world.redis.client()
    client.replicaof("127.0.0.1", "1")
    return lambda: client.replicaof("NO", "ONE")


@mechanism("no_buffering")
@pytest.mark.parametrize("refuse", [refuse_as_full, refuse_as_read_only], ids=["full", "read-only"])
def test_redis_refuses_writes(make_world: MakeWorld, refuse: Callable[[World], Callable[[], object]]) -> None:
    """One log line, metrics and /readyz say so; recovery without a restart."""
    world = make_world(pod_expiry_s=30)
    fleet = world.fleet(streams=4)
    indexers, scorers = settled(world, fleet)
    said = [len(indexer.lines) for indexer in indexers]
    relent = refuse(world)
    fleet.resume()
    wait_degraded(*indexers)
    explained = Explained(fleet, LIVE_S)
    explained.during(OUTAGE_S, *scorers)
    for indexer, count in zip(indexers, said, strict=True):
        complaints = [line for line in indexer.lines[count:] if re.search("warn|error", line, re.IGNORECASE) and "redis" in line.lower()]
        assert len(complaints) == 1, "\n".join(complaints)
    relent()
    wait_ready(*indexers, *scorers)
    fleet.settle(*scorers)
    assert explained.wrong == []
    assert all(indexer.is_running for indexer in indexers)


def test_indexers_and_scorers_start_while_redis_is_away(world: World) -> None:
    """They wait for it, and say so; neither is ready before."""
    fleet = world.fleet(streams=2)
    world.redis.kill()
    (indexer,), (scorer,) = world.indexers(1, fleet), world.scorers(1)
    fleet.play(50)
    for client in (indexer, scorer):
        _, status, reasons = readiness(client)
        assert status != "ready"
        assert any("redis" in reason.lower() for reason in reasons)
    assert readiness(scorer)[0] == 503
    world.redis.start()
    wait_ready(indexer, scorer)
    fleet.settle(scorer)


def test_redis_and_an_indexer_go_at_once(world: World) -> None:
    """The survivor waits one lease before it takes what is not its own, and then has everything."""
    fleet = world.fleet(streams=6)
    indexers, scorers = settled(world, fleet)
    fleet.resume()
    killing = threading.Thread(target=indexers[0].kill)
    killing.start()
    world.redis.kill()
    killing.join()
    wait_degraded(*scorers)
    world.redis.start(with_data=False)
    wait_owned(scorers[0], 6, by=1, timeout_s=30)
    fleet.settle(*scorers)

"""The master that Sentinels watch over dies, or is cut off from them and goes on. All go on with the new one, which soon has what only that one had.

A failover takes some seconds here: one second of silence counts as down.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.fleet import Fleet
from tests.redis_sentinel import WatchedRedis, WatchedServer
from tests.running import Client
from tests.scenarios.redis.test_expiry import delete, put
from tests.scenarios.redis.test_outages import LIVE_S, NO_PROBES, asked_nothing, asked_nothing_but_probes, settled, wait_degraded
from tests.scenarios.redis.world import Explained, World, owners, readiness, wait_owned, wait_ready
from tests.waiting import wait_until

# Sentinels take their time, twice where the former master comes back.
pytestmark = pytest.mark.timeout(300)
mechanism = pytest.mark.mechanism
MakeWorld = Callable[..., World]
# Four times the pause between two questions to the Sentinels, and some more for a small machine.
LEFT_S = 8.0
ALONE_S = 3.0
POD_EXPIRY_S = 24.0


@pytest.fixture
def world(make_world: MakeWorld) -> World:
    return make_world(pod_expiry_s=POD_EXPIRY_S, make_redis=WatchedRedis)


def watched(world: World) -> WatchedRedis:
    assert isinstance(world.redis, WatchedRedis)
    return world.redis


def wait_left(server: WatchedServer) -> None:
    wait_until(lambda: server.visitors() == 0, LEFT_S, lambda: f"all to leave the former master; {server.visitors()} connections are left")


def end(world: World, fleet: Fleet, *scorers: Client) -> None:
    """All are right, a new scorer too, and go on to be."""
    wait_ready(*scorers)
    fleet.settle(*scorers)
    fleet.play(100)
    (late,) = world.scorers(1)
    fleet.settle(late, *scorers)


@mechanism("no_buffering")
@pytest.mark.parametrize(
    "lose",
    [
        pytest.param(WatchedServer.kill, id="killed"),
        pytest.param(WatchedServer.freeze, id="frozen", marks=pytest.mark.failovers),
    ],
)
def test_the_master_is_lost(world: World, lose: Callable[[WatchedServer], None]) -> None:
    """Indexers buffer, then flush in order to the new master, which knows none of the scripts. Scorers answer all the time."""
    redis = watched(world)
    fleet = world.fleet(streams=4)
    indexers, scorers = settled(world, fleet)
    fleet.resume()
    explained = Explained(fleet, LIVE_S)
    explained.during(1, *scorers)
    former = redis.master
    with asked_nothing_but_probes(fleet):
        lose(former)
        wait_degraded(*scorers)
        explained.during(1, *scorers)
        master = redis.wait_master(other_than=former)
        # By their text, which a server that knows a script is not sent.
        wait_until(lambda: master.commands()["eval"] > 0, 20, "the new master to be told the scripts")
        wait_ready(*indexers, *scorers)
        explained.during(1, *scorers)
        fleet.settle(*scorers)
    assert explained.wrong == []
    if former.is_running:
        former.thaw()
    else:
        former.start()
    redis.wait_replica(former)
    end(world, fleet, *scorers)


@mechanism("no_full_write")
@pytest.mark.parametrize("publishes", [pytest.param(False, id="silent", marks=pytest.mark.failovers), pytest.param(True, id="busy")])
def test_the_failover_loses_what_was_acknowledged(world: World, publishes: bool) -> None:
    """The replica had not got it when the master died. The owners notice, and write again; no engine is asked for anything."""
    redis = watched(world)
    fleet = world.fleet(streams=4)
    indexers, scorers = settled(world, fleet, **NO_PROBES)
    former = redis.master
    with asked_nothing(fleet):
        former.set_cut_off(True, users=["replica"])
        fleet.play(300)
        fleet.settle(*scorers)
        former.kill()
        if publishes:
            fleet.resume()
        redis.wait_master(other_than=former)
        wait_ready(*indexers, *scorers)
        fleet.settle(*scorers)
        (late,) = world.scorers(1)
        fleet.settle(late, *scorers)
    assert sum(indexer.metric("kv_indexer_redis_full_writes_total", reason="went_back") for indexer in indexers) > 0


@mechanism("sentinels_asked_when_something_fails")
def test_the_master_is_cut_off_and_goes_on(world: World) -> None:
    """Its Sentinels and its replica do not reach it; indexers and scorers do, and find nothing wrong with it. Once there is another master they leave
    this one within seconds, and write again what only it had. When it is back it is a replica, and what it had does not count."""
    redis = watched(world)
    fleet = world.fleet(streams=4)
    indexers, scorers = settled(world, fleet)
    fleet.resume()
    explained = Explained(fleet, LIVE_S)
    explained.during(1, *scorers)
    former = redis.master
    with asked_nothing_but_probes(fleet):
        redis.cut_off(former)
        explained.during(ALONE_S, *scorers)
        redis.wait_master(other_than=former)
        began_s = time.monotonic()
        wait_left(former)
        explained.during(max(1.0, LEFT_S - (time.monotonic() - began_s)), *scorers)
        wait_ready(*indexers, *scorers)
        fleet.settle(*scorers)
        fleet.resume()
        redis.heal(former)
        explained.during(1, *scorers)
        fleet.settle(*scorers)
    assert explained.wrong == []
    end(world, fleet, *scorers)


@pytest.mark.failovers
@mechanism("leases_without_end")
def test_the_master_and_an_indexer_are_lost_at_once(world: World) -> None:
    """The survivor takes over all streams on the new master, and lacks nothing that the engines' histories hold."""
    redis = watched(world)
    fleet = world.fleet(streams=4)
    indexers, scorers = settled(world, fleet)
    fleet.resume()
    former = redis.master
    redis.cut_off(former)
    indexers[0].kill()
    redis.wait_master(other_than=former)
    wait_owned(scorers[0], 4, by=1, timeout_s=40)
    wait_left(former)
    end(world, fleet, *scorers)


@contextmanager
def replica_left_behind(redis: WatchedRedis) -> Iterator[None]:
    """What is written meanwhile only the master has, which dies at the end. Returns once there is another."""
    former = redis.master
    former.set_cut_off(True, users=["replica"])
    yield
    former.kill()
    redis.wait_master(other_than=former)


def test_redis_and_sentinels_ask_for_passwords(make_world: MakeWorld) -> None:
    """Both are given by the URL, and no process shows one."""
    world = make_world(pod_expiry_s=POD_EXPIRY_S, make_redis=WatchedRedis, sentinel_word="t0p:s/e")
    redis = watched(world)
    fleet = world.fleet(streams=2)
    (indexer,), (scorer,) = world.indexers(1, fleet), world.scorers(1)
    wait_owned(scorer, 2, by=1)
    fleet.play(100)
    fleet.settle(scorer)
    former = redis.master
    former.kill()
    redis.wait_master(other_than=former)
    fleet.play(100)
    fleet.settle(scorer)
    said = "\n".join(line for command in (indexer, scorer) for line in command.lines)
    assert "redis" in said
    assert not any(secret in said for secret in ("t0p", "e:cr@t", "cr%40t"))


@pytest.mark.failovers
@mechanism("registrations_are_not_repeated")
def test_the_failover_loses_what_was_done_to_pods(world: World) -> None:
    """One pod was registered and another one deleted at a scorer; both were acknowledged, and only the master that died knew."""
    redis = watched(world)
    fleet, other = world.fleet(streams=1), world.fleet(streams=1, pod_prefix="other-")
    (indexer,), scorers = world.indexers(1), world.scorers(2)
    assert put(scorers[0], fleet, fleet.pods[0]) == 201
    wait_owned(scorers[0], 1, by=1)
    fleet.play(100)
    fleet.settle(*scorers)
    # The indexer learns nothing of it: it is no help.
    indexer.freeze()
    with replica_left_behind(redis):
        assert put(scorers[0], other, other.pods[0]) == 201
        assert delete(scorers[0], fleet.pods[0]) == 204
    indexer.thaw()
    wait_until(lambda: owners(scorers[1]).keys() == {(other.pods[0], 0)}, 30, lambda: f"the one pod to be there; there are {owners(scorers[1])}")
    other.play(100)
    other.settle(*scorers)
    assert owners(scorers[1]).keys() == {(other.pods[0], 0)}
    assert delete(scorers[0], other.pods[0]) == 204


@pytest.mark.failovers
@mechanism("sentinels_asked_when_something_fails")
def test_a_master_without_replicas_refuses(make_world: MakeWorld) -> None:
    """`min-replicas-to-write`: a master that is cut off takes nothing any more. It is said, nothing is trusted, and the next master takes all."""
    world = make_world(pod_expiry_s=POD_EXPIRY_S, make_redis=WatchedRedis, replicas=2, min_replicas_to_write="1", min_replicas_max_lag="1")
    redis = watched(world)
    fleet = world.fleet(streams=2)
    (indexer,), scorers = world.indexers(1, fleet), world.scorers(1)
    wait_ready(indexer, *scorers)
    fleet.play(100)
    fleet.settle(*scorers)
    former = redis.master
    former.set_cut_off(True, users=["replica"])
    fleet.resume()
    wait_until(lambda: any("short of replicas" in reason for reason in readiness(indexer)[2]), 20, "the indexer to say so")
    wait_until(lambda: trusts(scorers[0], fleet) == {"stale"}, 20, "the streams to be stale")
    redis.cut_off(former)
    redis.wait_master(other_than=former)
    wait_left(former)
    wait_ready(indexer, *scorers)
    end(world, fleet, *scorers)


def trusts(scorer: Client, fleet: Fleet) -> set[str]:
    return {pod["trust"] for pod in scorer.score(fleet.texts[0].tokens, fleet.model)["pods"]}

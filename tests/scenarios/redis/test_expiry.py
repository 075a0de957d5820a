"""What goes with a pod that restarts, goes for good, or is deleted, and what stays with one that is only idle."""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.engine import stored
from tests.fleet import Fleet
from tests.running import Client, Command
from tests.scenarios.redis.test_followers import bulk_is_right, bulk_tokens, publish_bulk
from tests.scenarios.redis.world import World, readiness, wait_owned, wait_ready
from tests.waiting import wait_until

mechanism = pytest.mark.mechanism
MakeWorld = Callable[..., World]
SHORT_S = 6.0
# What two drops may differ in, whatever was held: signs of life that come by time. Blocks one by one, or by the thousand, are more.
CALLS_BY_TIME = 40


def restarted(world: World, fleet: Fleet, scorers: list[Command], held: list[int]) -> Counter[str]:
    """The pod restarts and publishes one batch. Returns what Redis was asked to do with blocks meanwhile."""
    new = [2**31 + len(held) * fleet.publishers[0].lives + position for position in range(5)]
    with world.redis.counting() as calls:
        fleet.restart("pod-0")
        fleet.publishers[0].engine.publish(stored([1], new[:4]))
        for scorer in scorers:
            wait_until(lambda scorer=scorer: scorer.matched(new, "pod-0") == 4, 20, "the new life's first batch to be seen")
            # In the same moment the old life's are gone: nothing waits here.
            assert scorer.matched(held, "pod-0") == 0
    return Counter({name: count for name, count in calls.items() if name in ("hset", "hdel", "hscan", "hmset", "del")})


@mechanism("drop_block_by_block")
@pytest.mark.timeout(240)
def test_a_pod_restarts(make_world: MakeWorld) -> None:
    """Its old blocks are gone everywhere within one batch, at a cost in Redis that does not depend on their number."""
    world = make_world(pod_expiry_s=20)
    fleet = world.fleet(streams=1)
    world.indexers(2, fleet)
    scorers = world.scorers(2)
    for scorer in scorers:
        wait_owned(scorer, 1, by=1)
    costs = []
    for copies in (640, 128_000):
        prompts = publish_bulk(fleet, copies)
        for scorer in scorers:
            wait_until(lambda scorer=scorer, prompts=prompts: bulk_is_right(fleet, scorer, prompts), 60, "the bulk to be indexed")
        costs.append(restarted(world, fleet, scorers, [*bulk_tokens(0, prompts - 1), 1]))
    assert costs[1].total() < costs[0].total() + CALLS_BY_TIME, costs


def keys_of(world: World, pod: str) -> list[bytes]:
    """The keys that hold what a pod's streams hold; who follows it is another matter."""
    return [name for name in world.redis.keys("kvi:") if pod.encode() in name and b"lease" not in name]


GONE = ("expired", 0)


def shown(scorer: Client, fleet: Fleet) -> dict[str, tuple[str, int]]:
    """Trust and matched blocks of each pod, for a prompt that some of them hold."""
    text = next(text for text in fleet.texts if sum(ranks[0][1][0] for _, ranks in fleet.expected(text)))
    return {pod["pod"]: (pod["trust"], pod["matched_blocks"]) for pod in fleet.ask(scorer, text).answer["pods"]}


@mechanism("gone_pods_are_kept")
def test_a_pod_goes_away_for_good_and_an_idle_one_keeps_everything(make_world: MakeWorld) -> None:
    """The keys of the one expire while its owner lives on; the other says nothing for much longer and loses nothing."""
    world = make_world(pod_expiry_s=SHORT_S)
    fleet = world.fleet(streams=4)
    world.indexers(2, fleet)
    scorers = world.scorers(2)
    fleet.play(200)
    fleet.settle(*scorers)
    assert keys_of(world, "pod-1")
    fleet.kill("pod-1")
    for scorer in scorers:
        wait_until(lambda scorer=scorer: shown(scorer, fleet).get("pod-1", GONE) == GONE, 10 * SHORT_S, "the gone pod to be dropped")
    wait_until(lambda: keys_of(world, "pod-1") == [], 4 * SHORT_S, "the gone pod's keys to expire")
    until_s = time.monotonic() + 2 * SHORT_S
    wait_until(lambda: time.monotonic() > until_s, 3 * SHORT_S)
    for scorer in scorers:
        pods = shown(scorer, fleet)
        assert pods.pop("pod-1", GONE) == GONE
        assert {trust for trust, _ in pods.values()} == {"live"}
    fleet.restart("pod-1")
    fleet.settle(*scorers)


@mechanism("keys_without_end")
def test_the_owners_die_with_no_successor(make_world: MakeWorld) -> None:
    """The streams are stale in every answer, then expired, and then nothing is left in Redis."""
    world = make_world(pod_expiry_s=2 * SHORT_S)
    fleet = world.fleet(streams=4)
    indexers, (scorer,) = world.indexers(2, fleet), world.scorers(1)
    fleet.play(200)
    fleet.settle(scorer)
    for indexer in indexers:
        indexer.kill()

    def trusts() -> set[str]:
        return {pod["trust"] for pod in scorer.score([1], fleet.model)["pods"]}

    wait_until(lambda: trusts() == {"stale"}, 20)
    world.redis.wait_empty(10 * SHORT_S, prefix="kvi:")
    response = None

    def is_forgotten_or_expired() -> bool:
        nonlocal response
        response = scorer.http.post(f"{scorer.url}/v1/score", json={"model": fleet.model, "token_ids": [1]})
        return response.status_code == 404 or {pod["trust"] for pod in response.json()["pods"]} == {"expired"}

    wait_until(is_forgotten_or_expired, 10 * SHORT_S)


def test_a_stream_whose_owner_cannot_reach_its_engine_is_stale(make_world: MakeWorld) -> None:
    world = make_world(pod_expiry_s=30)
    fleet = world.fleet(streams=2)
    world.indexers(2, fleet)
    scorers = world.scorers(2)
    fleet.play(50)
    fleet.settle(*scorers)
    fleet.kill("pod-0")
    for scorer in scorers:
        wait_until(lambda scorer=scorer: scorer.stream("pod-0")["trust"] == "stale", 20)
        wait_until(lambda scorer=scorer: {p["pod"]: p["trust"] for p in scorer.score([1])["pods"]} == {"pod-0": "stale", "pod-1": "live"}, 20)
    fleet.restart("pod-0")
    fleet.settle(*scorers)


# Pods that are registered over HTTP


def spec_of(fleet: Fleet, pod: str) -> dict[str, Any]:
    """What to PUT for a pod of one rank."""
    words = dict(word.split("=", 1) for word in fleet.specs[fleet.pods.index(pod)].split(","))
    return {key: value for key, value in words.items() if key != "pod"}


def put(client: Client, fleet: Fleet, pod: str) -> int:
    return int(client.http.put(f"{client.url}/v1/pods/{pod}", json=spec_of(fleet, pod)).status_code)


def delete(client: Client, pod: str) -> int:
    return int(client.http.delete(f"{client.url}/v1/pods/{pod}").status_code)


def pods_of(client: Client) -> set[str]:
    return {pod["pod"] for pod in client.http.get(f"{client.url}/v1/pods").json()["pods"]}


@mechanism("registrations_stay_local")
def test_a_pod_registered_through_any_replica_is_known_to_all(make_world: MakeWorld) -> None:
    """Through a scorer, an indexer, or one that is both; and who registers it twice replaces it."""
    world = make_world(pod_expiry_s=5)
    fleet = world.fleet(streams=2)
    indexers, scorers, (sidecar,) = world.indexers(1), world.scorers(2), world.sidecars(1)
    everybody = (*indexers, *scorers, sidecar)
    wait_ready(*everybody)
    assert put(scorers[0], fleet, "pod-0") == 201
    assert put(sidecar, fleet, "pod-1") == 201
    for client in everybody:
        wait_until(lambda client=client: pods_of(client) == {"pod-0", "pod-1"}, 20)
    assert put(scorers[1], fleet, "pod-0") == put(indexers[0], fleet, "pod-0") == 200
    fleet.play(100)
    fleet.settle(*scorers, sidecar)
    assert delete(scorers[1], "pod-0") == 204
    for client in everybody:
        wait_until(lambda client=client: pods_of(client) == {"pod-1"}, 20)
    assert delete(scorers[0], "pod-0") == 404
    wait_until(lambda: keys_of(world, "pod-0") == [], 20, "the deleted pod's keys to go")
    assert put(indexers[0], fleet, "pod-0") == 201
    fleet.settle(*scorers, sidecar)
    assert delete(indexers[0], "pod-0") == 204
    assert delete(sidecar, "pod-1") == 204


@mechanism("registrations_stay_local")
def test_registered_pods_survive_a_restart_of_everything_but_redis(make_world: MakeWorld) -> None:
    """And one that a flag names and that was deleted does not come back by itself with the next indexer that has the flag."""
    world = make_world(pod_expiry_s=10)
    fleet = world.fleet(streams=2)
    before = [*world.indexers(2), *world.scorers(1)]
    wait_ready(*before)
    for pod in fleet.pods:
        assert put(before[2], fleet, pod) == 201
    fleet.play(100)
    fleet.settle(before[2])
    for process in before:
        process.kill()
    fleet.play(50)
    indexers, (scorer,) = world.indexers(2), world.scorers(1)
    fleet.settle(scorer)
    for pod in fleet.pods:
        assert delete(scorer, pod) == 204
    for client in (*indexers, scorer):
        wait_until(lambda client=client: pods_of(client) == set(), 20)


def test_a_deleted_pod_that_comes_back_at_once_is_taken_up_again(make_world: MakeWorld) -> None:
    """Its stream is another one than the deleted: nothing of the old is in it."""
    world = make_world(pod_expiry_s=5)
    fleet = world.fleet(streams=1)
    world.indexers(1)
    (scorer,) = world.scorers(1)
    for _ in range(3):
        assert put(scorer, fleet, "pod-0") == 201
        fleet.play(20)
        fleet.settle(scorer)
        assert delete(scorer, "pod-0") == 204
    wait_until(lambda: pods_of(scorer) == set(), 20)
    assert readiness(scorer)[0] == 200

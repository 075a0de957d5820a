"""Three masters with a replica each: nodes die, hang, forget, and slots move, while events flow. What other nodes hold does not suffer."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from indexer.store.keyspace import Keyspace
from tests.fleet import Fleet
from tests.redis_cluster import Member, RedisCluster
from tests.running import Client, Command
from tests.scenarios.redis.test_outages import LIVE_S, NO_PROBES, asked_nothing
from tests.scenarios.redis.test_owners import TAKEOVER_S, settle_to_the_last_copy
from tests.scenarios.redis.world import NAMESPACE, ROUNDS_PAUSE_S, Explained, World, owners, wait_owned, wait_ready
from tests.waiting import wait_until

# Six nodes, four services and who asks them: on a busy machine it takes its time.
pytestmark = pytest.mark.timeout(300)
mechanism = pytest.mark.mechanism
MakeWorld = Callable[..., World]
KEYS = Keyspace(NAMESPACE)
DIRECTORY = KEYS.directory.pods
# Longer than a lease, and than a stream is trusted.
OUTAGE_S = 8.0
HANG_S = 4.0
MOVING_S = 2.0


def log_of(model: str) -> str:
    """A key in the model's slot."""
    return KEYS.model(model).log


def models_apart(cluster: RedisCluster) -> tuple[str, str]:
    """Two models that lie on two nodes, none of them the one with the directory."""
    found: dict[Member, str] = {cluster.owner_of(DIRECTORY): ""}
    for number in range(1000):
        found.setdefault(cluster.owner_of(log_of(f"model {number}")), f"model {number}")
        if len(found) == 3:
            break
    one, other = (model for model in found.values() if model)
    return one, other


class Two:
    """A world with two models on two nodes of a Cluster, two indexers and two scorers, all settled."""

    def __init__(self, make_world: MakeWorld, *, settings: dict[str, str] | None = None, redis_timeout_s: float = 1.0, **options: str) -> None:
        self.world = make_world(pod_expiry_s=30, make_redis=RedisCluster, **options)
        self.cluster: RedisCluster = self.world.redis
        self.first, self.second = (
            self.world.fleet(seed, streams=3, model=model, pod_prefix=f"{seed}-") for seed, model in enumerate(models_apart(self.cluster), 1)
        )
        self.fleets = (self.first, self.second)
        self.indexers: list[Command] = self.world.sharing_indexers(*self.fleets, redis_timeout_s=str(redis_timeout_s), **(settings or {}))
        self.scorers: list[Command] = self.world.scorers(2, redis_timeout_s=str(redis_timeout_s))
        wait_owned(self.scorers[0], 6, by=2)
        wait_ready(*self.indexers, *self.scorers)
        for fleet in self.fleets:
            fleet.play(150)
        self.settle()

    def settle(self, *more: Client) -> None:
        for fleet in self.fleets:
            fleet.settle(*self.scorers, *more)

    def resume(self) -> None:
        for fleet in self.fleets:
            fleet.resume()

    def where(self, fleet: Fleet) -> Member:
        """The node that holds the fleet's model."""
        return self.cluster.owner_of(log_of(fleet.model))

    def settle_in_the_end(self) -> None:
        """All that was held is right to the last copy, also for a scorer that comes only now."""
        wait_ready(*self.indexers, *self.scorers)
        (late,) = self.world.scorers(1)
        self.settle(late)
        for fleet in self.fleets:
            settle_to_the_last_copy(fleet, *self.scorers, late)

    def restarts(self) -> float:
        return sum(indexer.metric("kv_indexer_restarts_total") for indexer in self.indexers)


@contextmanager
def always_live(fleet: Fleet, *scorers: Client) -> Iterator[None]:
    """Every answer about this fleet's pods is live meanwhile, and right."""
    stopping = threading.Event()
    explained = Explained(fleet, LIVE_S)
    doubts: set[str] = set()

    def ask() -> None:
        while not stopping.is_set():
            for scorer in scorers:
                asked = fleet.ask(scorer, fleet.texts[0])
                doubts.update(f"{pod['pod']} is {pod['trust']}" for pod in asked.answer["pods"] if pod["trust"] != "live")
                explained.wrong += fleet.unexplained(asked, LIVE_S)
            stopping.wait(0.1)

    asking = threading.Thread(target=ask, name="asking")
    asking.start()
    try:
        yield
    finally:
        stopping.set()
        asking.join()
    assert not doubts
    assert not explained.wrong


@contextmanager
def never_wrong(two: Two) -> Iterator[None]:
    """No answer that is said to be live is wrong meanwhile, nor just before and after."""
    explained = [Explained(fleet, LIVE_S) for fleet in two.fleets]
    stopping = threading.Event()

    def ask() -> None:
        while not stopping.is_set():
            for each in explained:
                each.once(*two.scorers)
            stopping.wait(ROUNDS_PAUSE_S)

    asking = threading.Thread(target=ask, name="asking")
    asking.start()
    try:
        yield
        stopping.wait(1)
    finally:
        stopping.set()
        asking.join()
    assert [each.wrong for each in explained] == [[], []]
    assert all(each.live for each in explained)


def kill(member: Member) -> Callable[[], object]:
    member.kill()
    return lambda: None


def hang(member: Member) -> Callable[[], object]:
    member.freeze()
    return member.thaw


@mechanism("no_redirections")
@pytest.mark.parametrize("fail", [pytest.param(kill, id="killed"), pytest.param(hang, id="hangs, and comes back", marks=pytest.mark.failovers)])
@pytest.mark.parametrize("of", ["a model", pytest.param("the directory", marks=pytest.mark.failovers)])
def test_a_node_fails_and_its_replica_is_promoted(make_world: MakeWorld, of: str, fail: Callable[[Member], Callable[[], object]]) -> None:
    """Indexers buffer meanwhile, and what they knew to be written and is not they write again. What the old master still does counts for nothing."""
    two = Two(make_world, cluster_require_full_coverage="no")
    key = log_of(two.first.model) if of == "a model" else DIRECTORY
    two.resume()
    with never_wrong(two), always_live(two.second, *two.scorers):
        member = two.cluster.owner_of(key)
        come_back = fail(member)
        wait_until(lambda before=two.first.batches: two.first.batches > before + 100)
        two.cluster.wait_promoted(key, member)
        wait_until(lambda before=two.first.batches: two.first.batches > before + 100)
        come_back()
        wait_until(lambda: all(owner is not None for owner in owners(two.scorers[0]).values()), TAKEOVER_S)
    two.settle_in_the_end()
    assert two.restarts() == 0


@pytest.mark.failovers
@mechanism("one_slot_for_all")
def test_what_other_nodes_hold_does_not_suffer_while_a_node_is_away_for_long(make_world: MakeWorld) -> None:
    """A node and its replica hang for longer than a lease, and so does each call to them. Nobody else's lease is late, nobody else's stream is in
    doubt."""
    two = Two(make_world, redis_timeout_s=HANG_S, cluster_require_full_coverage="no")
    two.resume()
    master = two.where(two.first)
    replica = two.cluster.replica_of(master)
    owned = owners(two.scorers[0])
    with never_wrong(two):
        with always_live(two.second, *two.scorers):
            replica.freeze()
            master.freeze()
            until_s = time.monotonic() + OUTAGE_S
            while time.monotonic() < until_s:
                now = owners(two.scorers[0])
                assert all(now[stream] == owner for stream, owner in owned.items() if stream[0] in two.second.pods)
        pods = two.first.ask(two.scorers[0], two.first.texts[0]).answer["pods"]
        assert {pod["trust"] for pod in pods} == {"stale"}
        master.thaw()
        replica.thaw()
        two.cluster.wait_well(60)
    two.settle_in_the_end()
    assert two.restarts() == 0


@mechanism("no_redirections")
def test_a_slot_moves_while_events_flow(make_world: MakeWorld) -> None:
    """While it is on the move scripts over several keys have to wait. Nothing is lost, there and back."""
    two = Two(make_world)
    two.resume()
    with never_wrong(two), always_live(two.second, *two.scorers):
        for _ in range(2):
            source = two.where(two.first)
            target = two.cluster.other_than(source)
            before = two.first.batches
            two.cluster.migrate(log_of(two.first.model), target, keep_open_s=MOVING_S)
            assert two.where(two.first) is target
            assert two.first.batches > before
            wait_until(lambda after=two.first.batches: two.first.batches > after + 80)
    two.settle_in_the_end()
    assert two.restarts() == 0
    assert all(indexer.metric("kv_indexer_fenced_total") == 0 for indexer in two.indexers)


@pytest.mark.failovers
@mechanism("no_redirections")
def test_the_directory_moves_while_events_flow(make_world: MakeWorld) -> None:
    """Nobody's stream is in doubt meanwhile, and who comes afterwards finds all."""
    two = Two(make_world)
    two.resume()
    target = two.cluster.other_than(two.cluster.owner_of(DIRECTORY))
    with always_live(two.first, *two.scorers), always_live(two.second, *two.scorers):
        two.cluster.migrate(DIRECTORY, target, keep_open_s=MOVING_S)
        wait_until(lambda before=two.first.batches: two.first.batches > before + 200)
    two.settle_in_the_end()


@mechanism("no_full_write")
@pytest.mark.failovers
def test_acknowledged_writes_that_a_failover_lost_are_written_again(make_world: MakeWorld) -> None:
    """The replica had not heard of them, and the engines have nothing more to say: the owners notice by themselves."""
    two = Two(make_world, settings=NO_PROBES)
    master = two.where(two.first)
    replica = two.cluster.replica_of(master)
    with asked_nothing(two.first):
        replica.freeze()
        master.ask("CLIENT", "KILL", "TYPE", "replica")
        two.first.play(200)
        two.settle()
        master.kill()
        replica.thaw()
        two.cluster.wait_promoted(log_of(two.first.model), master)
        wait_ready(*two.indexers, *two.scorers)
        (late,) = two.world.scorers(1)
        two.settle(late)
        assert sum(indexer.metric("kv_indexer_redis_full_writes_total", reason="went_back") for indexer in two.indexers) >= 1
        two.first.play(100)
        two.settle(late)


def comes_back_empty(member: Member, play: Callable[[], object]) -> None:
    play()
    member.kill()
    member.start(with_data=False)


def comes_back_older(member: Member, play: Callable[[], object]) -> None:
    snapshot = member.save()
    play()
    member.kill()
    member.put_back(snapshot)
    member.start()


@mechanism("no_full_write")
@pytest.mark.failovers
@pytest.mark.parametrize("come_back", [comes_back_empty, comes_back_older], ids=["empty", "older"])
def test_a_node_comes_back_before_its_replica_is_promoted_and_has_lost_something(
    make_world: MakeWorld, come_back: Callable[[Member, Callable[[], object]], None]
) -> None:
    """Its replica forgets the same then. The owners write their full state again, and no engine is asked for anything."""
    two = Two(make_world, settings=NO_PROBES, cluster_node_timeout="10000")
    with asked_nothing(two.first), asked_nothing(two.second):

        def play() -> None:
            two.first.play(200)
            two.settle()

        come_back(two.where(two.first), play)
        two.cluster.wait_well(60)
        wait_ready(*two.indexers, *two.scorers)
        (late,) = two.world.scorers(1)
        two.settle(late)
        two.first.play(100)
        two.settle(late)


@pytest.mark.failovers
@mechanism("slots_are_read_once")
def test_an_indexer_dies_and_a_node_with_it(make_world: MakeWorld) -> None:
    """New owners take what Redis has, as soon as there is one, and the engines say the rest: nothing is applied twice, nothing is lost."""
    two = Two(make_world)
    two.resume()
    with never_wrong(two):
        member = two.where(two.first)
        two.indexers[0].kill()
        member.kill()
        two.cluster.wait_promoted(log_of(two.first.model), member)
        wait_owned(two.scorers[0], 6, by=1, timeout_s=2 * TAKEOVER_S)
        wait_until(lambda before=two.first.batches: two.first.batches > before + 100)
    two.indexers = two.indexers[1:]
    two.settle_in_the_end()


def test_pods_registered_through_a_cluster_are_known_to_all(make_world: MakeWorld) -> None:
    """Also those registered while the directory's node is away: whoever asks is told to come again, and is served once it is back."""
    world = make_world(pod_expiry_s=30, make_redis=RedisCluster)
    fleet = world.fleet(streams=1)
    (indexer,), (scorer,) = world.indexers(1), world.scorers(1)
    body = dict(word.split("=", 1) for word in fleet.specs[0].split(","))
    member = world.redis.kill_owner_of(DIRECTORY)

    def put() -> int:
        return indexer.http.put(f"{indexer.url}/v1/pods/{fleet.pods[0]}", json=body).status_code

    assert put() == 503
    world.redis.wait_promoted(DIRECTORY, member)
    wait_until(lambda: put() in (200, 201), 30, "the registration to be taken")
    fleet.play(50)
    wait_owned(scorer, 1, by=1)
    fleet.settle(scorer)
    assert indexer.http.delete(f"{indexer.url}/v1/pods/{fleet.pods[0]}").status_code == 204
    wait_until(lambda: owners(scorer) == {})

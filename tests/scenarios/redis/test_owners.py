"""Indexers die, freeze and come back. The index stays what the engines said: nothing is applied twice, nothing is lost that can be had again."""

import pytest

from tests.fleet import Fleet
from tests.running import Client, Command
from tests.scenarios.redis.world import World, owners, wait_owned, wait_ready
from tests.waiting import wait_until

mechanism = pytest.mark.mechanism
# Four times what is promised.
TAKEOVER_S = 20.0


def one_after_the_other(world: World, fleet: Fleet, scorer: Client) -> tuple[Command, Command, str]:
    """Two indexers that share the streams, and the first one's name."""
    first, second = world.sharing_indexers(fleet)
    wait_owned(scorer, len(fleet.publishers), by=2)
    wait_ready(first, second, scorer)
    name = next(iter(owners(first).values()))
    assert name is not None
    return first, second, name


def a_pod_of(owner: str, scorer: Client) -> str:
    """A pod that this indexer follows."""
    return next(pod for (pod, _), name in owners(scorer).items() if name == owner)


def settle_to_the_last_copy(fleet: Fleet, *scorers: Client) -> None:
    """What was applied twice, or not at all, shows as the copies of each block go one by one."""
    fleet.settle(*scorers)
    for _ in range(2):
        fleet.thin()
        fleet.settle(*scorers)
    fleet.drain()
    fleet.settle(*scorers)


@mechanism("leases_without_end")
def test_the_streams_of_an_indexer_that_dies_get_new_owners(world: World) -> None:
    """New owners within five seconds; until then the dead one's streams are stale; then nothing was applied twice and nothing is lost."""
    fleet = world.fleet(streams=8)
    scorers = world.scorers(2)
    first, second, name = one_after_the_other(world, fleet, scorers[0])
    fleet.resume()
    wait_until(lambda: fleet.batches > 200)
    orphaned = {stream for stream, owner in owners(scorers[0]).items() if owner == name}
    seen_stale: set[tuple[str, int]] = set()

    def has_taken_over() -> bool:
        pods = scorers[0].http.get(f"{scorers[0].url}/v1/pods").json()["pods"]
        trusts = {(pod["pod"], stream["rank"]): stream["trust"] for pod in pods for stream in pod["streams"]}
        seen_stale.update(stream for stream in orphaned if trusts.get(stream) == "stale")
        owned = owners(scorers[0])
        return len(owned) == 8 and None not in owned.values() and name not in owned.values()

    first.kill()
    wait_until(has_taken_over, TAKEOVER_S, "every stream to have a new owner")
    assert seen_stale == orphaned
    assert second.metric("kv_indexer_owned_streams") == 8
    wait_until(lambda before=fleet.batches: fleet.batches > before + 100)
    settle_to_the_last_copy(fleet, *scorers)


@mechanism("no_ring")
def test_a_takeover_from_an_engine_without_replay_finds_no_gap(world: World) -> None:
    """The runner-up listens too, and keeps what it heard; nobody else could say what came between the owner's death and the takeover."""
    fleet = world.fleet(streams=6, with_replay=False)
    (scorer,) = world.scorers(1)
    first, _, _ = one_after_the_other(world, fleet, scorer)
    wait_until(lambda: all(publisher.engine.subscriptions() >= 2 for publisher in fleet.publishers), what="owner and runner-up to listen")
    fleet.resume()
    wait_until(lambda: fleet.batches > 200)
    first.kill()
    wait_until(lambda before=fleet.batches: fleet.batches > before + 50)
    wait_owned(scorer, 6, by=1, timeout_s=TAKEOVER_S)
    wait_until(lambda before=fleet.batches: fleet.batches > before + 100)
    fleet.pause()
    fleet.settle(scorer)
    settle_to_the_last_copy(fleet, scorer)


@mechanism("no_recorded_orphans")
def test_an_orphan_parked_before_the_death_is_adopted_after_it(world: World) -> None:
    """Its parent comes only to the new owner, who was never told of the child by the engine."""
    fleet = world.fleet(streams=4, history_max=5, uniform=True)
    (scorer,) = world.scorers(1)
    first, second, name = one_after_the_other(world, fleet, scorer)
    pod = a_pod_of(name, scorer)
    text = max(fleet.texts, key=lambda text: len(text.tokens))
    blocks = fleet.publisher(pod).blocks(text)
    fleet.do(pod, lambda p: p.withhold(text, blocks - 2, blocks))
    fleet.settle(scorer)
    wait_until(lambda: first.metric("kv_indexer_orphans_parked") == 2)
    other = fleet.texts[0]
    for _ in range(10):  # the history does not reach back to the child
        fleet.do(pod, lambda p: p.store(other, 0, 1))
    fleet.settle(scorer)
    first.kill()
    wait_owned(scorer, 4, by=1, timeout_s=TAKEOVER_S)
    fleet.do(pod, lambda p: p.release())
    fleet.settle(scorer)
    assert sum(ranks[0][1][0] for name, ranks in fleet.expected(text) if name == pod) == blocks
    assert second.metric("kv_indexer_orphans_total", fate="adopted") == 2


@mechanism("no_recorded_removals")
def test_a_block_removed_before_the_death_is_known_to_the_tier_it_went_to(world: World) -> None:
    """An engine that offloads says that a block went to a lower tier after it removed it from the gpu, and does not say its tokens again."""
    fleet = world.fleet(streams=4, uniform=True)
    (scorer,) = world.scorers(1)
    first, _, name = one_after_the_other(world, fleet, scorer)
    pod = a_pod_of(name, scorer)
    text, other = fleet.texts[0], fleet.texts[1]
    fleet.do(pod, lambda p: [*p.store(other, 0, 1), *p.offload(p.rank.copies[:1])])
    fleet.do(pod, lambda p: p.store(text, 0, p.blocks(text)))
    gone = [copy for copy in fleet.publisher(pod).rank.copies if copy.tier == "gpu"]
    fleet.do(pod, lambda p: p.remove(gone))
    fleet.settle(scorer)
    first.kill()
    wait_owned(scorer, 4, by=1, timeout_s=TAKEOVER_S)
    fleet.do(pod, lambda p: p.offload(gone))
    fleet.settle(scorer)
    assert scorer.matched(text.tokens, pod) == fleet.publisher(pod).blocks(text) * fleet.publisher(pod).block_size


@mechanism("no_fence")
@pytest.mark.parametrize("redis_is_emptied", [False, True], ids=["redis stays", "redis is emptied"])
def test_a_frozen_indexer_that_comes_back_writes_nothing(world: World, redis_is_emptied: bool) -> None:
    """Its late writes are refused by the fencing token and counted, also where Redis was restarted empty in between."""
    fleet = world.fleet(streams=4)
    scorers = world.scorers(2)
    first, second, name = one_after_the_other(world, fleet, scorers[0])
    fleet.resume()
    wait_until(lambda: fleet.batches > 100)
    first.freeze()
    wait_until(lambda: name not in (owned := owners(scorers[0])).values() and None not in owned.values(), TAKEOVER_S, "new owners")
    if redis_is_emptied:
        world.redis.kill()
        world.redis.start(with_data=False)
        wait_until(lambda: world.redis.keys("kvi:"))
        wait_owned(scorers[0], 4, by=1)
    wait_until(lambda before=fleet.batches: fleet.batches > before + 100)
    first.thaw()
    wait_until(lambda: first.metric("kv_indexer_fenced_total") > 0, what="a late write to be refused")
    assert second.metric("kv_indexer_fenced_total") == 0
    settle_to_the_last_copy(fleet, *scorers)
    wait_owned(scorers[0], 4, by=2)  # the same two names share as they did


@mechanism("no_recorded_sequence")
def test_when_all_indexers_died_new_ones_resume_from_the_recorded_sequence(world: World) -> None:
    """Engines go on meanwhile, and one of them was restarted: that is noticed by its fingerprint, and nobody else is asked for what is known."""
    fleet = world.fleet(streams=5)
    scorers = world.scorers(2)
    indexers = world.sharing_indexers(fleet)
    wait_owned(scorers[0], 5, by=2)
    fleet.play(200)
    fleet.settle(*scorers)
    for indexer in indexers:
        indexer.kill()
    recorded = {publisher: publisher.engine.next_number - 1 for publisher in fleet.publishers}
    fleet.restart("pod-2")
    fleet.play(200)
    asked_before = {publisher: len(publisher.engine.asked) for publisher in fleet.publishers}
    successors = world.indexers(2, fleet)
    settle_to_the_last_copy(fleet, *scorers)
    for publisher, sequence in recorded.items():
        asked = publisher.engine.asked[asked_before[publisher] :]
        assert (min(asked) < sequence) == (publisher.pod == "pod-2"), publisher.pod
    assert sum(indexer.metric("kv_indexer_restarts_total") for indexer in successors) == 1


@mechanism("no_purge_of_lost_history")
def test_without_replay_new_indexers_know_that_they_missed_something(world: World) -> None:
    """Nobody listened and nobody can be asked: what was held is dropped, and the stream says partial until it is cleared."""
    fleet = world.fleet(streams=2, with_replay=False)
    (scorer,) = world.scorers(1)
    (first,) = world.indexers(1, fleet)
    wait_owned(scorer, 2, by=1)
    wait_until(lambda: all(publisher.engine.subscriptions() for publisher in fleet.publishers))
    for pod in fleet.pods:
        fleet.do(pod, lambda p: p.store(fleet.texts[1], 0, 2))
    fleet.settle(scorer)
    first.kill()
    for pod in fleet.pods:
        fleet.do(pod, lambda p: [p.clear()])  # nobody hears it
    before = [publisher.engine.subscriptions() for publisher in fleet.publishers]
    world.indexers(1, fleet)
    wait_until(lambda: all(publisher.engine.subscriptions() > count for publisher, count in zip(fleet.publishers, before, strict=True)))
    text = fleet.texts[0]
    for pod in fleet.pods:
        fleet.do(pod, lambda p: p.store(text, 0, 1))
    fleet.settle(scorer, trust=("partial",))
    for pod in fleet.pods:
        fleet.do(pod, lambda p: [p.clear(), *p.store(text, 0, 2)])
    fleet.settle(scorer)

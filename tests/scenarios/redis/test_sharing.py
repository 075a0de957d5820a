"""Several indexers share the streams, several scorers say the same, and several services share a Redis."""

from collections.abc import Callable

import pytest

from tests.scenarios.redis.world import Explained, World, owners, wait_owned, wait_ready
from tests.waiting import wait_until

mechanism = pytest.mark.mechanism
# Four times the figure that is promised.
AGREEMENT_S = 0.4
# No load of a test machine explains more.
NEVER_S = 20.0


@mechanism("nobody_asks")
def test_two_indexers_share_the_streams_and_two_scorers_agree_while_events_flow(world: World) -> None:
    """Two indexers share eight streams, both own some, and two scorers agree within 100 ms."""
    fleet = world.fleet(streams=8)
    indexers = world.sharing_indexers(fleet)
    scorers = world.scorers(2)
    wait_ready(*indexers, *scorers)
    fleet.settle(*scorers)
    wait_owned(scorers[0], streams=8, by=2)

    def agree_on_owners() -> bool:
        owned = owners(scorers[0])
        shares = sorted(list(owned.values()).count(owner) for owner in set(owned.values()))
        return owners(scorers[1]) == owned and sorted(indexer.metric("kv_indexer_owned_streams") for indexer in indexers) == shares

    wait_until(agree_on_owners, what="all to agree on who owns what")
    fleet.resume()
    agreement = Explained(fleet, AGREEMENT_S)
    wait_until(lambda: agreement.once(*scorers), 60, "a round of answers that all are of the last moments")
    never = Explained(fleet, NEVER_S)
    never.once(*scorers)
    assert never.wrong == []
    assert never.live == never.asked
    fleet.settle(*scorers)
    for prompt in fleet.prompts:
        one, other = (fleet.ask(scorer, prompt).answer for scorer in scorers)
        assert one | {"view": None} == other | {"view": None}


def test_indexers_come_and_go_in_order(world: World) -> None:
    """A new indexer takes its part from the one that is there, and one that stops in order leaves no gap and nothing stale behind."""
    fleet = world.fleet(streams=8)
    (scorer,) = world.scorers(1)
    fleet.resume()
    first, second = world.sharing_indexers(fleet)
    wait_owned(scorer, streams=8, by=2)
    first.stop()
    wait_owned(scorer, streams=8, by=1)
    assert second.metric("kv_indexer_owned_streams") == 8
    fleet.settle(scorer)
    assert second.metric("kv_indexer_losses_total") == 0


def test_one_process_can_be_both(world: World) -> None:
    """The sidecar: indexer and scorer in one process, twice, with the same answers as a scorer of its own."""
    fleet = world.fleet(streams=4)
    sidecars = world.sidecars(2, fleet)
    (scorer,) = world.scorers(1)
    fleet.resume()
    wait_until(lambda: fleet.batches > 200)
    fleet.settle(*sidecars, scorer)


NAMES = ["org/model", "{m}", "a:b:", "with some spaces", "{", "}{", "münchen/模型"]


@mechanism("one_model")
def test_models_with_any_name_share_a_database(world: World) -> None:
    """Braces, colons, slashes and spaces in a model's name are nothing but its name."""
    fleets = [world.fleet(seed=number, streams=1, model=name, pod_prefix=f"{number}:{{p}}/") for number, name in enumerate(NAMES)]
    world.indexers(2, *fleets)
    (scorer,) = world.scorers(1)
    for fleet in fleets:
        fleet.play(40)
    for fleet in fleets:
        fleet.settle(scorer)
    models = scorer.http.get(f"{scorer.url}/v1/models").json()["models"]
    assert {model["model"]: model["pods"] for model in models} == {fleet.model: fleet.pods for fleet in fleets}


@mechanism("one_namespace")
def test_namespaces_and_foreign_keys_are_left_alone(world: World) -> None:
    """Two services with the same pods and models in one database, and keys of somebody else: nobody touches anyone else's."""
    client = world.redis.client()
    foreign = {"foreign": "1", "kvi": "2", "kvi2": "3", "kv": "4", "{directory}:pods": "5", "kviy:1:{directory}:pods": "6"}
    client.mset(foreign)
    client.xadd("foreign:log", {"e": "not ours"})
    here, there = world.fleet(seed=1, streams=2), world.fleet(seed=2, streams=2)
    world.indexers(1, here)
    world.indexers(1, there, namespace="kvix")
    (scorer_here,), (scorer_there,) = world.scorers(1), world.scorers(1, namespace="kvix")
    (nobody,) = world.scorers(1, namespace="kv")
    for fleet in (here, there):
        fleet.play(100)
    here.settle(scorer_here)
    there.settle(scorer_there)
    assert nobody.http.get(f"{nobody.url}/v1/pods").json() == {"pods": []}
    here.restart("pod-0")
    here.play(50)
    here.settle(scorer_here)
    there.settle(scorer_there)
    world.stop_processes()
    world.redis.wait_empty(40, prefix="kvi:")
    world.redis.wait_empty(40, prefix="kvix:")
    assert sorted(world.redis.keys()) == sorted(name.encode() for name in [*foreign, "foreign:log"])
    assert client.mget(list(foreign)) == [value.encode() for value in foreign.values()]
    assert client.xlen("foreign:log") == 1


def test_the_database_of_the_url_is_used_and_no_other(make_world: Callable[..., World]) -> None:
    """Two services with one namespace in two databases of one Redis do not meet."""
    world = make_world()
    here, there = world.fleet(seed=1, streams=1), world.fleet(seed=2, streams=1)
    other = world.redis.url_of(None, database=3)
    world.indexers(1, here)
    world.indexers(1, there, url=other)
    (scorer_here,), (scorer_there,) = world.scorers(1), world.scorers(1, url=other)
    for fleet in (here, there):
        fleet.play(50)
    here.settle(scorer_here)
    there.settle(scorer_there)

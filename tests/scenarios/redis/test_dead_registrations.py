"""A registered pod whose engine is gone does not stay for ever in Redis either."""

from tests.engine import Engine
from tests.scenarios.redis.world import World
from tests.waiting import wait_until


def test_a_registered_pod_is_forgotten_only_where_none_of_its_ranks_is_connected_to_anybody(world: World) -> None:
    with Engine() as engine, Engine() as other:
        indexers = world.indexers(2, lease_s="1", registration_expiry_s="1.5")
        (scorer,) = world.scorers(1, lease_s="1")
        spec = {"model": "m", "events": f"tcp://127.0.0.1:{engine.events_port}"}
        assert scorer.http.put(f"{scorer.url}/v1/pods/registered", json=spec).status_code == 201
        assert scorer.http.put(f"{scorer.url}/v1/pods/other", json={**spec, "events": f"tcp://127.0.0.1:{other.events_port}"}).status_code == 201

        def connected() -> dict[str, list[bool]]:
            found = scorer.http.get(f"{scorer.url}/v1/pods").json()["pods"]
            return {pod["pod"]: [stream["connected"] for stream in pod["streams"]] for pod in found}

        wait_until(lambda: connected() == {"registered": [True], "other": [True]})
        engine.kill()
        wait_until(lambda: connected() == {"other": [True]})
        assert sum(indexer.metric("kv_indexer_owned_streams") for indexer in indexers) == 1
        assert scorer.http.delete(f"{scorer.url}/v1/pods/other").status_code == 204

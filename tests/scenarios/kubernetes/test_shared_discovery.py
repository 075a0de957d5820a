"""Replicas that share their streams over Redis each discover by themselves, and scorers know what their owners know."""

from collections.abc import Callable

from indexer.compiled import ACTIVE
from tests.engine import Engine, stored
from tests.running import Client
from tests.scenarios.kubernetes.conftest import Cluster
from tests.scenarios.kubernetes.test_discovery import PODS, PROMPT, pods, ports_of, readiness, route, wait_for, wait_for_pods
from tests.scenarios.redis.conftest import make_world
from tests.scenarios.redis.world import World, owners
from tests.waiting import wait_until

__all__ = ["make_world"]


def test_replicas_that_share_the_streams_discover_each_for_itself(cluster: Cluster, make_world: Callable[..., World]) -> None:
    world = make_world()
    with Engine() as engine, Engine() as other:
        engine.publish(stored([1], PROMPT[:4]))
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        cluster.admin.create_pod("vllm-1", **{**ports_of(other), "http_port": 8001})
        first, second = world.indexers(2, discover=PODS, lease_s="1", **cluster.flags)
        (scorer,) = world.scorers(1, lease_s="1")
        for pod in ("127.0.0.1:8000", "127.0.0.1:8001"):
            wait_for(scorer, pod, trust="live")
        assert (pods(scorer)["127.0.0.1:8000"]["name"], pods(scorer)["127.0.0.1:8000"]["discovered_by"]) == ("vllm-0", PODS)
        cluster.admin.set_status("vllm-0", ready=False)
        wait_until(lambda: route(scorer).json()["reason"]["127.0.0.1:8000"]["why"] == "not_ready")
        assert sum(indexer.metric("kv_indexer_streams_not_ready", trust="live") for indexer in (first, second)) == 1
        assert scorer.matched(PROMPT, pod="127.0.0.1:8000") == 4
        assert [pod for pod, each in pods(scorer).items() if not each["ready"]] == ["127.0.0.1:8000"]
        cluster.admin.set_status("vllm-0", ready=True)
        wait_until(lambda: route(scorer).json()["pod"] == "127.0.0.1:8000")
        cluster.admin.delete_pod("vllm-1")
        wait_for_pods(scorer, "127.0.0.1:8000")
        _wait_until_one_owns(first, second)
        assert [key for key in world.redis.keys("kvi:") if b"8000" in key]
        assert not [key for key in world.redis.keys("kvi:") if b"8001" in key]


def test_another_pod_at_the_same_address_is_followed_anew_by_replicas_too(cluster: Cluster, make_world: Callable[..., World]) -> None:
    world = make_world()
    with Engine() as engine:
        engine.publish(stored([1], PROMPT[:4]))
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        (sidecar,) = world.sidecars(1, discover=PODS, lease_s="1", **cluster.flags)
        wait_for(sidecar, "127.0.0.1:8000", trust="live", sequence=0)
        batches = sidecar.metric("kv_indexer_batches_total")
        cluster.admin.delete_pod("vllm-0")
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        wait_until(lambda: sidecar.metric("kv_indexer_batches_total") > batches, what="a stream from the beginning")
        wait_for(sidecar, "127.0.0.1:8000", trust="live", sequence=0, batches=1)
        assert sidecar.matched(PROMPT, pod="127.0.0.1:8000") == 4
        wait_until(lambda: readiness(sidecar) == {"status": "ready", "reasons": [], "core": ACTIVE})


def _wait_until_one_owns(*indexers: Client) -> None:
    wait_until(lambda: sorted(len(owners(indexer)) for indexer in indexers) == [0, 1], what="one stream with one owner")

"""Engines are found in Kubernetes: they come, are not ready, go, and are replaced, and nothing is lost while the API server is away."""

import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from indexer.compiled import ACTIVE
from indexer.discovery import discovery, kube_api
from indexer.discovery.list_watch import WatchTimes
from tests.engine import Engine, stored
from tests.engine_server import EngineServer
from tests.running import Client, Running
from tests.scenarios.kubernetes.conftest import Cluster
from tests.waiting import wait_until

PROMPT = [1, 2, 3, 4, 5]
PODS = "pods:inference?selector=app=vllm"


def ports_of(engine: Engine, api: EngineServer | None = None) -> dict[str, object]:
    """Annotations of an engine's pod."""
    found: dict[str, object] = {"events_port": engine.events_port, "replay_port": engine.replay_port}
    return found | ({"model": "m", "http_port": 8000} if api is None else {"http_port": api.port})


def pods(service: Client) -> dict[str, dict[str, Any]]:
    return {pod["pod"]: pod for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]}


def readiness(service: Client) -> dict[str, Any]:
    found: dict[str, Any] = service.http.get(f"{service.url}/readyz").json()
    return found


def route(service: Client, **more: object) -> httpx.Response:
    return service.http.post(f"{service.url}/v1/route", json={"model": "m", "token_ids": PROMPT, **more})


def serving(cluster: Cluster, source: str = PODS, **flags: str) -> Running:
    return Running(discover=source, **cluster.flags, **{"load_interval_s": "0", **flags})


def wait_for(service: Client, pod: str, **expected: object) -> dict[str, Any]:
    wait_until(lambda: pods(service).get(pod, {}).get("streams"), what=lambda: f"a stream of {pod}; there are {list(pods(service))}")
    return service.wait_for(pod=pod, **expected)


def wait_for_pods(service: Client, *names: str) -> None:
    wait_until(lambda: sorted(pods(service)) == sorted(names), what=lambda: f"{names}; there are {list(pods(service))}")


def test_a_pod_that_is_made_is_followed_and_one_that_is_deleted_is_forgotten(cluster: Cluster) -> None:
    with Engine() as engine, EngineServer() as api, serving(cluster) as service:
        api.models = {"m": None, "an-adapter": "m"}
        engine.publish(stored([1], PROMPT[:4]))
        cluster.admin.create_pod("vllm-0", **ports_of(engine, api))
        name = f"127.0.0.1:{api.port}"
        wait_for(service, name, trust="live", sequence=0)
        found = pods(service)[name]
        assert (found["model"], found["name"], found["discovered_by"], found["ready"]) == ("m", "vllm-0", PODS, True)
        assert service.matched(PROMPT, pod=name) == 4
        assert route(service).json()["pod"] == name
        assert service.metric("kv_indexer_discovered_pods", state="ready") == 1
        cluster.admin.delete_pod("vllm-0")
        wait_for_pods(service)
        assert service.http.post(f"{service.url}/v1/score", json={"model": "m", "token_ids": PROMPT}).status_code == 404


@pytest.mark.parametrize("how", ["readiness", "deletion"])
def test_a_pod_that_is_not_ready_is_not_picked_and_keeps_its_blocks(cluster: Cluster, how: str) -> None:
    with Engine() as engine, Engine() as other, serving(cluster) as service:
        engine.publish(stored([1], PROMPT[:4]))
        cluster.admin.create_pod("vllm-0", "127.0.0.1", **ports_of(engine))
        wait_for(service, "127.0.0.1:8000", trust="live", sequence=0)
        if how == "readiness":
            cluster.admin.set_status("vllm-0", ready=False)
        else:
            cluster.admin.delete_pod("vllm-0", grace_s=30)
        wait_until(lambda: not pods(service)["127.0.0.1:8000"]["ready"])
        assert service.metric("kv_indexer_streams_not_ready", trust="live") == 1
        refused = route(service)
        assert (refused.status_code, refused.json()["detail"]) == (503, "no pod can be picked: 1 not_ready")
        engine.publish(stored([2], [6, 7, 8, 9], parent=1))
        wait_for(service, "127.0.0.1:8000", trust="live", sequence=1)
        explained = service.http.post(f"{service.url}/v1/explain", json={"model": "m", "token_ids": PROMPT}).json()["pods"][0]
        assert not explained["ready"]
        assert explained["why"].endswith("it is not ready, so that no request is sent there")
        cluster.admin.create_pod("vllm-1", "127.0.0.1", **{**ports_of(other), "http_port": 8001})
        wait_for(service, "127.0.0.1:8001", trust="live")
        answer = route(service).json()
        assert (answer["pod"], answer["fallbacks"], answer["reason"]["127.0.0.1:8000"]["why"]) == ("127.0.0.1:8001", [], "not_ready")
        if how == "readiness":
            cluster.admin.set_status("vllm-0", ready=True)
            wait_until(lambda: route(service).json()["pod"] == "127.0.0.1:8000")
            assert service.metric("kv_indexer_streams_not_ready") == 0
            assert service.matched(PROMPT, pod="127.0.0.1:8000") == 4
        assert readiness(service) == {"status": "ready", "reasons": [], "core": ACTIVE}


def test_another_pod_at_the_same_address_has_nothing_of_the_one_before(cluster: Cluster) -> None:
    with Engine() as engine, serving(cluster) as service:
        engine.publish(stored([1], PROMPT[:4]))
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        wait_for(service, "127.0.0.1:8000", trust="live", sequence=0)
        batches = service.metric("kv_indexer_batches_total")
        # As a StatefulSet does it: the same name, and here the same engine too, so that it is the uid alone that tells.
        cluster.admin.delete_pod("vllm-0")
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        wait_until(lambda: service.metric("kv_indexer_batches_total") > batches, what="a stream from the beginning")
        wait_for(service, "127.0.0.1:8000", trust="live", sequence=0, batches=1)


def test_labels_and_annotations_are_followed(cluster: Cluster) -> None:
    with Engine() as engine, serving(cluster) as service:
        cluster.admin.create_pod("vllm-0", labels={"app": "other"}, **ports_of(engine))
        cluster.admin.create_pod("vllm-1", ip=None, **ports_of(engine))
        cluster.admin.create_pod("vllm-2", **{**ports_of(engine), "http_port": 8002, "ignore": "true"})
        cluster.admin.create_pod("vllm-3", **{**ports_of(engine), "http_port": 8003})
        wait_for_pods(service, "127.0.0.1:8003")
        cluster.admin.patch_pod("vllm-0", {"labels": {"app": "vllm"}})
        wait_for_pods(service, "127.0.0.1:8000", "127.0.0.1:8003")
        cluster.admin.patch_pod("vllm-0", {"labels": {"app": "other"}})
        wait_for_pods(service, "127.0.0.1:8003")
        cluster.admin.patch_pod("vllm-3", {"annotations": {"kv-indexer/events-port": "none of it"}})
        wait_for_pods(service)
        assert service.metric("kv_indexer_discovered_pods", state="unusable") == 1


@pytest.mark.rule("K3")
def test_nothing_is_dropped_while_the_server_is_away_and_what_went_meanwhile_is_gone(cluster: Cluster) -> None:
    with Engine() as engine, Engine() as other, serving(cluster) as service:
        engine.publish(stored([1], PROMPT[:4]))
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        cluster.admin.create_pod("vllm-1", **{**ports_of(other), "http_port": 8001})
        wait_for(service, "127.0.0.1:8000", trust="live", sequence=0)
        wait_for(service, "127.0.0.1:8001", trust="live")
        cluster.kill()
        wait_until(lambda: readiness(service)["status"] == "degraded")
        (reason,) = readiness(service)["reasons"]
        assert reason.startswith(f"discovery {PODS}: {cluster.url} cannot be reached")
        assert service.metric("kv_indexer_discovery_up") == 0
        assert service.metric("kv_indexer_discovery_errors_total", reason="unreachable") >= 1
        assert service.matched(PROMPT, pod="127.0.0.1:8000") == 4
        cluster.delete_while_away("vllm-1")
        cluster.start()
        wait_for_pods(service, "127.0.0.1:8000")
        wait_until(lambda: readiness(service) == {"status": "ready", "reasons": [], "core": ACTIVE})
        assert service.matched(PROMPT, pod="127.0.0.1:8000") == 4
        assert service.metric("kv_indexer_discovery_up") == 1


@pytest.mark.rule("K2")
def test_the_token_is_read_again(cluster: Cluster) -> None:
    with Engine() as engine, serving(cluster) as service:
        wait_until(lambda: service.metric("kv_indexer_discovery_up") == 1)
        cluster.renew_token()
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        wait_for_pods(service, "127.0.0.1:8000")


@pytest.mark.parametrize("verb", ["list", "watch"])
def test_a_right_that_is_missing_is_said_with_its_verb(cluster: Cluster, verb: str) -> None:
    cluster.deny(verb)
    with Engine() as engine, serving(cluster, ready_after_s="0.1") as service:
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        wait_until(lambda: readiness(service)["status"] == "degraded")
        assert f"cannot {verb} pods in namespace inference, answered 403" in readiness(service)["reasons"][0]
        cluster.allow()
        wait_for_pods(service, "127.0.0.1:8000")
        wait_until(lambda: readiness(service) == {"status": "ready", "reasons": [], "core": ACTIVE})


def _cut(cluster: Cluster) -> None:
    cluster.cut()


def _expire(cluster: Cluster) -> None:
    cluster.expire()


@pytest.mark.parametrize("fault", [_cut, _expire])
def test_a_watch_that_ends_is_followed_by_another(cluster: Cluster, fault: Callable[[Cluster], None]) -> None:
    with Engine() as engine, serving(cluster) as service:
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        wait_for_pods(service, "127.0.0.1:8000")
        fault(cluster)
        follow_what_comes_and_goes(cluster, service, engine)


def test_watches_that_end_soon_are_followed_by_others(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "WATCH_TIMES", WatchTimes(watch_s=(1, 1)))
    with Engine() as engine, serving(cluster) as service:
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        wait_for_pods(service, "127.0.0.1:8000")
        time.sleep(1.5)
        follow_what_comes_and_goes(cluster, service, engine)


def follow_what_comes_and_goes(cluster: Cluster, service: Client, engine: Engine) -> None:
    cluster.admin.create_pod("vllm-1", **{**ports_of(engine), "http_port": 8001})
    wait_for_pods(service, "127.0.0.1:8000", "127.0.0.1:8001")
    cluster.admin.delete_pod("vllm-0")
    wait_for_pods(service, "127.0.0.1:8001")


@pytest.mark.rule("K3")
def test_a_server_that_hangs_is_found_out_and_nothing_is_dropped(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(discovery, "WATCH_TIMES", WatchTimes(watch_s=(1, 1), silence_s=0.5, pause_s=(0.05, 0.2)))
    monkeypatch.setattr(kube_api, "LIST_S", 1.0)
    with Engine() as engine, serving(cluster) as service:
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        wait_for_pods(service, "127.0.0.1:8000")
        cluster.freeze()
        try:
            wait_until(lambda: readiness(service)["status"] == "degraded")
            assert service.metric("kv_indexer_discovery_errors_total", reason="timeout") >= 1
            assert list(pods(service)) == ["127.0.0.1:8000"]
        finally:
            cluster.thaw()
        wait_until(lambda: readiness(service)["reasons"] == [])
        follow_what_comes_and_goes(cluster, service, engine)


def test_a_long_list_comes_in_pages(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kube_api, "PAGE_OBJECTS", 2)
    with Engine() as engine:
        for number in range(5):
            cluster.admin.create_pod(f"vllm-{number}", **{**ports_of(engine), "http_port": 8000 + number})
        with serving(cluster, streams_max="5") as service:
            wait_for_pods(service, *(f"127.0.0.1:{8000 + number}" for number in range(5)))
            cluster.admin.create_pod("vllm-5", **{**ports_of(engine), "http_port": 8005})
            wait_until(lambda: service.metric("kv_indexer_discovered_pods", state="refused") == 1)
            assert "there would be 6 streams" in readiness(service)["reasons"][0]
            cluster.admin.delete_pod("vllm-0")
            wait_for_pods(service, *(f"127.0.0.1:{8001 + number}" for number in range(5)))


def test_a_pool_names_its_pods_and_their_ports_and_its_changes_are_followed(cluster: Cluster) -> None:
    source = "inferencepool:inference/chat"
    with Engine() as engine, EngineServer() as api, serving(cluster, source, ready_after_s="0.1") as service:
        api.models = {"m": None}
        wait_until(lambda: readiness(service)["status"] == "degraded")
        assert readiness(service)["reasons"] == [f"discovery {source}: there is no such InferencePool, or it selects no pods"]
        cluster.admin.create_pod("vllm-0", events_port=engine.events_port, replay_port=engine.replay_port)
        cluster.admin.create_pool("chat", {"app": "vllm"}, api.port)
        wait_for(service, f"127.0.0.1:{api.port}", trust="live")
        cluster.admin.patch_pool("chat", {"targetPorts": [{"number": 7000}, {"number": api.port}]})
        wait_until(lambda: [stream["rank"] for stream in pods(service)[f"127.0.0.1:{api.port}"]["streams"]] == [1])
        cluster.admin.patch_pool("chat", {"selector": {"matchLabels": {"app": "other"}}})
        wait_for_pods(service)
        assert readiness(service)["reasons"] == []
        cluster.admin.delete_pool("chat")
        wait_until(lambda: readiness(service)["reasons"] != [])


def test_a_service_names_its_endpoints(cluster: Cluster) -> None:
    if not cluster.has_slices:
        pytest.skip("this API server is older than 1.21")
    with Engine() as engine, Engine() as other:
        both = f"service:inference/vllm?model=m&events-port={engine.events_port}&replay-port={engine.replay_port}"
        ready = {"ready": True, "serving": True, "terminating": False}
        cluster.admin.create_slice("vllm-a", "vllm", 8000, {"addresses": ["127.0.0.1"], "conditions": ready, "targetRef": _ref("vllm-0", "u0")})
        cluster.admin.create_slice("vllm-b", "vllm", 8001, {"addresses": ["127.0.0.1"], "conditions": {"ready": False}})
        cluster.admin.create_slice("other", "another", 8002, {"addresses": ["127.0.0.1"], "conditions": ready})
        with serving(cluster, both) as service:
            wait_for_pods(service, "127.0.0.1:8000", "127.0.0.1:8001")
            wait_for(service, "127.0.0.1:8000", trust="live")
            found = pods(service)
            assert (found["127.0.0.1:8000"]["name"], found["127.0.0.1:8000"]["ready"]) == ("vllm-0", True)
            assert not found["127.0.0.1:8001"]["ready"]
            cluster.admin.patch_slice("vllm-a", {"endpoints": []})
            wait_for_pods(service, "127.0.0.1:8001")
        assert other.subscriptions() == 0


def _ref(name: str, uid: str) -> dict[str, str]:
    return {"kind": "Pod", "name": name, "uid": uid, "namespace": "inference"}


def test_an_engine_that_does_not_answer_yet_holds_up_no_other(cluster: Cluster) -> None:
    with Engine() as engine, EngineServer() as api, serving(cluster) as service:
        api.models = {"m": None}
        cluster.admin.create_pod("mute", **{**ports_of(engine, api), "http_port": engine.events_port})
        cluster.admin.create_pod("vllm-0", **ports_of(engine, api))
        wait_for_pods(service, f"127.0.0.1:{api.port}")
        assert service.metric("kv_indexer_discovered_pods", state="no_model") == 1


@pytest.mark.rule("K1")
def test_a_pod_outside_of_the_networks_is_not_dialled(cluster: Cluster) -> None:
    with Engine() as engine, serving(cluster, allowed_engine_networks="10.0.0.0/8") as service:
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        wait_until(lambda: service.metric("kv_indexer_discovered_pods", state="refused") == 1)
        assert pods(service) == {}
        assert "is outside the networks where engines may be" in readiness(service)["reasons"][0]
        assert engine.subscriptions() == 0


def test_what_a_client_registers_and_deletes_counts_above_what_is_discovered(cluster: Cluster) -> None:
    with Engine() as engine, Engine() as other, serving(cluster) as service:
        engine.publish(stored([1], PROMPT[:4]))
        cluster.admin.create_pod("vllm-0", **ports_of(engine))
        wait_for(service, "127.0.0.1:8000", trust="live", sequence=0)
        spec = {"model": "m", "events": f"tcp://127.0.0.1:{other.events_port}"}
        assert service.http.put(f"{service.url}/v1/pods/127.0.0.1:8000", json=spec).status_code == 200
        cluster.admin.set_status("vllm-0", ready=False)
        wait_until(lambda: not pods(service)["127.0.0.1:8000"]["ready"])
        assert service.stream("127.0.0.1:8000")["events"] == spec["events"]
        assert service.http.delete(f"{service.url}/v1/pods/127.0.0.1:8000").status_code == 204
        cluster.admin.set_status("vllm-0", ready=True)
        cluster.admin.create_pod("vllm-1", **{**ports_of(engine), "http_port": 8001})
        wait_for_pods(service, "127.0.0.1:8001")

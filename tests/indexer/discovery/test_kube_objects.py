"""What Kubernetes' objects say of engines, by convention."""

from typing import Any

import msgspec
import pytest

from indexer.discovery.found_engine import FoundEngine, by_pod
from indexer.discovery.kube_objects import EndpointSlice, InferencePool, Pod, engines_of_pod, engines_of_slice
from indexer.discovery.source_spec import EngineOptions
from indexer.errors import SettingError


def pod(ip: str | None = "10.0.0.7", *, ready: str = "True", phase: str = "Running", ports: object = None, **metadata: Any) -> Pod:
    status = {"phase": phase, "podIP": ip, "conditions": [{"type": "Initialized", "status": "True"}, {"type": "Ready", "status": ready}]}
    content = {
        "kind": "Pod",
        "metadata": {"name": "vllm-0", "uid": "u", "managedFields": [{"fieldsV1": {"f:status": {}}}], **metadata},
        "spec": {"containers": [{"name": "engine", "ports": ports}]},
        "status": status,
    }
    return msgspec.json.decode(msgspec.json.encode(content), type=Pod)


def engine(of: Pod, *ports: int, options: EngineOptions = EngineOptions()) -> FoundEngine:  # noqa: B008 - it is frozen
    (found,) = engines_of_pod(of, "s", options, ports)
    return found


def test_a_pod_without_a_word_is_what_vllm_is_by_default() -> None:
    found = engine(pod())
    assert (found.pod, found.name, found.uid, found.is_ready) == ("10.0.0.7:8000", "vllm-0", "u", True)
    (spec,) = found.discovered("m").specs
    assert (spec.pod, spec.model, spec.events, spec.replay) == ("10.0.0.7:8000", "m", "tcp://10.0.0.7:5557", "tcp://10.0.0.7:5558")


@pytest.mark.parametrize(
    "none",
    [pod(None), pod(phase="Succeeded"), pod(phase="Failed"), pod(annotations={"kv-indexer/ignore": "true"})],
    ids=["no address", "succeeded", "failed", "ignored"],
)
def test_some_pods_are_no_engines(none: Pod) -> None:
    assert engines_of_pod(none, "s", EngineOptions()) == []


@pytest.mark.parametrize("unready", [pod(ready="False"), pod(ready="Unknown"), pod(deletionTimestamp="2026-01-31T12:00:00Z")])
def test_a_pod_that_is_not_ready_or_leaves_is_not_ready(unready: Pod) -> None:
    assert not engine(unready).is_ready


def test_the_port_of_the_api_is_the_pools_the_annotations_the_labels_the_sources_the_containers() -> None:
    ports = [{"containerPort": 1, "name": "metrics"}, {"containerPort": 2, "name": "http"}]
    labels = {"model.aibrix.ai/port": "3", "model.aibrix.ai/name": "org/model"}
    annotations = {"kv-indexer/http-port": "4"}
    assert engine(pod(ports=ports)).port == 2
    assert engine(pod(ports=ports), options=EngineOptions(http_port=5)).port == 5
    labelled = engine(pod(ports=ports, labels=labels), options=EngineOptions(http_port=5))
    assert (labelled.port, labelled.options.model) == (3, "org/model")
    assert engine(pod(ports=ports, labels=labels, annotations=annotations)).port == 4
    assert engine(pod(ports=ports, labels=labels, annotations=annotations), 6).port == 6


def test_each_of_several_target_ports_is_an_engine_of_its_own_rank() -> None:
    first, second = engines_of_pod(pod(), "s", EngineOptions(), (8000, 8001))
    specs = [each.discovered("m").specs[0] for each in (first, second)]
    assert [(spec.pod, spec.rank, spec.events, spec.replay) for spec in specs] == [
        ("10.0.0.7:8000", 0, "tcp://10.0.0.7:5557", None),
        ("10.0.0.7:8001", 1, "tcp://10.0.0.7:5558", None),
    ]
    active = pod(annotations={"llm-d.ai/active-ports": "8001", "kv-indexer/replay-port": "5600"})
    (served,) = engines_of_pod(active, "s", EngineOptions(), (8000, 8001))
    (spec,) = served.discovered("m").specs
    assert (spec.pod, spec.rank, spec.events, spec.replay) == ("10.0.0.7:8001", 1, "tcp://10.0.0.7:5558", "tcp://10.0.0.7:5601")


def test_annotations_say_the_rest() -> None:
    said = {"events-port": "6000", "replay-port": "none", "ranks": "2", "model": "m", "topic": "kv", "counting": "set"}
    found = engine(pod(annotations={f"kv-indexer/{key}": text for key, text in said.items()}))
    (spec,) = found.discovered(found.options.model or "").specs
    assert (spec.events, spec.replay, spec.ranks, spec.model, spec.topic, spec.counting) == ("tcp://10.0.0.7:6000", None, 2, "m", "kv", "set")
    assert engine(pod(), options=EngineOptions(ranks=2)).discovered("m").specs[0].replay is None


def test_a_role_is_that_of_the_annotation_or_of_llm_ds_label() -> None:
    def role(**metadata: dict[str, str]) -> str:
        return engine(pod(**metadata)).discovered("m").specs[0].role

    assert (role(), role(labels={"llm-d.ai/role": "prefill"}), role(labels={"llm-d.ai/role": "encode"})) == ("both", "prefill", "both")
    assert role(labels={"llm-d.ai/role": "prefill"}, annotations={"kv-indexer/role": "decode"}) == "decode"


@pytest.mark.parametrize(
    ("annotations", "said"),
    [
        ({"kv-indexer/events-port": "x"}, "annotation kv-indexer/events-port: "),
        ({"kv-indexer/event-port": "1"}, "annotation kv-indexer/"),
        ({"kv-indexer/http-port": "70000"}, "annotation kv-indexer/http-port: "),
        ({"inference.networking.k8s.io/active-ports": "a,b"}, "annotation inference.networking.k8s.io/active-ports: should be ports"),
    ],
)
def test_a_wrong_annotation_is_named(annotations: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        engines_of_pod(pod(annotations=annotations), "s", EngineOptions())


def test_ports_that_make_no_spec_are_named_with_the_pod() -> None:
    found = engine(pod(annotations={"kv-indexer/events-port": "5557", "kv-indexer/replay-port": "5558", "kv-indexer/ranks": "2"}))
    with pytest.raises(SettingError, match=r"the engine vllm-0 that s found.*cannot be for events and for replays"):
        found.discovered("m")


@pytest.mark.rule("K1")
def test_a_host_is_only_ever_an_address() -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 address"):
        engines_of_pod(pod("metadata.internal"), "s", EngineOptions())
    assert engine(pod("fd00::7")).discovered("m").specs[0].events == "tcp://[fd00::7]:5557"
    assert engine(pod("fd00::7")).pod == "[fd00::7]:8000"


def test_an_address_belongs_to_who_stays_and_is_newer() -> None:
    leaving = engine(pod(name="old", deletionTimestamp="2026-01-31T12:00:00Z", creationTimestamp="2026-01-01T00:00:00Z"))
    new = engine(pod(name="new", ready="False", creationTimestamp="2026-01-31T12:00:01Z"))
    assert by_pod([leaving, new])["10.0.0.7:8000"].name == by_pod([new, leaving])["10.0.0.7:8000"].name == "new"


def test_a_slice_names_endpoints_with_their_readiness() -> None:
    content = {
        "metadata": {"name": "vllm-a"},
        "addressType": "IPv4",
        "ports": [{"name": "metrics", "port": 9000}, {"name": "http", "port": 8000}],
        "endpoints": [
            {"addresses": ["10.0.0.7"], "conditions": {"ready": True}, "targetRef": {"kind": "Pod", "name": "vllm-0", "uid": "u0"}},
            {"addresses": ["10.0.0.8"], "conditions": {}},
            {"addresses": ["10.0.0.9"], "conditions": {"ready": False, "serving": True, "terminating": True}},
        ],
    }
    each = msgspec.json.decode(msgspec.json.encode(content), type=EndpointSlice)
    found = engines_of_slice(each, "s", EngineOptions())
    assert [(engine.pod, engine.uid, engine.name, engine.is_ready, engine.is_leaving) for engine in found] == [
        ("10.0.0.7:8000", "u0", "vllm-0", True, False),
        ("10.0.0.8:8000", "", "", True, False),
        ("10.0.0.9:8000", "", "", False, True),
    ]
    assert engines_of_slice(msgspec.structs.replace(each, address_type="FQDN"), "s", EngineOptions()) == []


def test_a_pool_names_a_selector_and_ports() -> None:
    spec = {"selector": {"matchLabels": {"b": "2", "a": "1"}}, "targetPorts": [{"number": 8000}, {"number": 8001}]}
    pool = msgspec.json.decode(msgspec.json.encode({"metadata": {"name": "chat"}, "spec": spec}), type=InferencePool)
    assert (pool.selector, pool.target_ports) == ("a=1,b=2", (8000, 8001))
    assert msgspec.json.decode(b'{"metadata": {}, "spec": {"selector": {}}}', type=InferencePool).selector == ""

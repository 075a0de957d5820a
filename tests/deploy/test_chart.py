"""deploy/helm/kv-indexer: as it is written, and, in `make test-deploy`, as Helm makes it."""

import json
import re
import tomllib
from typing import Any

import pytest

from indexer.config.settings import fields, limit_fields
from indexer.engines.spec import EngineSpec
from indexer.limits import Limits
from indexer.main.read_settings import read_settings
from indexer.simulation.demo_engine import MODEL
from tests.deploy.checks import check_all_of_ours, check_confined, check_references, check_tokens_and_tls, containers_of_ours
from tests.deploy.manifests import CHART, DEPLOY, ROOT, Document, containers, load, named, templated
from tests.deploy.network import pod, reaches
from tests.deploy.test_kubernetes import CUSTOM, check_picker, validate

ENGINES = [
    {"pod": "a:8000", "model": MODEL, "events": "tcp://a:5557", "replay": "tcp://a:5657", "ranks": 2, "counting": "set", "http": "http://a/v"},
    {"pod": 'b"\\:8000', "model": "x/y{}: z", "events": "ipc:///run/b"},
]
ELSEWHERE = {"redis": {"enabled": False}, "networkPolicy": {"externalRedis": {"cidr": "10.0.0.0/8", "port": 6380}}}
EVERYTHING: Document = {
    "engines": ENGINES,
    "image": {"tag": "2.0.0", "pullSecrets": ["registry"]},
    "settings": {"weight_cpu": 0.25, "pod_expiry_s": 120, "hash_seed": "1e3"},
    "limits": {"log_entries_max": 1_000_000, "body_timeout_s": 2.5},
    "ingest": {"replicas": 3, "extraArgs": ["--lease-s", "5"], "nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}], "affinity": {}},
    "api": {
        "autoscaling": {"enabled": False},
        "replicas": 4,
        "workers": 3,
        "podAnnotations": {"a": "b"},
        "service": {"type": "LoadBalancer", "port": 80},
    },
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "redis": {"storageClass": "fast", "maxmemory": "2gb"},
    "networkPolicy": {"enginePorts": [{"port": 5557, "endPort": 5564}, {"port": 5657, "endPort": 5664}]},
    "tokens": {"existingSecret": "tokens", "adminKey": "admin-tokens"},
    "tls": {"existingSecret": "certificate"},
    "serviceMonitor": {
        "enabled": True,
        "labels": {"release": "prometheus"},
        "credentials": {"name": "token-of-prometheus"},
        "tlsConfig": {"ca": {"secret": {"name": "certificate", "key": "ca.crt"}}},
    },
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
}
# Settings that other values of the chart make.
SAID_ELSEWHERE = {
    *("redis", "host", "port", "workers", "api_token_file", "admin_token_file", "tls_cert", "tls_key", "discover", "listen", "listen_replay"),
    *("gateway_listen", "gateway_drain_s", "gateway_tls_cert", "gateway_tls_key", "gateway_self_signed"),
}
DISCOVERY: Document = {
    "discovery": {"selector": "app=vllm", "inferencePools": ["chat"], "services": ["vllm"], "namespaces": ["inference"]},
    "listen": {"enabled": True, "port": 6557, "ranks": 2, "replay": "tcp://{host}:5658"},
}
WAYS: dict[str, Document] = {
    "as it comes": {},
    "everything": EVERYTHING,
    "redis elsewhere": ELSEWHERE,
    "embedded": {"mode": "embedded", "engines": ENGINES},
    "gateway": {
        "gateway": {
            "enabled": True,
            "inferencePool": {"create": True, "selector": {"app": "vllm"}, "targetPorts": [8000, 8001], "failureMode": "FailClose"},
            "httpRoute": {"create": True, "parentRefs": [{"name": "inference-gateway"}], "hostnames": ["models.example.com"]},
        },
    },
    "gateway by tls": {"gateway": {"enabled": True, "port": 9443, "tls": "secret", "tlsSecret": "picker", "drainSeconds": 600}},
    "discovery": {"discovery": {"selector": "app=vllm"}},
    "discovery of all kinds, and engines that dial in": DISCOVERY,
    "embedded discovery": {"mode": "embedded", "discovery": {"selector": "app=vllm"}},
    "bare": {"networkPolicy": {"enabled": False}, "podDisruptionBudget": {"enabled": False}, "enginesConfigMap": "mine"},
}


# As it is written


def test_its_version_is_the_project_s() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = load(CHART / "Chart.yaml")
    assert chart["appVersion"] == version
    assert f'image.version="{version}"' in (DEPLOY / "Dockerfile").read_text()


def test_the_alerts_in_it_are_the_same() -> None:
    assert (CHART / "files/kv-indexer-rules.yml").read_bytes() == (DEPLOY / "prometheus/kv-indexer-rules.yml").read_bytes()


def keys(values: Document, schema: Document, path: str = "") -> list[str]:
    """Where the values and their schema name different keys."""
    properties = schema.get("properties")
    if properties is None or not isinstance(values, dict):
        return []
    wrong = [f"{path}.{key}" for key in (properties.keys() ^ values.keys()) - {"global"}]
    return wrong + [found for key in properties.keys() & values.keys() for found in keys(values[key], properties[key], f"{path}.{key}")]


def test_every_value_has_a_schema_and_a_default() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert keys(load(CHART / "values.yaml"), schema) == []
    assert keys({"mode": 1, "more": 1}, {"properties": {"mode": {}, "less": {}}}) != []


def test_the_values_have_every_setting_and_every_limit_by_its_name() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]
    assert schema["limits"]["propertyNames"]["enum"] == [field.name for field in limit_fields()]
    assert schema["settings"]["propertyNames"]["enum"] == [field.name for field in fields() if field.name not in SAID_ELSEWHERE]


def test_the_schema_of_an_engine_has_the_keys_of_a_spec() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    assert set(schema["definitions"]["engine"]["properties"]) == set(EngineSpec.__struct_fields__)


# As Helm makes it


@pytest.fixture(scope="module", params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[str, list[Document]]:
    return request.param, templated(WAYS[request.param])


@pytest.mark.deploy
def test_helm_finds_nothing_to_object_to() -> None:
    from helm_python import chart

    for values in WAYS.values():
        found = chart.lint(CHART, values, strict=True)
        assert found["errors"] == []
        assert {message["error"] for message in found["messages"]} <= {"icon is recommended"}


@pytest.mark.deploy
def test_kubernetes_takes_every_manifest(way: tuple[str, list[Document]]) -> None:
    _, documents = way
    for document in documents:
        if document["kind"] not in CUSTOM:
            validate(document)


@pytest.mark.deploy
def test_everything_that_is_named_is_there(way: tuple[str, list[Document]]) -> None:
    name, documents = way
    check_references(documents, outside={"mine"} if name == "bare" else set())
    names = [(document["kind"], document["metadata"]["name"]) for document in documents]
    assert len(names) == len(set(names))


@pytest.mark.deploy
@pytest.mark.parametrize("name", [name for name in WAYS if name != "bare"])
def test_every_container_of_ours_is_started_as_the_real_command_wants_it(name: str) -> None:
    roles = sorted(line.partition(": ")[2].split()[0] for line in check_all_of_ours(templated(WAYS[name])))
    assert roles == (["serve"] if name.startswith("embedded") else ["api", "ingest"])


@pytest.mark.deploy
def test_engines_and_settings_arrive_as_they_were_said() -> None:
    documents = templated(EVERYTHING)
    file = tomllib.loads(named(documents, "ConfigMap")["kv-indexer-engines"]["data"]["kv-indexer.toml"])
    assert file["engines"] == ENGINES
    (ingest,) = [container for container in containers(documents) if container.name.startswith("kv-indexer-ingest")]
    settings = read_settings({}, (), ingest.variables, file)
    assert (settings.weight_cpu, settings.pod_expiry_s, settings.hash_seed) == (0.25, 120.0, "1e3")
    (api,) = [container for container in containers(documents) if container.name.startswith("kv-indexer-api")]
    assert api.spec["args"] == ["api", "--config", "/etc/kv-indexer/kv-indexer.toml", "--workers", "3"]
    assert settings.limits == Limits.of(log_entries_max=1_000_000, body_timeout_s=2.5)
    assert ingest.spec["image"] == "kv-indexer:2.0.0"
    assert named(documents, "Deployment")["kv-indexer-ingest"]["spec"]["replicas"] == 3
    assert named(documents, "Deployment")["kv-indexer-api"]["spec"]["replicas"] == 4
    (redis,) = [container for container in containers(documents) if container.spec["image"].startswith("redis:")]
    assert redis.spec["command"][3] == "2gb"
    assert named(documents, "Service")["kv-indexer-api"]["spec"]["ports"][0]["port"] == 80


@pytest.mark.deploy
def test_tokens_and_a_certificate_reach_every_container_of_ours_and_prometheus() -> None:
    documents = templated(EVERYTHING)
    ours = containers_of_ours(documents)
    assert len(ours) == 2
    for container in ours:
        check_tokens_and_tls(container)
    (endpoint,) = named(documents, "ServiceMonitor")["kv-indexer"]["spec"]["endpoints"]
    assert endpoint["scheme"] == "https"
    assert endpoint["authorization"] == {"credentials": {"name": "token-of-prometheus", "key": "token"}}
    assert endpoint["tlsConfig"] == {"ca": {"secret": {"name": "certificate", "key": "ca.crt"}}}


@pytest.mark.deploy
def test_one_kind_of_token_is_enough() -> None:
    for values, name in (({}, "API_TOKEN_FILE"), ({"apiKey": "", "adminKey": "admins"}, "ADMIN_TOKEN_FILE")):
        (api,) = [each for each in containers_of_ours(templated({"tokens": {"existingSecret": "s", **values}})) if "api" in each.name]
        assert [variable for variable in api.variables if variable.endswith("TOKEN_FILE")] == [f"KV_INDEXER_{name}"]
        assert api.spec["livenessProbe"]["httpGet"]["scheme"] == "HTTP"


@pytest.mark.deploy
def test_a_longer_end_of_running_requests_is_waited_for() -> None:
    documents = templated({"settings": {"shutdown_s": 40.5}})
    assert named(documents, "Deployment")["kv-indexer-api"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == 58
    check_all_of_ours(documents)


@pytest.mark.deploy
def test_the_picker_of_a_pool() -> None:
    labels = {f"app.kubernetes.io/{key}": value for key, value in {"name": "kv-indexer", "instance": "kv-indexer", "component": "api"}.items()}
    documents = templated(WAYS["gateway"])
    check_picker(documents, labels, "kv-indexer")
    (pool,) = named(documents, "InferencePool").values()
    assert pool["spec"]["targetPorts"] == [{"number": 8000}, {"number": 8001}]
    assert pool["spec"]["endpointPickerRef"]["failureMode"] == "FailClose"
    (route,) = named(documents, "HTTPRoute").values()
    assert (route["spec"]["parentRefs"], route["spec"]["hostnames"]) == ([{"name": "inference-gateway"}], ["models.example.com"])
    (made,) = [each for each in containers_of_ours(templated({"gateway": {"enabled": True, "tls": "self-signed"}})) if "api" in each.name]
    assert read_settings({}, (), made.variables).gateway_self_signed


@pytest.mark.deploy
def test_a_picker_by_itself_with_a_certificate_of_a_secret() -> None:
    documents = templated(WAYS["gateway by tls"])
    assert not named(documents, "InferencePool")
    assert not named(documents, "HTTPRoute")
    assert named(documents, "Service")["kv-indexer-epp"]["spec"]["ports"][0]["appProtocol"] == "https"
    (api,) = [each for each in containers_of_ours(documents) if "api" in each.name]
    settings = read_settings({}, (), api.variables)
    assert (settings.gateway_listen, settings.gateway_drain_s) == ("0.0.0.0:9443", 600.0)
    mounts = {mount["mountPath"]: mount["name"] for mount in api.spec["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in api.pod["volumes"]}
    assert settings.gateway_tls_cert is not None
    assert volumes[mounts[settings.gateway_tls_cert.rpartition("/")[0]]]["secret"]["secretName"] == "picker"


@pytest.mark.deploy
def test_a_selector_is_all_that_discovery_takes() -> None:
    for values, follower in (({"discovery": {"selector": "app=vllm"}}, "ingest"), (WAYS["embedded discovery"], "api")):
        documents = templated(values)
        for container in containers_of_ours(documents):
            follows = follower in container.name
            assert (container.variables.get("KV_INDEXER_DISCOVER") == "pods:kv-indexer?selector=app=vllm") is follows, container.name
            assert container.pod["automountServiceAccountToken"] is follows, container.name
        (role,), (binding,) = named(documents, "Role").values(), named(documents, "RoleBinding").values()
        assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
        assert binding["roleRef"]["name"] == role["metadata"]["name"]
        assert [subject["name"] for subject in binding["subjects"]] == list(named(documents, "ServiceAccount"))
        assert {role["metadata"]["namespace"], binding["subjects"][0]["namespace"]} == {"kv-indexer"}


@pytest.mark.deploy
def test_sources_of_all_kinds_have_their_rights_where_the_engines_are() -> None:
    documents = templated(DISCOVERY)
    (ingest,) = [each for each in containers_of_ours(documents) if "ingest" in each.name]
    settings = read_settings({}, (), {**ingest.variables, "KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert settings.discover == ("pods:inference?selector=app=vllm", "inferencepool:inference/chat", "service:inference/vllm")
    assert (settings.listen, settings.listen_replay) == ("tcp://*:6557,ranks=2", "tcp://{host}:5658")
    (role,) = named(documents, "Role").values()
    assert role["metadata"]["namespace"] == "inference"
    assert [rule["resources"] for rule in role["rules"]] == [["pods"], ["inferencepools"], ["endpointslices"]]
    assert {verb for rule in role["rules"] for verb in rule["verbs"]} == {"list", "watch"}
    assert "Role" not in {document["kind"] for document in templated()}


@pytest.mark.deploy
def test_engines_that_dial_in_reach_an_indexer_at_the_port_of_each_rank() -> None:
    documents = templated(DISCOVERY)
    service = named(documents, "Service")["kv-indexer-listen"]["spec"]
    (ingest,) = [each for each in containers_of_ours(documents) if "ingest" in each.name]
    ports = {port["name"]: port["containerPort"] for port in ingest.spec["ports"]}
    assert [(port["port"], ports[port["targetPort"]]) for port in service["ports"]] == [(6557, 6557), (6558, 6558)]
    policies = list(named(documents, "NetworkPolicy").values())
    for policy in policies:
        policy["metadata"]["namespace"] = "kv-indexer"
    labels = {f"app.kubernetes.io/{key}": value for key, value in {"name": "kv-indexer", "instance": "kv-indexer", "component": "ingest"}.items()}
    ours = pod("kv-indexer", labels)
    for engine in (pod("inference"), pod("models")):
        assert reaches(policies, engine, ours, 6558)
        assert reaches(policies, ours, engine, 5557)
        assert not reaches(policies, engine, ours, 8080)
    assert not reaches(policies, pod("elsewhere"), ours, 6557)
    (way,) = [rule for rule in named(documents, "NetworkPolicy")["kv-indexer-ingest"]["spec"]["egress"] if "ipBlock" in rule["to"][0]]
    assert [port["port"] for port in way["ports"]] == [443, 6443]
    assert not [rule for rule in named(documents, "NetworkPolicy")["kv-indexer-api"]["spec"]["egress"] if "ipBlock" in rule["to"][0]]


@pytest.mark.deploy
def test_redis_comes_with_the_file_and_is_confined() -> None:
    documents = templated()
    (redis,) = [container for container in containers(documents) if container.spec["image"].startswith("redis:")]
    check_confined(redis)
    assert named(documents, "ConfigMap")["kv-indexer-redis"]["data"]["redis.conf"].strip() == (DEPLOY / "redis.conf").read_text().strip()


@pytest.mark.deploy
def test_the_alerts_arrive_untouched() -> None:
    rule = named(templated(EVERYTHING), "PrometheusRule")["kv-indexer"]
    assert rule["spec"] == load(DEPLOY / "prometheus/kv-indexer-rules.yml")


@pytest.mark.deploy
@pytest.mark.parametrize("release", ["kv-indexer", "prod"])
def test_who_reaches_whom(release: str) -> None:
    policies = list(named(templated(release=release), "NetworkPolicy").values())
    for policy in policies:
        policy["metadata"]["namespace"] = "kv-indexer"  # where Helm installs it

    def of(component: str, instance: str = release) -> Any:
        labels = {"name": "kv-indexer", "instance": instance, "component": component}
        return pod("kv-indexer", {f"app.kubernetes.io/{key}": value for key, value in labels.items()})

    engine, router, prometheus = pod("models"), pod("gateways", **{"kv-indexer/client": "true"}), pod("monitoring")
    assert reaches(policies, of("ingest"), of("redis"), 6379)
    assert reaches(policies, of("api"), of("redis"), 6379)
    assert not reaches(policies, router, of("redis"), 6379)
    assert not reaches(policies, of("api", "another"), of("redis"), 6379)
    assert reaches(policies, of("ingest"), engine, 5558)
    assert not reaches(policies, of("api"), engine, 5558)
    assert reaches(policies, of("api"), engine, 8000)
    assert reaches(policies, of("ingest"), engine, 8000)
    assert reaches(policies, router, of("api"), 8080)
    assert not reaches(policies, router, of("ingest"), 8080)
    assert reaches(policies, prometheus, of("ingest"), 8080)
    assert not reaches(policies, pod("elsewhere"), of("api"), 8080)


@pytest.mark.deploy
@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mode": "both"}, "/mode"),
        ({"engine": []}, "engine"),
        ({"settings": {"redis": "redis://:secret@r"}}, "'redis'"),
        ({"settings": {"pod-expiry-s": 1}}, "'pod-expiry-s'"),
        ({"engines": [{"pod": "a"}]}, "model"),
        ({"engines": [{"pod": "a", "model": "m", "events": "a:5557"}]}, "events"),
        ({"redis": {"existingSecret": ""}}, "existingSecret"),
        ({"redis": {"enabled": False}}, "externalRedis.cidr"),
        ({"engines": [{"pod": "a", "model": "m", "events": "tcp://a:5557", "http": "a:8000"}]}, "http"),
        ({"settings": {"api_token_file": "/tokens"}}, "'api_token_file'"),
        ({"tokens": {"existingSecret": "s", "apiKey": ""}}, "tokens.adminKey"),
        ({"settings": {"gateway_listen": "0.0.0.0:1"}}, "'gateway_listen'"),
        ({"gateway": {"enabled": True, "inferencePool": {"create": True}}}, "gateway.inferencePool.selector"),
        ({"gateway": {"enabled": True, "httpRoute": {"create": True}}}, "gateway.httpRoute.parentRefs"),
        ({"gateway": {"enabled": True, "tls": "secret"}}, "gateway.tlsSecret"),
        ({"gateway": {"tls": "yes"}}, "tls"),
        ({"settings": {"pod_expiry": 1}}, "'pod_expiry'"),
        ({"settings": {"discover": "pods:a?selector=b"}}, "'discover'"),
        ({"limits": {"log_entries": 1}}, "'log_entries'"),
        ({"discovery": {"selectors": "app=vllm"}}, "'selectors'"),
        ({"discovery": {"namespaces": ["a/b"]}}, "/discovery/namespaces/0"),
        ({"networkPolicy": {"apiServers": {}}}, "'apiServers'"),
        ({"mode": "embedded", "listen": {"enabled": True}}, "listen.enabled"),
    ],
)
def test_a_wrong_value_is_named(values: Document, said: str) -> None:
    from helm_python import HelmError

    with pytest.raises(HelmError, match=re.escape(said)):
        templated(values)

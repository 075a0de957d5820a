"""deploy/kubernetes: as it is written, and, in `make test-deploy`, as kustomize makes it."""

import os
import tomllib
from pathlib import Path

import pytest
import yaml

from indexer.config.settings import Settings
from tests.deploy.checks import (
    check_all_of_ours,
    check_command,
    check_confined,
    check_references,
    check_tokens_and_tls,
    containers_of_ours,
    routes,
)
from tests.deploy.manifests import DEPLOY, KUBERNETES, OVERLAYS, Document, containers, copy, kustomized, load_all, named, tool, written
from tests.deploy.network import pod, reaches

COMPONENT = "app.kubernetes.io/component"
OURS = {"app.kubernetes.io/name": "kv-indexer"}
# The oldest that the chart takes, and the newest whose schemas there are.
KUBERNETES_VERSIONS = ("1.30", "1.37")
# Kinds of the Prometheus operator and of the Gateway API, whose schemas Kubernetes does not have.
CUSTOM = {"ServiceMonitor", "PrometheusRule", "InferencePool", "HTTPRoute"}
SENT_TO_ENGINES = (5557, 5558)


def kustomizations() -> list[tuple[Path, Document]]:
    return [(path, document) for path, document in written() if path.name == "kustomization.yaml"]


def validate(document: Document) -> None:
    """Against Kubernetes's own schemas, with nothing in it that they do not know."""
    import kubernetes_validate

    for version in KUBERNETES_VERSIONS:
        kubernetes_validate.validate(document, version, strict=True)


# As it is written


def test_every_file_that_a_kustomization_names_is_there_and_every_file_is_named() -> None:
    named_files = {path for path, _ in kustomizations()}
    for path, document in kustomizations():
        for entry in [*document.get("resources", []), *document.get("components", [])]:
            target = (path.parent / entry).resolve()
            named_files.add(target)
            assert target.is_file() or (target / "kustomization.yaml").is_file(), f"{path}: {entry}"
        patches = [patch["path"] for patch in document.get("patches", [])]
        files = [name for generator in document.get("configMapGenerator", []) for name in generator.get("files", [])]
        for name in [*patches, *files]:
            assert (path.parent / name).is_file(), f"{path}: {name}"
            named_files.add((path.parent / name).resolve())
    assert {path for path in KUBERNETES.rglob("*") if path.is_file()} - named_files == set()


def test_the_real_command_takes_every_command_and_the_example_engines() -> None:
    files = [tomllib.loads(path.read_text()) for path in sorted(KUBERNETES.rglob("*.toml"))]
    assert len(files) == 2
    told = []
    for container in containers_of_ours([document for _, document in written() if document.get("kind") == "Deployment"]):
        environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", **container.variables, **dict.fromkeys(container.secret_variables, "redis://r/0")}
        for file in files:
            settings = check_command(container.spec["args"], environ, file)
            assert settings.discover == ("pods:models?selector=app=vllm",) or [spec.model for spec in settings.engines] == ["my/model"] * 2
        told.append(container.spec["args"][0])
    assert sorted(told) == ["api", "ingest", "serve"]


def test_every_setting_in_a_generated_map_is_one() -> None:
    for path, document in kustomizations():
        for generator in document.get("configMapGenerator", []):
            entries = dict(text.split("=", 1) for text in generator.get("literals", []))
            if entries:
                check_command(["serve"], entries)
                assert path.parent.name == "replicas"


def test_no_secret_stands_in_a_file() -> None:
    kinds = {document.get("kind") for _, document in written()}
    assert "Deployment" in kinds
    assert "Secret" not in kinds
    assert not any("secretGenerator" in document for _, document in kustomizations())
    for container in containers([document for _, document in written() if "kind" in document]):
        assert not [name for name in container.variables if "PASSWORD" in name or "AUTH" in name or name == "KV_INDEXER_REDIS"], container.name


def test_the_file_of_engines_comes_through_without_a_restart() -> None:
    generators = [generator for _, document in kustomizations() for generator in document.get("configMapGenerator", [])]
    engines = [generator for generator in generators if generator["name"] == "kv-indexer-engines"]
    assert len(engines) == 2
    assert all(generator["options"]["disableNameSuffixHash"] is True for generator in engines)


# As kustomize makes it


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> tuple[str, list[Document]]:
    return request.param, kustomized(request.param)


@pytest.mark.deploy
def test_kubernetes_takes_every_manifest(overlay: tuple[str, list[Document]]) -> None:
    _, documents = overlay
    checked = [document for document in documents if document["kind"] not in CUSTOM]
    assert checked
    for document in checked:
        validate(document)


@pytest.mark.deploy
def test_a_manifest_with_an_unknown_field_is_refused() -> None:
    import kubernetes_validate

    deployment = copy(named(kustomized("overlays/shared"), "Deployment")["kv-indexer-api"])
    deployment["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        validate(deployment)


@pytest.mark.deploy
def test_everything_that_is_named_is_there(overlay: tuple[str, list[Document]]) -> None:
    name, documents = overlay
    check_references(documents, outside={"engines"} if name in ("engines", "overlays/gateway-api") else set())


@pytest.mark.deploy
def test_every_container_of_ours_is_started_as_the_real_command_wants_it(overlay: tuple[str, list[Document]]) -> None:
    name, documents = overlay
    roles = sorted(line.partition(": ")[2].split()[0] for line in check_all_of_ours(documents))
    assert roles == {"overlays/sidecar": ["serve"], "engines": []}.get(name, ["api", "ingest"])


@pytest.mark.deploy
@pytest.mark.parametrize("name", ["shared", "external-redis"])
def test_tokens_and_a_certificate_reach_every_container_of_ours(name: str, tmp_path: Path) -> None:
    relative = os.path.relpath(KUBERNETES, tmp_path)
    wanted = {"resources": [f"{relative}/overlays/{name}"], "components": [f"{relative}/tokens-and-tls"]}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(wanted))
    documents = load_all(tool("kubectl", "kustomize", str(tmp_path)))
    assert len(check_all_of_ours(documents)) == 2
    check_references(documents, outside=set())
    for container in containers_of_ours(documents):
        check_tokens_and_tls(container)
        validate(named(documents, "Deployment")[container.name.partition("/")[0]])


@pytest.mark.deploy
def test_redis_is_confined_too_and_reads_the_file() -> None:
    documents = kustomized("overlays/shared")
    (redis,) = [container for container in containers(documents) if container.spec["image"].startswith("redis:")]
    check_confined(redis)
    assert redis.secret_variables == {"REDIS_PASSWORD", "REDISCLI_AUTH"}
    (volume,) = [volume for volume in redis.pod["volumes"] if volume["name"] == "config"]
    data = named(documents, "ConfigMap")[volume["configMap"]["name"]]["data"]
    assert data["redis.conf"] == (DEPLOY / "redis.conf").read_text()
    (mount,) = [mount for mount in redis.spec["volumeMounts"] if mount["name"] == "config"]
    assert redis.spec["command"][1] == f"{mount['mountPath']}/redis.conf"


@pytest.mark.deploy
def test_prometheus_finds_both_roles() -> None:
    documents = kustomized("overlays/shared")
    monitor = named(documents, "ServiceMonitor")["kv-indexer"]
    assert {endpoint["path"] for endpoint in monitor["spec"]["endpoints"]} == {"/metrics"} <= routes()
    wanted = {expression["key"]: expression["values"] for expression in monitor["spec"]["selector"]["matchExpressions"]}
    chosen = [
        name
        for name, service in named(documents, "Service").items()
        if all(service["metadata"]["labels"].get(key) in values for key, values in wanted.items())
        and {port["name"] for port in service["spec"]["ports"]} >= {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]}
    ]
    assert sorted(chosen) == ["kv-indexer-api", "kv-indexer-ingest"]


@pytest.mark.deploy
def test_the_autoscaler_alone_says_how_many_scorers_there_are() -> None:
    documents = kustomized("overlays/shared")
    scaler = named(documents, "HorizontalPodAutoscaler")["kv-indexer-api"]["spec"]
    assert "replicas" not in named(documents, "Deployment")[scaler["scaleTargetRef"]["name"]]["spec"]
    assert scaler["minReplicas"] >= 2


@pytest.mark.deploy
def test_who_reaches_whom() -> None:
    policies = named(kustomized("overlays/shared"), "NetworkPolicy")
    engine_policies = named(kustomized("engines"), "NetworkPolicy")
    for policy in engine_policies.values():
        policy["metadata"]["namespace"] = "models"
    rules = [*policies.values(), *engine_policies.values()]
    ingest, api, redis = (pod("kv-indexer", {**OURS, COMPONENT: each}) for each in ("ingest", "api", "redis"))
    engine, router, prometheus = pod("models", {"app": "vllm"}), pod("gateways", **{"kv-indexer/client": "true"}), pod("monitoring")
    names, stranger, neighbour = pod("kube-system", {"k8s-app": "kube-dns"}), pod("elsewhere"), pod("kv-indexer", {"app": "other"})
    sidecar = pod("gateways", {"kv-indexer/sidecar": "true"}, **{"kv-indexer/client": "true"})

    def who_reaches(target: object, port: int, protocol: str = "TCP") -> set[str]:
        sources = {
            "ingest": ingest,
            "api": api,
            "redis": redis,
            "engine": engine,
            "router": router,
            "sidecar": sidecar,
            "prometheus": prometheus,
            "stranger": stranger,
            "neighbour": neighbour,
        }
        return {name for name, source in sources.items() if source is not target and reaches(rules, source, target, port, protocol)}

    assert who_reaches(redis, 6379) == {"ingest", "api"}
    assert who_reaches(api, 8080) == {"router", "sidecar", "prometheus"}
    assert who_reaches(ingest, 8080) == {"prometheus"}
    for port in SENT_TO_ENGINES:
        assert who_reaches(engine, port) == {"ingest", "sidecar"}
    # Prometheus too, for the engines' own metrics.
    assert who_reaches(engine, 8000) == {"router", "sidecar", "api", "ingest", "prometheus"}
    assert {"ingest", "api"} <= who_reaches(names, 53, "UDP")
    assert "redis" not in who_reaches(stranger, 443)


def check_picker(documents: list[Document], labels: dict[str, str], namespace: str) -> None:
    """The pool's picker is the Service in front of the scorers, all of it in one namespace, and gateways alone get there."""
    (pool,), (route,) = (list(named(documents, kind).values()) for kind in ("InferencePool", "HTTPRoute"))
    picker = pool["spec"]["endpointPickerRef"]
    service = named(documents, "Service")[picker["name"]]
    (port,) = service["spec"]["ports"]
    assert port["port"] == picker["port"]["number"]
    (api,) = [each for each in containers_of_ours(documents) if "api" in each.name]
    assert {"name": port["targetPort"], "containerPort": picker["port"]["number"]} in api.spec["ports"]
    assert api.variables["KV_INDEXER_GATEWAY_LISTEN"].endswith(f":{picker['port']['number']}")
    assert port["appProtocol"] == ("https" if "KV_INDEXER_GATEWAY_SELF_SIGNED" in api.variables else "kubernetes.io/h2c")
    assert pool["spec"]["selector"]["matchLabels"] == {"app": "vllm"}
    (rule,) = route["spec"]["rules"]
    assert [(ref["kind"], ref["name"]) for ref in rule["backendRefs"]] == [("InferencePool", pool["metadata"]["name"])]
    policies = list(named(documents, "NetworkPolicy").values())
    for policy in policies:
        policy["metadata"]["namespace"] = namespace
    scorer, gateway = pod(namespace, labels), pod("gateways", **{"kv-indexer/client": "true"})
    assert reaches(policies, gateway, scorer, picker["port"]["number"])
    assert not reaches(policies, pod("elsewhere"), scorer, picker["port"]["number"])


@pytest.mark.deploy
def test_the_picker_of_a_pool() -> None:
    documents = kustomized("overlays/gateway-api")
    check_picker(documents, {**OURS, COMPONENT: "api"}, "models")
    assert {document["metadata"].get("namespace") for document in documents} == {"models"}
    (binding,) = named(documents, "RoleBinding").values()
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "kv-indexer", "namespace": "models"}]
    policies = list(named(documents, "NetworkPolicy").values())
    engine, ingest, api = pod("models", {"app": "vllm"}), pod("models", {**OURS, COMPONENT: "ingest"}), pod("models", {**OURS, COMPONENT: "api"})
    assert reaches(policies, ingest, engine, SENT_TO_ENGINES[0])
    assert reaches(policies, api, engine, 8000)
    assert not reaches(policies, pod("kv-indexer", {**OURS, COMPONENT: "ingest"}), engine, SENT_TO_ENGINES[0])


@pytest.mark.deploy
def test_a_redis_elsewhere_is_reached_there_and_nowhere_else() -> None:
    documents = kustomized("overlays/external-redis")
    assert not [container for container in containers(documents) if container.spec["image"].startswith("redis:")]
    api_server = [{"protocol": "TCP", "port": port} for port in (443, 6443)]
    for name, policy in named(documents, "NetworkPolicy").items():
        ways = [rule for rule in policy["spec"]["egress"] if any("ipBlock" in peer for peer in rule["to"])]
        # The API server's, which only indexers ask.
        assert [rule for rule in ways if rule["ports"] == api_server] == ways[1:]
        assert bool(ways[1:]) is ("ingest" in name)
        ways = [rule for rule in ways if rule["ports"] != api_server]
        assert ways == [{"to": [{"ipBlock": {"cidr": "10.20.0.0/24"}}], "ports": [{"protocol": "TCP", "port": 6380}]}]
        assert COMPONENT not in yaml.safe_dump(policy["spec"]["egress"])


@pytest.mark.deploy
def test_the_sidecar_starts_before_the_gateway_and_the_gateway_is_as_it_was() -> None:
    documents = kustomized("overlays/sidecar")
    template = named(documents, "Deployment")["gateway"]["spec"]["template"]
    (gateway,) = template["spec"]["containers"]
    (sidecar,) = template["spec"]["initContainers"]
    assert sidecar["restartPolicy"] == "Always"
    assert sidecar["startupProbe"]["httpGet"]["path"] == "/readyz"
    assert gateway["name"] == "gateway"
    assert {entry["name"]: entry["value"] for entry in gateway["env"]} == {"KV_SCORER_URL": f"http://127.0.0.1:{Settings().port}"}
    assert template["metadata"]["labels"] == {"app": "gateway", "kv-indexer/sidecar": "true"}

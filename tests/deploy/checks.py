"""What holds of every container of ours, however it is deployed."""

import tomllib
from collections.abc import Mapping
from typing import Any

from fastapi.openapi.utils import get_openapi

from indexer.config.settings import Settings
from indexer.engines.spec import ListenSpec
from indexer.main.read_settings import read_settings
from scorer_api.app import make_serve
from scorer_api.cli.main import make_parser
from tests.deploy.manifests import Container, Document, containers, named

SECRET_URL = "redis://:secret@redis:6379/0"  # noqa: S105 - stands for what the secret holds
NEED_REDIS = {"ingest", "api"}


def routes() -> set[str]:
    served = make_serve(Settings())
    return set(get_openapi(title="", version="", routes=served.app.routes)["paths"])


def check_command(words: list[str], environ: Mapping[str, str], file: Mapping[str, Any] | None = None) -> Settings:
    """The real parser and the real settings take these. Raises SystemExit or SettingError where they do not."""
    parsed = make_parser().parse_args(words)
    flags = {name: value for name, value in vars(parsed).items() if name in Settings.__struct_fields__}
    settings = read_settings(flags, getattr(parsed, "engine", None) or (), environ, file)
    assert words[0] not in NEED_REDIS or settings.redis is not None, f"{words[0]} needs Redis"
    return settings


def check_all_of_ours(documents: list[Document]) -> list[str]:
    """Check each container of ours. Returns what they were told, to see that there was something to check."""
    known = routes()
    maps = named(documents, "ConfigMap")
    told = []
    for container in containers_of_ours(documents):
        # Kubernetes says to every pod where its API server is.
        environ = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", **container.variables, **dict.fromkeys(container.secret_variables, SECRET_URL)}
        for source in container.spec.get("envFrom", []):
            environ |= maps[source["configMapRef"]["name"]]["data"]
        words = container.spec["args"]
        files = {f"{mount['mountPath']}/{name}": text for mount, name, text in _mounted(container, maps)}
        config = words[words.index("--config") + 1] if "--config" in words else None
        settings = check_command(words, environ, tomllib.loads(files[config]) if config else None)
        _check_ports(container, settings, known)
        check_confined(container)
        assert container.pod["enableServiceLinks"] is False, container.name
        # Enough for running requests to finish, and for what comes before SIGTERM.
        pause_s = container.spec.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        end_s = settings.shutdown_s if settings.gateway_listen is None else max(settings.shutdown_s, settings.gateway_drain_s)
        assert container.pod["terminationGracePeriodSeconds"] > pause_s + end_s + 5, container.name
        told.append(f"{container.name}: {' '.join(words)}")
    return told


def containers_of_ours(documents: list[Document]) -> list[Container]:
    return [container for container in containers(documents) if container.is_ours]


def _mounted(container: Container, maps: Mapping[str, Document]) -> list[tuple[Document, str, str]]:
    volumes = {volume["name"]: volume for volume in container.pod.get("volumes", [])}
    found = []
    for mount in container.spec.get("volumeMounts", []):
        assert "subPath" not in mount, "a map that is mounted by subPath never changes"
        volume = volumes[mount["name"]]
        if "configMap" in volume:
            found += [(mount, name, text) for name, text in maps[volume["configMap"]["name"]]["data"].items()]
    return found


def _check_ports(container: Container, settings: Settings, known: set[str]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container.spec["ports"]}
    gateways = [] if settings.gateway_listen is None else [int(settings.gateway_listen.rpartition(":")[2])]
    listening = [] if settings.listen is None else ListenSpec.from_text(settings.listen)
    dial_in = [listening.port + rank for rank in range(listening.ranks)] if listening else []
    assert sorted(ports.values()) == sorted([settings.port, *gateways, *dial_in]), container.name
    probes = [container.spec[name] for name in ("startupProbe", "livenessProbe", "readinessProbe") if name in container.spec]
    asked = [probe["httpGet"]["path"] for probe in probes]
    assert set(asked) == {"/healthz", "/readyz"} <= known, container.name
    assert container.spec["livenessProbe"]["httpGet"]["path"] == "/healthz", "a scorer that still loads is not to be restarted"
    assert {probe["httpGet"]["port"] for probe in probes} <= set(ports), container.name


def check_confined(container: Container) -> None:
    """Neither root nor able to become it, nothing to write to, nothing unbounded."""
    security = {**container.pod.get("securityContext", {}), **container.spec["securityContext"]}
    assert security["runAsNonRoot"] is True, container.name
    assert security["seccompProfile"] == {"type": "RuntimeDefault"}, container.name
    assert security["allowPrivilegeEscalation"] is False, container.name
    assert security["readOnlyRootFilesystem"] is True, container.name
    assert security["capabilities"] == {"drop": ["ALL"]}, container.name
    assert "memory" in container.spec["resources"]["limits"], container.name
    assert {"cpu", "memory"} <= set(container.spec["resources"]["requests"]), container.name


def check_tokens_and_tls(container: Container) -> None:
    """Every file that a setting names comes from a secret, and the probes speak as the service then does."""
    volumes = {volume["name"]: volume for volume in container.pod["volumes"]}
    mounted = {
        mount["mountPath"]: volumes[mount["name"]]["secret"]["secretName"]
        for mount in container.spec["volumeMounts"]
        if "secret" in volumes[mount["name"]]
    }
    files = {name: value for name, value in container.variables.items() if name.endswith(("_TOKEN_FILE", "_TLS_CERT", "_TLS_KEY"))}
    assert {name.removeprefix("KV_INDEXER_") for name in files} == {"API_TOKEN_FILE", "ADMIN_TOKEN_FILE", "TLS_CERT", "TLS_KEY"}, container.name
    assert {path.rpartition("/")[0] for path in files.values()} == set(mounted), container.name
    assert len(set(mounted.values())) == 2, container.name
    assert {container.spec[name]["httpGet"]["scheme"] for name in ("livenessProbe", "readinessProbe")} == {"HTTPS"}, container.name


def check_references(documents: list[Document], outside: set[str]) -> None:
    """Everything that one document names is there, or is one of `outside`, which somebody else makes."""
    maps, accounts = named(documents, "ConfigMap"), named(documents, "ServiceAccount")
    labels = [document["spec"]["template"]["metadata"]["labels"] for document in documents if document["kind"] in ("Deployment", "StatefulSet")]
    for document in documents:
        kind, name, spec = document["kind"], document["metadata"]["name"], document.get("spec", {})
        if kind in ("Deployment", "StatefulSet"):
            pod = spec["template"]["spec"]
            wanted = {volume["configMap"]["name"] for volume in pod.get("volumes", []) if "configMap" in volume}
            wanted |= {source["configMapRef"]["name"] for each in pod.get("containers", []) for source in each.get("envFrom", [])}
            assert wanted <= set(maps) | outside, f"{kind} {name}"
            assert pod.get("serviceAccountName") in {None, *accounts}, f"{kind} {name}"
            assert spec["selector"]["matchLabels"].items() <= spec["template"]["metadata"]["labels"].items(), f"{kind} {name}"
        elif kind == "HorizontalPodAutoscaler":
            assert spec["scaleTargetRef"]["name"] in named(documents, "Deployment"), name
        elif kind in ("Service", "PodDisruptionBudget"):
            chosen = spec["selector"] if kind == "Service" else spec["selector"]["matchLabels"]
            assert any(chosen.items() <= each.items() for each in labels), f"{kind} {name} chooses no pod"
        elif kind == "NetworkPolicy":
            assert any(spec["podSelector"]["matchLabels"].items() <= each.items() for each in labels) or "engines" in outside, f"{kind} {name}"

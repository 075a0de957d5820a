"""deploy/compose.yaml: what it starts, from which files, and with which words."""

import shlex
from typing import Any

import pytest
import yaml

from indexer.config.settings import Settings
from tests.deploy.checks import check_command, routes
from tests.deploy.manifests import DEPLOY, ROOT, compose, copy, load

OURS = "kv-indexer:"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = compose()["services"]
    return found


def with_defaults(text: str) -> str:
    """As compose reads it where nobody sets a variable."""
    return text.replace("${REDIS_PASSWORD:-}", "")


def settings_of(service: dict[str, Any]) -> Settings:
    return check_command(service["command"], {name: with_defaults(value) for name, value in service.get("environment", {}).items()})


def port_of(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    return host, int(port)


def test_there_are_two_of_each(services: dict[str, Any]) -> None:
    roles = [service["command"][0] for service in services.values() if service["image"].startswith(OURS)]
    assert {role: roles.count(role) for role in roles} == {"demo-engine": 2, "ingest": 2, "api": 2, "score": 1}


def test_the_real_command_takes_every_command_and_every_variable(services: dict[str, Any]) -> None:
    for service in services.values():
        if service["image"].startswith(OURS):
            settings_of(service)


def test_the_indexers_dial_the_engines_where_these_listen(services: dict[str, Any]) -> None:
    for name in ("indexer-0", "indexer-1"):
        specs = settings_of(services[name]).engines
        assert {spec.pod for spec in specs} == {"demo-0", "demo-1"}
        for spec in specs:
            words = services[spec.pod]["command"]
            said = dict(zip(words[1::2], words[2::2], strict=True))
            assert said["--pod"] == spec.pod
            assert said["--host"] == "0.0.0.0"  # noqa: S104 - inside its container
            assert spec.events is not None
            assert spec.replay is not None
            assert (port_of(spec.events), port_of(spec.replay)) == (
                (spec.pod, int(said["--events-port"])),
                (spec.pod, int(said["--replay-port"])),
            )
            assert spec.http == f"http://{spec.pod}:{said['--http-port']}"


def test_all_share_one_redis_which_is_there(services: dict[str, Any]) -> None:
    urls = {settings_of(services[name]).redis for name in ("indexer-0", "indexer-1", "api-0", "api-1")}
    assert urls == {"redis://:@redis:6379/0"}


def test_who_is_on_which_network(services: dict[str, Any]) -> None:
    on = {network: {name for name, service in services.items() if network in service["networks"]} for network in compose()["networks"]}
    assert on["engines"] == {"demo-0", "demo-1", "indexer-0", "indexer-1", "api-0", "api-1"}
    assert on["store"] == {"redis", "indexer-0", "indexer-1", "api-0", "api-1"}
    assert set().union(*on.values()) == set(services)
    assert {name for name, network in compose()["networks"].items() if (network or {}).get("internal")} == {"engines", "store"}


def test_only_the_machine_itself_reaches_what_is_published(services: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert published == {"balancer": ["127.0.0.1:8080:8080"], "prometheus": ["127.0.0.1:9090:9090"], "grafana": ["127.0.0.1:3000:3000"]}


def test_each_waits_for_what_it_needs_until_that_is_well(services: dict[str, Any]) -> None:
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how == {"condition": "service_healthy"}, name
            # Ours have one in the image, but for those that speak no HTTP, which say theirs here.
            assert "healthcheck" in services[needed] or services[needed]["command"][0] == "ingest", needed
    assert set(services["api-0"]["depends_on"]) == {"redis", "indexer-0", "indexer-1"}
    assert set(services["balancer"]["depends_on"]) == {"api-0", "api-1"}


def test_health_checks_ask_routes_that_there_are(services: dict[str, Any]) -> None:
    for name in ("api-0", "api-1", "balancer"):
        asked = " ".join(services[name]["healthcheck"]["test"])
        assert "http://127.0.0.1:8080/readyz" in asked
    assert "/readyz" in routes()


def test_every_file_that_is_mounted_is_there(services: dict[str, Any]) -> None:
    volumes = compose()["volumes"]
    for name, service in services.items():
        for mount in service.get("volumes", []):
            source, _, rest = mount.partition(":")
            assert source in volumes or ((DEPLOY / source).exists() and rest.endswith(":ro")), f"{name}: {mount}"
        if "build" in service:
            assert (DEPLOY / service["build"]["context"]).resolve() == ROOT
            assert (ROOT / service["build"]["dockerfile"]).is_file()


def test_none_is_root_or_may_become_it_or_takes_more_than_its_share(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        if name != "score":
            assert {"cpus", "memory"} == set(service["deploy"]["resources"]["limits"]), name


def test_images_are_of_one_version_each(services: dict[str, Any]) -> None:
    tags = {service["image"] for service in services.values()}
    assert all(tag.rpartition(":")[2][0].isdigit() or tag.rpartition(":")[2].startswith("v") for tag in tags), tags


def test_no_secret_stands_in_it() -> None:
    lines = [line for line in (DEPLOY / "compose.yaml").read_text().splitlines() if not line.strip().startswith("#")]
    words = [word for line in lines for word in shlex.split(line, posix=False) if "PASSWORD" in word.upper()]
    assert words
    assert all("${REDIS_PASSWORD:-}" in word or word == "REDISCLI_AUTH:" for word in words), words


def test_prometheus_asks_every_replica_by_itself(services: dict[str, Any]) -> None:
    config = load(DEPLOY / "prometheus/prometheus.yml")
    targets = {target for job in config["scrape_configs"] for each in job["static_configs"] for target in each["targets"]}
    assert targets == {f"{name}:8080" for name in ("indexer-0", "indexer-1", "api-0", "api-1")}
    mounted = {mount.split(":")[1] for mount in services["prometheus"]["volumes"]}
    assert set(config["rule_files"]) <= mounted
    assert services["prometheus"]["command"][0] == "--config.file=/etc/prometheus/prometheus.yml"


def test_grafana_finds_prometheus_and_the_dashboard(services: dict[str, Any]) -> None:
    (source,) = load(DEPLOY / "grafana/provisioning/datasources/prometheus.yml")["datasources"]
    assert source["url"] == "http://prometheus:9090"
    assert "prometheus" in services
    (provider,) = load(DEPLOY / "grafana/provisioning/dashboards/kv-indexer.yml")["providers"]
    mounts = dict(mount.removesuffix(":ro").split(":") for mount in services["grafana"]["volumes"])
    assert mounts["./grafana/kv-indexer.json"].startswith(provider["options"]["path"] + "/")
    assert mounts["./grafana/provisioning"] == "/etc/grafana/provisioning"


@pytest.mark.deploy
def test_it_follows_the_compose_specification() -> None:
    from compose_spec import PyCompose

    document = compose()
    PyCompose.from_yaml(yaml.safe_dump(document))
    wrong = copy(document)
    wrong["services"]["redis"]["depends_onn"] = ["api-0"]
    with pytest.raises(ValueError, match="depends_onn"):
        PyCompose.from_yaml(yaml.safe_dump(wrong))

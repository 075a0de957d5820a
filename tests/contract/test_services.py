"""What the roles' processes say and write: OpenAPI documents, metrics, answers to a fixed scenario, and the content of Redis."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.answers import ASKED, LONG, Asked, as_embedded, ask, described, score
from tests.contract.redis_content import Content
from tests.contract.snapshots import check
from tests.contract.world import ADMIN_TOKEN, API_TOKEN, MODEL, ROLES, TIMEOUT_S, World, scenario
from tests.running import Client, Command
from tests.waiting import wait_until

# The first test starts everything, which takes a busy machine minutes.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with scenario(tmp_path_factory.mktemp("contract")) as found:
        yield found


@pytest.fixture(scope="module")
def roles(world: World) -> dict[str, Client]:
    return world.roles


# OpenAPI


@pytest.mark.parametrize("role", ["serve", "ingest"])
def test_the_openapi_document(roles: dict[str, Client], role: str) -> None:
    check(f"openapi-{role}", document_of(roles[role]))


def test_api_has_the_document_of_serve(roles: dict[str, Client]) -> None:
    assert document_of(roles["api"]) == document_of(roles["serve"])


def test_what_tokens_and_allowed_networks_add_to_the_openapi_document(roles: dict[str, Client]) -> None:
    """Redis adds nothing."""
    check("openapi-tokens", without_same(document_of(roles["serve-redis"]), document_of(roles["serve"])))


def test_what_answers_for_cells() -> None:
    """Its document and its metrics. Its only cell does not answer."""
    with Command("api", "--port", "0", "--cells", "http://127.0.0.1:1") as front:
        front.wait_url()
        check("openapi-cells", document_of(front))
        check("metrics-cells", metrics_of(front))


# Metrics


@pytest.mark.parametrize("role", ROLES)
def test_the_metrics(roles: dict[str, Client], role: str) -> None:
    check(f"metrics-{role}", metrics_of(roles[role]))


def metrics_of(client: Client) -> dict[str, Any]:
    text = client.http.get(f"{client.url}/metrics").text
    families = sorted(text_string_to_metric_families(text), key=lambda family: family.name)
    found: dict[str, Any] = {}
    for family in families:
        assert family.documentation.endswith("."), f"{family.name}: {family.documentation}"
        assert family.samples, f"{family.name} has no series, so its labels are unknown"
        found[family.name] = {"type": family.type, **series(family.samples)}
    return found


# Answers


@pytest.mark.parametrize("role", ["serve", "api"])
def test_the_answers(world: World, role: str) -> None:
    client = world.roles[role]
    wait_until(lambda: loads_of(client) == {"a": 3}, TIMEOUT_S, "the load of a pod")
    found = [ask(client, asked, world.names) for asked in ASKED]
    check("answers", found if role == "serve" else as_embedded(found))


@pytest.mark.parametrize("role", ["serve", "ingest"])
def test_the_answers_to_registrations(world: World, role: str) -> None:
    found = [described(answer, world.names) for answer in world.registrations[role]]
    for answer in found:
        if "streams" in answer.get("answer", {}):
            answer["answer"]["streams"] = "ANY"  # they have just begun, or are about to
    check("registrations", found)


def test_the_answers_of_a_role_without_scores(world: World) -> None:
    asked = [Asked("GET", "/v1/pods"), Asked("GET", "/healthz"), Asked("GET", "/readyz"), Asked("GET", "/v1/models"), score(token_ids=LONG)]
    check("answers-ingest", [ask(world.roles["ingest"], one, world.names) for one in asked])


def test_the_answers_to_tokens(world: World) -> None:
    asked = [
        Asked(method, path, headers={"Authorization": authorization})
        for method, path in (("GET", "/v1/models"), ("DELETE", "/v1/pods/nobody"), ("GET", "/healthz"))
        for authorization in ("", "Bearer wrong", f"Bearer {API_TOKEN}", f"Bearer {ADMIN_TOKEN}")
    ]
    found = [{"headers": one.headers, **ask(world.roles["serve-redis"], one, world.names)} for one in asked]
    check("answers-tokens", found)


def loads_of(client: Client) -> dict[str, int]:
    """Pod → running requests, where that is known."""
    body = {"model": MODEL, "token_ids": [1]}
    pods = client.http.post(f"{client.url}/v1/explain", json=body).json()["pods"]
    return {pod["pod"]: pod["load"]["running"] for pod in pods if pod["load"] is not None}


# Redis


def test_the_content_of_redis(world: World) -> None:
    client = world.redis.client()
    wait_until(lambda: not client.keys("kvi:*:0:d*"), TIMEOUT_S, "the end of a pod that was forgotten")
    wait_until(lambda: len(client.keys("kvi:*:load:*")) == 2, TIMEOUT_S, "the loads of the two pods that tell of it")
    check("redis", Content(client, "kvi").read(world.names))


# How they are read


def document_of(client: Client) -> dict[str, Any]:
    """With keys in alphabetical order, and no version."""
    document: dict[str, Any] = client.http.get(f"{client.url}/openapi.json").raise_for_status().json()
    assert document["info"].pop("version")
    return in_order(document)


def in_order(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: in_order(value[key]) for key in sorted(value)}
    return [in_order(entry) for entry in value] if isinstance(value, list) else value


def without_same(found: Any, other: Any) -> Any:
    """What of `found` is not in `other` as well; of objects only the entries that differ."""
    if not isinstance(found, dict) or not isinstance(other, dict):
        return found
    assert found.keys() >= other.keys(), other.keys() - found.keys()
    return {key: without_same(value, other.get(key)) for key, value in found.items() if key not in other or value != other[key]}


def series(samples: list[Any]) -> dict[str, Any]:
    """Names of series, and of each label the values: all of them come from closed sets, or from the engine's name."""
    found: dict[str, dict[str, list[str]]] = {}
    for sample in samples:
        labels = found.setdefault(sample.name, {})
        for name, value in sample.labels.items():
            values = labels.setdefault(name, [])
            if value not in values:
                values.append(value)
    return {name: {label: values if label == "le" else sorted(values) for label, values in labels.items()} for name, labels in found.items()}

"""The OpenAPI document and the metrics of every role, over HTTP."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.contract.snapshots import check
from tests.engine import Engine, stored
from tests.processes import api, ingest, serve
from tests.redis_server import RedisServer
from tests.running import Client, Command
from tests.waiting import wait_until

ROLES = ("serve", "serve-redis", "ingest", "api")
WITH_INDEXER = ("serve", "serve-redis", "ingest")
TOKEN = "t" * 32


@pytest.fixture(scope="module")
def roles(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Client]]:
    """Each follows the same engine, directly or by Redis, and knows of its one batch. The one that shares with nobody wants tokens."""
    tokens = tmp_path_factory.mktemp("contract") / "tokens"
    tokens.write_text(TOKEN + "\n", encoding="utf-8")
    tokens.chmod(0o600)
    with ExitStack() as stack:
        redis, engine = stack.enter_context(RedisServer()), stack.enter_context(Engine())
        engine.publish(stored([1, 2], range(8)))
        spec = engine.spec()
        commands = {
            "serve": serve(None, spec),
            "serve-redis": serve(
                redis.url,
                spec,
                namespace="other",
                allowed_engine_networks="127.0.0.0/8,ipc",
                api_token_file=str(tokens),
                admin_token_file=str(tokens),
            ),
            "ingest": ingest(redis.url, spec),
            "api": api(redis.url),
        }
        started = [stack.enter_context(command) for command in commands.values()]
        stack.callback(stop_all, started)
        for command in started:
            command.wait_url()
        commands["serve-redis"].http.headers["Authorization"] = f"Bearer {TOKEN}"
        for role in WITH_INDEXER:
            wait_until(lambda client=commands[role]: client.http.get(f"{client.url}/v1/pods").json()["pods"], 60, f"a pod of {role}")
            commands[role].wait_for(60, sequence=0, trust="live")
        yield dict(commands)


def stop_all(commands: list[Command]) -> None:
    """All at once, which takes less time than one after the other."""
    for command in commands:
        command.process.terminate()
    for command in commands:
        command.process.wait(30)


@pytest.mark.parametrize("role", ["serve", "ingest"])
def test_the_openapi_document(roles: dict[str, Client], role: str) -> None:
    check(f"openapi-{role}", document_of(roles[role]))


def test_api_has_the_document_of_serve(roles: dict[str, Client]) -> None:
    assert document_of(roles["api"]) == document_of(roles["serve"])


def test_what_tokens_and_allowed_networks_add_to_the_openapi_document(roles: dict[str, Client]) -> None:
    """Redis adds nothing."""
    check("openapi-tokens", without_same(document_of(roles["serve-redis"]), document_of(roles["serve"])))


@pytest.mark.parametrize("role", ROLES)
def test_the_metrics(roles: dict[str, Client], role: str) -> None:
    text = roles[role].http.get(f"{roles[role].url}/metrics").text
    families = sorted(text_string_to_metric_families(text), key=lambda family: family.name)
    found: dict[str, Any] = {}
    for family in families:
        assert family.documentation.endswith("."), f"{family.name}: {family.documentation}"
        assert family.samples, f"{family.name} has no series, so its labels are unknown"
        found[family.name] = {"type": family.type, **series(family.samples)}
    check(f"metrics-{role}", found)


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

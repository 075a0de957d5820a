"""The OpenAPI document against what the service does, and its page without the internet."""

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urljoin

import httpx
import msgspec
import pytest

from tests.engine import Engine, stored
from tests.running import Client, Running

ROUTES = {
    "/v1/score": {"post"},
    "/v1/pods": {"get"},
    "/v1/pods/{pod}": {"put", "delete"},
    "/v1/models": {"get"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
}
JSON = {"Content-Type": "application/json"}
SPEC = {"model": "m", "events": "tcp://127.0.0.1:9"}
# (method, path, its name in the document, what to send, the status that must come)
PROVOKED: list[tuple[str, str, str, dict[str, Any], int]] = [
    ("post", "/v1/score", "/v1/score", {"json": {"model": "m", "token_ids": [1, 2, 3, 4, 5]}}, 200),
    ("post", "/v1/score", "/v1/score", {"json": {"model": "m", "token_ids": [], "pods": ["pod", "ghost"], "limit": 1}}, 200),
    ("post", "/v1/score", "/v1/score", {"content": b"{", "headers": JSON}, 400),
    ("post", "/v1/score", "/v1/score", {"json": {"model": "ghost", "token_ids": []}}, 404),
    ("post", "/v1/score", "/v1/score", {"content": b" " * 20_000, "headers": JSON}, 413),
    ("post", "/v1/score", "/v1/score", {"content": b"{}"}, 415),
    ("post", "/v1/score", "/v1/score", {"json": {"model": "m", "token_ids": [-1]}}, 422),
    ("get", "/v1/pods", "/v1/pods", {}, 200),
    ("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"json": SPEC}, 201),
    ("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"json": SPEC}, 200),
    ("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"content": b"{", "headers": JSON}, 400),
    ("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"content": b" " * 70_000, "headers": JSON}, 413),
    ("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"content": b"{}"}, 415),
    ("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"json": {"model": "m"}}, 422),
    ("get", "/v1/models", "/v1/models", {}, 200),
    ("get", "/healthz", "/healthz", {}, 200),
    ("get", "/readyz", "/readyz", {}, 200),
    ("get", "/metrics", "/metrics", {}, 200),
    ("delete", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {}, 204),
    ("delete", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {}, 404),
]


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    with Engine() as engine, Running(engine.spec(), body_bytes_max="10000") as service:
        engine.publish(stored([1], [1, 2, 3, 4]))
        service.wait_for(sequence=0, trust="live")
        yield service


@pytest.fixture(scope="module")
def document(service: Client) -> dict[str, Any]:
    found: dict[str, Any] = service.http.get(f"{service.url}/openapi.json").json()
    return found


def faults(value: Any, schema: dict[str, Any], document: dict[str, Any], where: str = "$") -> list[str]:
    """What is wrong with a value by a schema; as much of JSON Schema as the document uses."""
    if "$ref" in schema:
        return faults(value, resolved(schema["$ref"], document), document, where)
    if "anyOf" in schema:
        tries = [faults(value, option, document, where) for option in schema["anyOf"]]
        if all(tries):
            return [f"{where}: fits none: {tries}"]
        schema = {keyword: value for keyword, value in schema.items() if keyword != "anyOf"}
    if found := [fault for part in schema.get("allOf", []) for fault in faults(value, part, document, where)]:
        return found
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{where}: {value!r} is none of {schema['enum']}"]
    kinds: dict[str, Any] = {
        **{"object": dict, "array": list, "string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
    }
    kind = schema.get("type")
    if kind is not None and (not isinstance(value, kinds[kind]) or (kind != "boolean" and isinstance(value, bool))):
        return [f"{where}: {value!r} is no {kind}"]
    found = []
    if isinstance(value, dict):
        known = schema.get("properties", {})
        found += [f"{where}: {name} is missing" for name in schema.get("required", []) if name not in value]
        for name, item in value.items():
            # Without a type it is a part of a schema, which says nothing of other properties.
            inner = known.get(name, schema.get("additionalProperties", not known or kind is None))
            if isinstance(inner, dict):
                found += faults(item, inner, document, f"{where}.{name}")
            elif not inner:
                found.append(f"{where}: {name} is not described")
    if isinstance(value, list):
        prefix = schema.get("prefixItems", [])
        if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value)):
            found.append(f"{where}: {len(value)} items")
        for number, item in enumerate(value):
            inner = prefix[number] if number < len(prefix) else schema.get("items", {})
            found += faults(item, inner, document, f"{where}[{number}]") if isinstance(inner, dict) else [f"{where}[{number}]: too many"]
    if isinstance(value, int | float) and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        found.append(f"{where}: {value} is out of range")
    if isinstance(value, str) and not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value)):
        found.append(f"{where}: {len(value)} characters")
    if isinstance(value, str) and not re.search(schema.get("pattern", ""), value):
        found.append(f"{where}: {value!r} does not match {schema['pattern']}")
    return found


def resolved(ref: str, document: dict[str, Any]) -> dict[str, Any]:
    assert ref.startswith("#/components/schemas/"), ref
    schema: dict[str, Any] = document["components"]["schemas"][ref.rpartition("/")[2]]
    return schema


def every_schema(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for inner in node.values():
            yield from every_schema(inner)
    elif isinstance(node, list):
        for inner in node:
            yield from every_schema(inner)


def test_the_document_has_every_route_and_no_other(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.")
    assert {path: set(operations) for path, operations in document["paths"].items()} == ROUTES


def test_each_operation_has_a_summary_a_description_and_a_name_of_its_own(document: dict[str, Any]) -> None:
    operations = [operation for operations in document["paths"].values() for operation in operations.values()]
    assert all(operation["summary"] and operation["description"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def test_every_reference_leads_somewhere_and_every_schema_is_used(document: dict[str, Any]) -> None:
    refs = {node["$ref"] for node in every_schema(document) if isinstance(node.get("$ref"), str)}
    assert {ref.rpartition("/")[2] for ref in refs} == set(document["components"]["schemas"])
    assert all(ref.startswith("#/components/schemas/") for ref in refs)


def test_path_parameters_are_declared(document: dict[str, Any]) -> None:
    for path, operations in document["paths"].items():
        for operation in operations.values():
            declared = {parameter["name"] for parameter in operation.get("parameters", []) if parameter["in"] == "path" and parameter["required"]}
            assert declared == set(re.findall(r"{(\w+)}", path))


def test_every_status_that_comes_is_documented_and_its_body_is_as_described(service: Client, document: dict[str, Any]) -> None:
    for method, path, template, sent, status in PROVOKED:
        where = f"{method} {path} {status}"
        response = service.http.request(method, f"{service.url}{path}", **sent)
        assert response.status_code == status, where
        described = document["paths"][template][method]["responses"]
        assert str(status) in described, where
        content = described[str(status)].get("content", {})
        if status == 204:
            assert (content, response.content) == ({}, b"")
            continue
        media_type = response.headers["content-type"].partition(";")[0]
        assert media_type in content, where
        if media_type != "text/plain":
            assert faults(response.json(), content[media_type]["schema"], document, where) == []


def test_a_starting_service_answers_as_described(document: dict[str, Any]) -> None:
    with Running("pod=away,model=m,events=tcp://127.0.0.1:9", ready_after_s="1000") as service:
        response = service.http.get(f"{service.url}/readyz")
        assert response.status_code == 503
        content = document["paths"]["/readyz"]["get"]["responses"]["503"]["content"]
        assert faults(response.json(), content[response.headers["content-type"]]["schema"], document) == []


def test_an_answer_in_msgpack_is_as_described(service: Client, document: dict[str, Any]) -> None:
    body = msgspec.msgpack.encode({"model": "m", "token_ids": b"\x01\0\0\0", "pods": ["ghost"]})
    response = service.http.post(f"{service.url}/v1/score", content=body, headers={"Content-Type": "application/msgpack"})
    content = document["paths"]["/v1/score"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "application/msgpack"}
    assert faults(msgspec.msgpack.decode(response.content), content[response.headers["content-type"]]["schema"], document) == []


def test_only_types_that_are_answered_are_documented(document: dict[str, Any]) -> None:
    assert set(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}


def test_the_request_bodies_are_described_msgpack_included(document: dict[str, Any]) -> None:
    score = document["paths"]["/v1/score"]["post"]["requestBody"]
    assert score["required"] is True
    assert set(score["content"]) == {"application/json", "application/msgpack"}
    assert set(document["paths"]["/v1/pods/{pod}"]["put"]["requestBody"]["content"]) == {"application/json"}
    in_json, in_msgpack = (resolved(score["content"][f"application/{kind}"]["schema"]["$ref"], document) for kind in ("json", "msgpack"))
    assert in_json["properties"]["token_ids"]["type"] == "array"
    assert {option["type"] for option in in_msgpack["properties"]["token_ids"]["anyOf"]} == {"array", "string"}
    fields = {"model", "token_ids", "pods", "lora_name", "cache_salt", "block_extra_keys", "limit"}
    assert set(in_json["properties"]) == set(in_msgpack["properties"]) == fields


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "m", "token_ids": [1, 2], "block_extra_keys": [[0, [["img", -1]]]], "limit": 3, "pods": None}, 200),
        ({"model": "m"}, 422),
        ({"model": "m", "token_ids": [1], "surplus": 1}, 422),
        ({"model": "m", "token_ids": [1], "limit": 0}, 422),
        ({"model": "m", "token_ids": [-1]}, 422),
        ({"model": "m", "token_ids": [2**32]}, 422),
        ({"model": "m", "token_ids": ["1"]}, 422),
        ({"model": "m", "token_ids": [1], "pods": "pod"}, 422),
        ({"model": "m", "token_ids": [1], "cache_salt": "x" * 5000}, 422),
        ({"model": "m", "token_ids": [1], "block_extra_keys": [[-1, []]]}, 422),
        ({"model": "m", "token_ids": [1], "block_extra_keys": [[1, ["x", -(2**63), 2**64 - 1, ["y", 1]]]]}, 200),
        ({"model": "m", "token_ids": [1], "block_extra_keys": [[1, [2**64]]]}, 422),
        ({"model": "m", "token_ids": [1], "block_extra_keys": [[1, [["x", [1]]]]]}, 422),
        ({"model": "m", "token_ids": [1], "block_extra_keys": [[1, [{}]]]}, 422),
        ({"model": "m", "token_ids": [1], "block_extra_keys": [[1, [None]]]}, 422),
        ({"model": "m", "token_ids": [1], "block_extra_keys": [[1, [True]]]}, 422),
        ({"model": "m", "token_ids": [1], "block_extra_keys": [[1, [1.5]]]}, 422),
    ],
)
def test_the_schema_and_the_service_agree_on_what_a_right_request_is(service: Client, document: dict[str, Any], body: Any, status: int) -> None:
    schema = document["paths"]["/v1/score"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert service.http.post(f"{service.url}/v1/score", json=body).status_code == status
    assert (faults(body, schema, document) == []) is (status == 200)


@pytest.mark.parametrize(
    ("body", "is_right"),
    [
        (SPEC, True),
        ({**SPEC, "replay": "tcp://127.0.0.1:20", "ranks": 2, "topic": "kv", "counting": "set", "offload_block_size": 64, "pod": "x"}, True),
        ({"model": "m"}, False),
        ({**SPEC, "ranks": 0}, False),
        ({**SPEC, "counting": "other"}, False),
        ({**SPEC, "surplus": 1}, False),
        ({**SPEC, "model": ""}, False),
        ({**SPEC, "events": "ipc:///tmp/nobody"}, True),
        ({**SPEC, "events": "tcp://[::1]:20", "replay": None, "ranks": None, "rank": 3}, True),
        ({**SPEC, "events": None}, False),
        ({**SPEC, "events": "http://127.0.0.1:9"}, False),
        ({**SPEC, "events": "tcp://127.0.0.1:0"}, False),
        ({**SPEC, "events": "tcp://127.0.0.1:65536"}, False),
        ({**SPEC, "events": "tcp://127.0.0.1:65535"}, True),
        ({**SPEC, "ranks": 2, "rank": 3}, False),
    ],
)
def test_the_schema_and_the_service_agree_on_what_a_right_spec_is(service: Client, document: dict[str, Any], body: Any, is_right: bool) -> None:
    schema = document["paths"]["/v1/pods/{pod}"]["put"]["requestBody"]["content"]["application/json"]["schema"]
    status = service.http.put(f"{service.url}/v1/pods/x", json=body).status_code
    service.http.delete(f"{service.url}/v1/pods/x")
    assert (status, faults(body, schema, document) == []) == (201 if is_right else 422, is_right)


def test_the_examples_are_right_by_their_schemas(document: dict[str, Any]) -> None:
    examples = [(schema, example) for schema in every_schema(document) for example in schema.get("examples", []) if "type" in schema]
    assert len(examples) >= 2
    assert [fault for schema, example in examples for fault in faults(example, schema, document)] == []


# The page


def test_the_page_needs_nothing_from_the_internet(service: Client) -> None:
    page = service.http.get(f"{service.url}/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert re.findall(r"https?://[^\s'\"<]+", page.text.replace(service.url, "")) == []
    resources = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert any(name.endswith(".js") for name in resources)
    assert any(name.endswith(".css") for name in resources)
    for name in resources:
        assert not name.startswith("//")
        asset = httpx.get(urljoin(f"{service.url}/docs", name))
        assert (asset.status_code, len(asset.content) > 100) == (200, True), name


def test_the_page_shows_our_document(service: Client) -> None:
    (url,) = re.findall(r"url: '([^']+)'", service.http.get(f"{service.url}/docs").text)
    assert url == "/openapi.json"


def test_the_style_sheet_of_the_page_needs_nothing_from_the_internet_either(service: Client) -> None:
    page = service.http.get(f"{service.url}/docs").text
    (sheet,) = re.findall(r"href=\"([^\"]+\.css)\"", page)
    assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", service.http.get(f"{service.url}{sheet}").text) == []

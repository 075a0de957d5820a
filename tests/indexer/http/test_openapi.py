"""The OpenAPI document of every role against what the role does, and its page without the internet."""

import re
from typing import Any
from urllib.parse import urljoin

import httpx
import pytest

from tests.json_schema import Provoked, check_described, check_provoked, every_schema, faults
from tests.processes import ingest, serve
from tests.running import Client

COMMON = {
    "/v1/pods": {"get"},
    "/v1/pods/{pod}": {"put", "delete"},
    "/healthz": {"get"},
    "/readyz": {"get"},
    "/metrics": {"get"},
}
ASKED = ("/v1/score", "/v1/score/batch", "/v1/explain", "/v1/route", "/v1/candidates", "/v1/route/done")
PICKS = {"/v1/pick": {"get", "post"}, "/v1/pick/{path}": {"get", "post", "delete"}}
ROUTES = {"serve": {**COMMON, **PICKS, **{path: {"post"} for path in ASKED}, "/v1/models": {"get"}, "/v1/hot": {"get"}}, "ingest": COMMON}
JSON = {"Content-Type": "application/json"}
SPEC = {"model": "m", "events": "tcp://127.0.0.1:9"}
PROVOKED = [
    Provoked("get", "/v1/pods", "/v1/pods", {}, 200),
    Provoked("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"json": SPEC}, 201),
    Provoked("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"json": SPEC}, 200),
    Provoked("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"content": b"{", "headers": JSON}, 400),
    Provoked("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"content": b" " * 70_000, "headers": JSON}, 413),
    Provoked("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"content": b"{}"}, 415),
    Provoked("put", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {"json": {"model": "m"}}, 422),
    Provoked("get", "/healthz", "/healthz", {}, 200),
    Provoked("get", "/readyz", "/readyz", {}, 200),
    Provoked("get", "/metrics", "/metrics", {}, 200),
    Provoked("delete", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {}, 204),
    Provoked("delete", "/v1/pods/a%2Fb", "/v1/pods/{pod}", {}, 404),
]


@pytest.fixture(scope="module")
def document(anywhere: Client) -> dict[str, Any]:
    found: dict[str, Any] = anywhere.http.get(f"{anywhere.url}/openapi.json").json()
    return found


def test_the_document_has_every_route_of_the_role_and_no_other(role: str, document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.")
    assert {path: set(operations) for path, operations in document["paths"].items()} == ROUTES[role]


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


def test_every_status_that_comes_is_documented_and_its_body_is_as_described(anywhere: Client, document: dict[str, Any]) -> None:
    check_provoked(anywhere, document, PROVOKED)


def test_a_starting_service_answers_as_described(role: str, document: dict[str, Any]) -> None:
    engine = "pod=away,model=m,events=tcp://127.0.0.1:9"
    starting = serve(None, engine, ready_after_s="1000") if role == "serve" else ingest("redis://127.0.0.1:9/0", engine, ready_after_s="1000")
    with starting as service:
        response = service.wait_url().http.get(f"{service.url}/readyz")
        assert response.status_code == 503
        assert response.json()["status"] == "starting"
        check_described(response, document, "/readyz")


def test_only_types_that_are_taken_and_answered_are_documented(document: dict[str, Any]) -> None:
    assert set(document["paths"]["/v1/pods/{pod}"]["put"]["requestBody"]["content"]) == {"application/json"}
    assert set(document["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}


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
        ({**SPEC, "events": "ipc:///tmp/nobody"}, False),
        ({**SPEC, "events": "tcp://[::1]:20", "replay": None, "ranks": None, "rank": 3}, True),
        ({**SPEC, "events": None}, False),
        ({**SPEC, "events": "http://127.0.0.1:9"}, False),
        ({**SPEC, "events": "tcp://127.0.0.1:0"}, False),
        ({**SPEC, "events": "tcp://127.0.0.1:65536"}, False),
        ({**SPEC, "events": "tcp://127.0.0.1:65535"}, True),
        ({**SPEC, "ranks": 2, "rank": 3}, False),
    ],
)
def test_the_schema_and_the_service_agree_on_what_a_right_spec_is(anywhere: Client, document: dict[str, Any], body: Any, is_right: bool) -> None:
    schema = document["paths"]["/v1/pods/{pod}"]["put"]["requestBody"]["content"]["application/json"]["schema"]
    status = anywhere.http.put(f"{anywhere.url}/v1/pods/x", json=body).status_code
    anywhere.http.delete(f"{anywhere.url}/v1/pods/x")
    assert (status, faults(body, schema, document) == []) == (201 if is_right else 422, is_right)


def test_the_examples_are_right_by_their_schemas(document: dict[str, Any]) -> None:
    examples = [(schema, example) for schema in every_schema(document) for example in schema.get("examples", []) if "type" in schema]
    assert len(examples) >= 2
    assert [fault for schema, example in examples for fault in faults(example, schema, document)] == []


# The page


def test_the_page_needs_nothing_from_the_internet(anywhere: Client) -> None:
    page = anywhere.http.get(f"{anywhere.url}/docs")
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert re.findall(r"https?://[^\s'\"<]+", page.text.replace(anywhere.url, "")) == []
    resources = re.findall(r"(?:src|href)=\"([^\"]+)\"", page.text)
    assert any(name.endswith(".js") for name in resources)
    assert any(name.endswith(".css") for name in resources)
    for name in resources:
        assert not name.startswith("//")
        asset = httpx.get(urljoin(f"{anywhere.url}/docs", name))
        assert (asset.status_code, len(asset.content) > 100) == (200, True), name


def test_the_page_shows_our_document(anywhere: Client) -> None:
    (url,) = re.findall(r"url: '([^']+)'", anywhere.http.get(f"{anywhere.url}/docs").text)
    assert url == "/openapi.json"


def test_the_style_sheet_of_the_page_needs_nothing_from_the_internet_either(anywhere: Client) -> None:
    page = anywhere.http.get(f"{anywhere.url}/docs").text
    (sheet,) = re.findall(r"href=\"([^\"]+\.css)\"", page)
    assert re.findall(r"(?:@import|url\()\s*['\"]?(?:https?:)?//", anywhere.http.get(f"{anywhere.url}{sheet}").text) == []

"""What the OpenAPI document says of scores and models, against what the service does."""

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from tests.engine import Engine, stored
from tests.json_schema import Provoked, check_provoked, faults, resolved
from tests.running import Client, Running

JSON = {"Content-Type": "application/json"}
PROVOKED = [
    Provoked("post", "/v1/score", "/v1/score", {"json": {"model": "m", "token_ids": [1, 2, 3, 4, 5]}}, 200),
    Provoked("post", "/v1/score", "/v1/score", {"json": {"model": "m", "token_ids": [], "pods": ["pod", "ghost"], "limit": 1}}, 200),
    Provoked("post", "/v1/score", "/v1/score", {"content": b"{", "headers": JSON}, 400),
    Provoked("post", "/v1/score", "/v1/score", {"json": {"model": "ghost", "token_ids": []}}, 404),
    Provoked("post", "/v1/score", "/v1/score", {"content": b" " * 20_000, "headers": JSON}, 413),
    Provoked("post", "/v1/score", "/v1/score", {"content": b"{}"}, 415),
    Provoked("post", "/v1/score", "/v1/score", {"json": {"model": "m", "token_ids": [-1]}}, 422),
    Provoked("post", "/v1/score/batch", "/v1/score/batch", {"json": {"requests": [{"model": "m", "token_ids": [1]}, 7]}}, 200),
    Provoked("post", "/v1/score/batch", "/v1/score/batch", {"content": b"{", "headers": JSON}, 400),
    Provoked("post", "/v1/score/batch", "/v1/score/batch", {"content": b" " * 20_000, "headers": JSON}, 413),
    Provoked("post", "/v1/score/batch", "/v1/score/batch", {"content": b"{}"}, 415),
    Provoked("post", "/v1/score/batch", "/v1/score/batch", {"json": {"requests": [1] * 257}}, 422),
    Provoked("post", "/v1/route", "/v1/route", {"json": {"model": "m", "token_ids": [1, 2, 3, 4, 5], "exclude": ["ghost"]}}, 200),
    Provoked("post", "/v1/route", "/v1/route", {"json": {"model": "m", "token_ids": [], "pods": ["pod", "ghost"], "limit": 1}}, 200),
    Provoked("post", "/v1/route", "/v1/route", {"content": b"{", "headers": JSON}, 400),
    Provoked("post", "/v1/route", "/v1/route", {"json": {"model": "ghost", "token_ids": []}}, 404),
    Provoked("post", "/v1/route", "/v1/route", {"content": b" " * 20_000, "headers": JSON}, 413),
    Provoked("post", "/v1/route", "/v1/route", {"content": b"{}"}, 415),
    Provoked("post", "/v1/route", "/v1/route", {"json": {"model": "m", "token_ids": [1], "policy": "best"}}, 422),
    Provoked("post", "/v1/route", "/v1/route", {"json": {"model": "m", "token_ids": [1], "exclude": ["pod"]}}, 503),
    Provoked("post", "/v1/route/done", "/v1/route/done", {"json": {"id": "never"}}, 200),
    Provoked("post", "/v1/route/done", "/v1/route/done", {"content": b"{", "headers": JSON}, 400),
    Provoked("post", "/v1/route/done", "/v1/route/done", {"content": b" " * 20_000, "headers": JSON}, 413),
    Provoked("post", "/v1/route/done", "/v1/route/done", {"content": b"{}"}, 415),
    Provoked("post", "/v1/route/done", "/v1/route/done", {"json": {"id": 1}}, 422),
    Provoked("post", "/v1/explain", "/v1/explain", {"json": {"model": "m", "token_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9]}}, 200),
    Provoked("post", "/v1/explain", "/v1/explain", {"json": {"model": "m", "token_ids": [], "pods": ["pod", "ghost"], "limit": 1}}, 200),
    Provoked("post", "/v1/explain", "/v1/explain", {"content": b"{", "headers": JSON}, 400),
    Provoked("post", "/v1/explain", "/v1/explain", {"json": {"model": "ghost", "token_ids": []}}, 404),
    Provoked("post", "/v1/explain", "/v1/explain", {"content": b" " * 20_000, "headers": JSON}, 413),
    Provoked("post", "/v1/explain", "/v1/explain", {"content": b"{}"}, 415),
    Provoked("post", "/v1/explain", "/v1/explain", {"json": {"model": "m", "token_ids": [-1]}}, 422),
    Provoked("get", "/v1/models", "/v1/models", {}, 200),
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


def test_every_status_that_comes_is_documented_and_its_body_is_as_described(service: Client, document: dict[str, Any]) -> None:
    check_provoked(service, document, PROVOKED)


def test_an_answer_in_msgpack_is_as_described(service: Client, document: dict[str, Any]) -> None:
    body = msgspec.msgpack.encode({"model": "m", "token_ids": b"\x01\0\0\0", "pods": ["ghost"]})
    response = service.http.post(f"{service.url}/v1/score", content=body, headers={"Content-Type": "application/msgpack"})
    content = document["paths"]["/v1/score"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "application/msgpack"}
    assert faults(msgspec.msgpack.decode(response.content), content[response.headers["content-type"]]["schema"], document) == []


def test_the_request_bodies_are_described_msgpack_included(document: dict[str, Any]) -> None:
    score = document["paths"]["/v1/score"]["post"]["requestBody"]
    assert score["required"] is True
    assert set(score["content"]) == {"application/json", "application/msgpack"}
    in_json, in_msgpack = (resolved(score["content"][f"application/{kind}"]["schema"]["$ref"], document) for kind in ("json", "msgpack"))
    assert {option["type"] for option in in_json["properties"]["token_ids"]["anyOf"]} == {"array", "null"}
    assert {option["type"] for option in in_msgpack["properties"]["token_ids"]["anyOf"]} == {"array", "string", "null"}
    fields = {"model", "token_ids", "block_hashes", "pods", "lora_name", "cache_salt", "block_extra_keys", "limit", "include_speculative"}
    fields |= {"prompt", "messages", "tools", "chat_template_kwargs", "add_generation_prompt"}
    fields |= {"continue_final_message", "documents", "reasoning_effort", "chat_template", "mm_processor_kwargs"}
    assert set(in_json["properties"]) == set(in_msgpack["properties"]) == fields


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "m", "token_ids": [1, 2], "block_extra_keys": [[0, [["img", -1]]]], "limit": 3, "pods": None}, 200),
        ({"model": "m"}, 422),
        ({"model": "m", "token_ids": None}, 422),
        ({"model": "m", "block_hashes": [0, 2**64 - 1, "0123456789abcdef"]}, 200),
        ({"model": "m", "block_hashes": [], "token_ids": None}, 200),
        ({"model": "m", "block_hashes": [], "token_ids": []}, 422),
        ({"model": "m", "block_hashes": [-1]}, 422),
        ({"model": "m", "block_hashes": [2**64]}, 422),
        ({"model": "m", "block_hashes": ["0123456789abcde"]}, 422),
        ({"model": "m", "token_ids": [1], "temperature": 1}, 200),
        ({"model": "m", "prompt": [1, 2]}, 200),
        ({"model": "m", "prompt": [2**32]}, 422),
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

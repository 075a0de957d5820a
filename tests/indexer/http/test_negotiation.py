"""JSON or msgpack, in and out."""

from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest

from tests.engine import Engine, stored
from tests.running import Client, Running

JSON = "application/json"
MSGPACK = "application/msgpack"
ASKED: dict[str, Any] = {"model": "m", "token_ids": [1, 2, 3, 4, 5]}
ENCODED = {JSON: msgspec.json.encode(ASKED), MSGPACK: msgspec.msgpack.encode(ASKED)}


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    with Engine() as engine, Running(engine.spec()) as service:
        engine.publish(stored([1], [1, 2, 3, 4]))
        service.wait_for(sequence=0, trust="live")
        yield service


def ask(service: Client, content_type: str | None, accept: str, body: bytes | None = None, **headers: str) -> httpx.Response:
    if body is None:
        body = ENCODED[content_type or JSON]
    named = {} if content_type is None else {"Content-Type": content_type}
    return service.http.post(f"{service.url}/v1/score", content=body, headers={**named, "Accept": accept, **headers})


@pytest.mark.parametrize(
    ("sent", "accept", "answered"),
    [
        (JSON, "*/*", JSON),
        (MSGPACK, "*/*", MSGPACK),
        (JSON, "text/html, */*;q=0.1", JSON),
        (JSON, MSGPACK, MSGPACK),
        (MSGPACK, JSON, JSON),
        (MSGPACK, "Application/JSON; q=0.9", JSON),
        (JSON, "text/plain, application/x-msgpack", MSGPACK),
        (JSON, "application/json, application/msgpack", JSON),
    ],
)
def test_the_answer_comes_in_the_type_asked_for_else_in_the_requests(service: Client, sent: str, accept: str, answered: str) -> None:
    response = ask(service, sent, accept)
    assert response.status_code == 200
    assert response.headers["content-type"] == answered
    decode = msgspec.json.decode if answered == JSON else msgspec.msgpack.decode
    answer = decode(response.content)
    assert answer["best"] == "pod"
    assert answer["pods"][0]["matched_tokens"] == 4
    assert int(response.headers["content-length"]) == len(response.content)


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON", "application/json;charset=utf-8"])
def test_parameters_and_case_of_the_type_do_not_matter(service: Client, content_type: str) -> None:
    assert ask(service, content_type, "*/*", ENCODED[JSON]).status_code == 200


@pytest.mark.parametrize("content_type", ["application/x-msgpack", "application/vnd.msgpack"])
def test_the_other_names_of_msgpack_are_known(service: Client, content_type: str) -> None:
    response = ask(service, content_type, "*/*", ENCODED[MSGPACK])
    assert response.headers["content-type"] == MSGPACK
    assert msgspec.msgpack.decode(response.content)["tokens"] == 5


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "application/jsonx", "", None])
def test_another_type_or_none_is_a_problem_that_names_the_right_ones(service: Client, content_type: str | None) -> None:
    response = ask(service, content_type, "*/*", ENCODED[JSON])
    assert response.status_code == 415
    assert JSON in response.json()["detail"]
    assert MSGPACK in response.json()["detail"]


def test_a_compressed_body_is_a_problem_not_a_riddle(service: Client) -> None:
    response = ask(service, JSON, "*/*", b"\x1f\x8b", **{"Content-Encoding": "gzip"})
    assert response.status_code == 415
    assert "Content-Encoding" in response.json()["detail"]


def test_a_body_in_the_other_type_than_announced_is_malformed(service: Client) -> None:
    assert ask(service, JSON, "*/*", ENCODED[MSGPACK]).status_code == 400
    assert ask(service, MSGPACK, "*/*", ENCODED[JSON]).status_code in (400, 422)


def test_problems_are_json_whatever_was_asked_for(service: Client) -> None:
    response = ask(service, MSGPACK, MSGPACK, b"\xc1")
    assert response.status_code == 400
    assert response.headers["content-type"] == "application/problem+json"
    assert response.json()["status"] == 400


def test_a_pod_is_put_as_json_only(anywhere: Client) -> None:
    body = msgspec.msgpack.encode({"model": "m", "events": "tcp://127.0.0.1:9"})
    response = anywhere.http.put(f"{anywhere.url}/v1/pods/x", content=body, headers={"Content-Type": MSGPACK})
    assert response.status_code == 415
    assert JSON in response.json()["detail"]
    assert MSGPACK not in response.json()["detail"].split("not")[0]

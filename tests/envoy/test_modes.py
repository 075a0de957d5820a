"""Other processing modes than those of deploy/envoy: what control planes set, and what cannot work."""

import hashlib
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.envoy.fleet import TEXTS, Fleet, ask, ask_for, completion, events, stream
from tests.envoy.proxy import Config, Envoy, connection_manager, processor
from tests.waiting import wait_until


@contextmanager
def in_mode(fleet: Fleet, request: str, response: str, trailers: str = "SEND") -> Iterator[Envoy]:
    def change(config: Config) -> None:
        processor(config)["processing_mode"] |= {"request_body_mode": request, "response_body_mode": response, "response_trailer_mode": trailers}

    with Envoy("override-host", fleet.port, fleet.endpoints, change) as envoy:
        envoy.wait_for_picker()
        yield envoy


@pytest.fixture(scope="module")
def echoed(fleet: Fleet) -> Iterator[Envoy]:
    """Full duplex both ways, as Istio, Envoy AI Gateway and agentgateway have it: answers pass through the picker."""
    with in_mode(fleet, "FULL_DUPLEX_STREAMED", "FULL_DUPLEX_STREAMED") as envoy:
        yield envoy


def test_an_answer_that_passes_through_comes_as_it_is_made(echoed: Envoy, fleet: Fleet) -> None:
    answer = stream(echoed, "second", count=8, gap_s=0.1)
    assert (answer.pod, answer.text) == ("second", events(8))
    assert answer.at_s[-1] - answer.at_s[0] > 0.6
    assert len(answer.at_s) >= 8
    wait_until(lambda: fleet.service.metric("kv_indexer_route_open") == 0)


def test_fast_answers_are_whole(echoed: Envoy) -> None:
    """A picker that ends its calls with the request loses their first pieces."""
    for number in range(100):
        assert stream(echoed, count=number % 20, gap_s=0.0).text == events(number % 20)


def test_long_bodies_both_ways(echoed: Envoy) -> None:
    for size in (1, 100_000, 5_000_000):
        ask(echoed, json.dumps(completion(user="x" * size)).encode())
    assert stream(echoed, count=20_000, gap_s=0.0).text == events(20_000)
    assert echoed.http.get("/v1/models").status_code == 200


def test_what_the_engine_found_in_its_cache_is_compared_with_the_pick(echoed: Envoy, fleet: Fleet) -> None:
    metric = fleet.service.metric
    pod = fleet.pods["first"]
    names = ("as_predicted", "fewer", "more")
    before = {name: metric("kv_indexer_gateway_predictions_total", cached=name) for name in names}
    matched = len(TEXTS["first"]) // 4 * 4
    for cached_tokens in (matched, matched - 4, 0):
        pod.cached_tokens = cached_tokens
        assert ask_for(echoed, "first") == "first"
    pod.cached_tokens = 0
    wait_until(lambda: metric("kv_indexer_gateway_predictions_total", cached="fewer") == before["fewer"] + 1)
    after = {name: metric("kv_indexer_gateway_predictions_total", cached=name) for name in names}
    assert after == {"as_predicted": before["as_predicted"] + 2, "fewer": before["fewer"] + 1, "more": before["more"]}


def test_errors_are_passed_through_as_well(echoed: Envoy) -> None:
    response = echoed.http.post("/v1/completions", json={"model": "ghost"})
    assert (response.status_code, response.json()["error"]["code"]) == (404, 404)


def test_a_body_with_trailers(fleet: Fleet) -> None:
    """HTTP/1 trailers are off by default. With a retry policy Envoy 1.40 sends such a body twice, whatever the picker does."""

    def with_trailers(config: Config) -> None:
        manager = connection_manager(config)
        manager["http_protocol_options"] = {"enable_trailers": True}
        del manager["route_config"]["virtual_hosts"][0]["routes"][0]["route"]["retry_policy"]

    content = json.dumps(completion("second")).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: pool\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\n\r\n"
    with Envoy("override-host", fleet.port, fleet.endpoints, with_trailers) as envoy:
        envoy.wait_for_picker()
        with socket.create_connection(("127.0.0.1", envoy.port), timeout=10) as connection:
            connection.sendall(head + f"{len(content):x}\r\n".encode() + content + b"\r\n0\r\nx-sum: 1\r\n\r\n")
            answer = connection.recv(65_536)
    assert answer.startswith(b"HTTP/1.1 200"), answer
    assert f'"pod": "second", "path": "/v1/completions", "digest": "{hashlib.sha256(content).hexdigest()}"'.encode() in answer


@pytest.mark.parametrize("response", ["NONE", "BUFFERED"])
def test_buffered(fleet: Fleet, response: str) -> None:
    with in_mode(fleet, "BUFFERED", response, "SKIP") as envoy:
        assert [ask_for(envoy, pod) for pod in ("first", "second", "second")] == ["first", "second", "second"]
        ask(envoy, json.dumps(completion(user="x" * 300_000)).encode())
        assert envoy.http.get("/v1/models").status_code == 200
        # Up to the route's buffer of 16 MiB, not the listener's of one.
        ask(envoy, json.dumps(completion(user="x" * 2_000_000)).encode())
        assert envoy.http.post("/v1/completions", json=completion(user="x" * 20_000_000)).status_code == 413
        answer = stream(envoy, count=5, gap_s=0.1)
        assert answer.text == events(5)
        # A buffered answer comes as one piece.
        assert (answer.at_s[-1] - answer.at_s[0] > 0.3) is (response == "NONE")


def test_without_the_body_a_pod_is_picked_by_load(fleet: Fleet) -> None:
    before = fleet.service.metric("kv_indexer_pick_by_load_total", why="no_body")
    with in_mode(fleet, "NONE", "NONE", "SKIP") as envoy:
        ask(envoy, json.dumps(completion()).encode())
    assert fleet.service.metric("kv_indexer_pick_by_load_total", why="no_body") == before + 1


def test_streamed_bodies_cannot_be_waited_for_and_the_answer_says_so(fleet: Fleet) -> None:
    with in_mode(fleet, "STREAMED", "NONE", "SKIP") as envoy:
        response = envoy.http.post("/v1/completions", json=completion())
        assert response.status_code == 500
        assert "FULL_DUPLEX_STREAMED or BUFFERED" in response.json()["error"]["message"]


def test_behind_a_filter_that_reads_the_model_from_the_body(fleet: Fleet) -> None:
    """Body-based routing names the model in a header. Such a filter has to buffer: two in full duplex cut bodies off in some versions of Envoy."""

    def read_before(config: Config) -> None:
        code = "function envoy_on_request(handle)\n  handle:body()\n  handle:headers():replace('x-gateway-model-name', 'm')\nend"
        kind = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"
        reader = {"name": "envoy.filters.http.lua", "typed_config": {"@type": kind, "default_source_code": {"inline_string": code}}}
        connection_manager(config)["http_filters"].insert(0, reader)

    with Envoy("override-host", fleet.port, fleet.endpoints, read_before) as envoy:
        envoy.wait_for_picker()
        for size in (1, 100_000, 900_000):
            content = json.dumps({"prompt": TEXTS["second"], "user": "x" * size}).encode()
            assert ask(envoy, content)["pod"] == "second"


@pytest.mark.parametrize("mode", ["FULL_DUPLEX_STREAMED", "BUFFERED"])
def test_a_request_may_be_for_another_model_than_its_body_says(fleet: Fleet, mode: str) -> None:
    with in_mode(fleet, mode, "NONE", "SKIP") as envoy:
        headers = {"x-gateway-model-name-rewrite": "m"}
        response = envoy.http.post("/v1/completions", json=completion("second", model="public"), headers=headers)
        said = response.json()
        assert (said["pod"], said["size"]) == ("second", len(json.dumps(completion("second"), separators=(",", ":"))))

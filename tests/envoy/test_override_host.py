"""deploy/envoy/override-host.yaml, the configuration to prefer: a pool that Envoy knows, picks in metadata, and fallbacks."""

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.envoy.fleet import (
    SUBSET_HEADER,
    Fleet,
    ask,
    ask_for,
    ask_in_chunks,
    assert_what_a_client_names_is_passed_over,
    completion,
    events,
    stream,
    with_subset,
)
from tests.envoy.proxy import Envoy
from tests.waiting import wait_until

GATEWAY = {"gateway_fallbacks": "1", "body_bytes_max": "33554432"}


@pytest.fixture(scope="module")
def envoy(fleet: Fleet) -> Iterator[Envoy]:
    with Envoy("override-host", fleet.port, fleet.endpoints, with_subset) as envoy:
        envoy.wait_for_picker()
        yield envoy


def test_requests_go_to_the_pod_that_holds_their_prefix(envoy: Envoy, fleet: Fleet) -> None:
    served = fleet.service.metric("kv_indexer_gateway_served_total", by="picked")
    answered = fleet.service.metric("kv_indexer_gateway_calls_total", outcome="answered")
    assert [ask_for(envoy, pod) for pod in ("first", "second", "second", "first") * 3] == ["first", "second", "second", "first"] * 3
    assert fleet.service.metric("kv_indexer_gateway_served_total", by="picked") == served + 12
    wait_until(lambda: fleet.service.metric("kv_indexer_gateway_calls_total", outcome="answered") == answered + 12)


def test_a_streamed_answer_comes_as_it_is_made_and_the_router_knows_when_the_prompt_is_computed(envoy: Envoy, fleet: Fleet) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(stream(envoy, count=10, gap_s=0.1)))
    before = fleet.service.metric("kv_indexer_gateway_served_total", by="picked")
    thread.start()
    wait_until(lambda: fleet.service.metric("kv_indexer_gateway_served_total", by="picked") == before + 1)
    assert thread.is_alive()
    assert fleet.service.metric("kv_indexer_route_open") == 0
    thread.join()
    (answer,) = results
    assert (answer.pod, answer.text) == ("first", events(10))
    assert answer.at_s[-1] - answer.at_s[0] > 0.8
    assert len(answer.at_s) >= 10


def test_bodies_of_all_sizes_arrive_as_they_were_sent(envoy: Envoy) -> None:
    sizes = [random.Random(1).randrange(2 ** random.Random(seed).randrange(4, 22)) for seed in range(60)]
    for size in (*sizes, 300_000, 12_000_000):
        ask(envoy, json.dumps(completion(user="x" * size)).encode())


def test_a_body_without_a_length_as_well(envoy: Envoy) -> None:
    content, said = ask_in_chunks(envoy)
    assert (said["pod"], said["size"]) == ("second", len(content))


@pytest.mark.parametrize("path", ["/v1/models", "/health"])
def test_a_request_without_a_body_gets_a_pod(envoy: Envoy, path: str) -> None:
    response = envoy.http.get(path)
    assert (response.status_code, response.json()["path"], response.json()["size"]) == (200, path, 0)


def test_only_the_pods_that_the_control_plane_allows_are_picked(envoy: Envoy, fleet: Fleet) -> None:
    for pod in fleet.pods.values():
        assert ask_for(envoy, "first", **{SUBSET_HEADER: f"10.9.9.9:1,{pod.netloc}"}) == pod.name
    assert ask_for(envoy, "second", **{SUBSET_HEADER: "127.0.0.1"}) == "second"
    response = envoy.http.post("/v1/completions", json=completion(), headers={SUBSET_HEADER: "10.9.9.9:1"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_what_a_client_names_is_passed_over(envoy: Envoy, fleet: Fleet) -> None:
    assert_what_a_client_names_is_passed_over(envoy, fleet)


@pytest.mark.parametrize(
    ("content", "status", "kind"), [(b'{"model"', 400, "invalid_request_error"), (b'{"model": "ghost"}', 404, "not_found_error")]
)
def test_errors_are_those_of_openai(envoy: Envoy, content: bytes, status: int, kind: str) -> None:
    response = envoy.http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.headers["content-type"]) == (status, "application/json")
    assert response.json()["error"]["type"] == kind


@pytest.mark.parametrize("how", ["refuses", "503"])
@pytest.mark.parametrize("size", [10, 300_000, 5_000_000])
def test_where_the_picked_pod_fails_its_fallback_gets_the_whole_request(envoy: Envoy, fleet: Fleet, how: str, size: int) -> None:
    before = fleet.service.metric("kv_indexer_gateway_served_total", by="fallback")
    pod = fleet.pods["first"]
    if how == "refuses":
        pod.close()
    else:
        pod.status = 503
    try:
        assert ask(envoy, json.dumps(completion("first", user="x" * size)).encode())["pod"] == "second"
    finally:
        pod.status = 200
        if how == "refuses":
            pod.open()
    assert fleet.service.metric("kv_indexer_gateway_served_total", by="fallback") == before + 1
    assert ask_for(envoy, "first") == "first"


def test_a_body_over_the_buffer_of_the_route_goes_to_no_fallback(envoy: Envoy, fleet: Fleet) -> None:
    fleet.pods["first"].status = 503
    try:
        assert envoy.http.post("/v1/completions", json=completion("first", user="x" * 20_000_000)).status_code == 503
    finally:
        fleet.pods["first"].status = 200


def test_four_hundred_requests_at_once(envoy: Envoy, fleet: Fleet) -> None:
    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(lambda number: ask_for(envoy, "first" if number % 2 else "second"), range(400))) == ["second", "first"] * 200
    wait_until(lambda: fleet.service.metric("kv_indexer_gateway_open") == 0)
    assert fleet.service.metric("kv_indexer_route_open") == 0


def test_the_keepalive_of_a_silent_connection_does_not_end_it(envoy: Envoy) -> None:
    """gRPC's own default is to end a connection, with all calls on it, that pings as often as this configuration does."""
    ask_for(envoy)
    before = envoy.stat("cluster.picker.upstream_cx_total")
    time.sleep(15)
    assert ask_for(envoy, "second") == "second"
    assert envoy.stat("cluster.picker.upstream_cx_total") == before
    assert envoy.stat("cluster.picker.upstream_cx_destroy_with_active_rq") == 0

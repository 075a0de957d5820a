"""deploy/envoy/buffered.yaml, the quickest way to ask: one message with the whole body, and no answer waits for the picker."""

import hashlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.engine import Engine
from tests.envoy.fleet import (
    FLAGS,
    SUBSET_HEADER,
    TEXTS,
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
from tests.envoy.pods import Pod
from tests.envoy.proxy import Envoy
from tests.ports import free_port
from tests.running import Running
from tests.waiting import wait_until

GATEWAY = {"gateway_fallbacks": "1"}


@pytest.fixture(scope="module")
def envoy(fleet: Fleet) -> Iterator[Envoy]:
    with Envoy("buffered", fleet.port, fleet.endpoints, with_subset) as envoy:
        envoy.wait_for_picker()
        yield envoy


def test_requests_go_to_the_pod_that_holds_their_prefix_for_one_message_each(envoy: Envoy, fleet: Fleet) -> None:
    names = ("streams_started", "stream_msgs_sent", "stream_msgs_received")
    before = [envoy.stat(f"http.http.ext_proc.{name}") for name in names]
    unanswered = fleet.service.metric("kv_indexer_gateway_calls_total", outcome="unanswered")
    assert [ask_for(envoy, pod) for pod in ("first", "second", "second", "first") * 3] == ["first", "second", "second", "first"] * 3
    assert [envoy.stat(f"http.http.ext_proc.{name}") - count for name, count in zip(names, before, strict=True)] == [12, 12, 12]
    wait_until(lambda: fleet.service.metric("kv_indexer_gateway_open") == 0)
    assert fleet.service.metric("kv_indexer_route_open") == 0
    assert fleet.service.metric("kv_indexer_gateway_calls_total", outcome="unanswered") == unanswered + 12


def test_a_request_is_over_with_its_streamed_answer(envoy: Envoy, fleet: Fleet) -> None:
    results = []
    thread = threading.Thread(target=lambda: results.append(stream(envoy, count=10, gap_s=0.1)))
    thread.start()
    wait_until(lambda: fleet.service.metric("kv_indexer_route_open") == 1)
    assert thread.is_alive()
    thread.join()
    wait_until(lambda: fleet.service.metric("kv_indexer_route_open") == 0)
    (answer,) = results
    assert (answer.pod, answer.text) == ("first", events(10))
    assert answer.at_s[-1] - answer.at_s[0] > 0.8


def test_a_request_is_over_where_its_client_hangs_up(envoy: Envoy, fleet: Fleet) -> None:
    with envoy.http.stream("POST", "/v1/completions", json=completion(stream=600, gap_s=0.1)) as response:
        assert response.status_code == 200
        assert fleet.service.metric("kv_indexer_route_open") == 1
    wait_until(lambda: fleet.service.metric("kv_indexer_route_open") == 0)


@pytest.mark.parametrize("size", [1, 60_000, 900_000, 12_000_000])
def test_bodies_arrive_as_they_were_sent(envoy: Envoy, size: int) -> None:
    said = ask(envoy, json.dumps(completion("second", user="x" * size)).encode())
    assert int(said["headers"]["content-length"]) == said["size"]


def test_a_body_that_is_too_long_to_be_buffered_is_refused(envoy: Envoy) -> None:
    assert envoy.http.post("/v1/completions", json=completion(user="x" * 17_000_000)).status_code == 413


def test_a_body_without_a_length_as_well(envoy: Envoy) -> None:
    content, said = ask_in_chunks(envoy)
    assert (said["pod"], said["digest"]) == ("second", hashlib.sha256(content).hexdigest())


def test_a_request_without_a_body_goes_round_unasked(envoy: Envoy) -> None:
    before = envoy.stat("http.http.ext_proc.streams_started")
    assert {envoy.http.get("/v1/models").json()["pod"] for _ in range(4)} == {"first", "second"}
    assert envoy.stat("http.http.ext_proc.streams_started") == before


def test_only_the_pods_that_the_control_plane_allows_are_picked(envoy: Envoy, fleet: Fleet) -> None:
    for pod in fleet.pods.values():
        assert ask_for(envoy, "first", **{SUBSET_HEADER: f"10.9.9.9:1,{pod.netloc}"}) == pod.name
    response = envoy.http.post("/v1/completions", json=completion(), headers={SUBSET_HEADER: "10.9.9.9:1"})
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")


def test_what_a_client_names_is_passed_over(envoy: Envoy, fleet: Fleet) -> None:
    assert_what_a_client_names_is_passed_over(envoy, fleet)


@pytest.mark.parametrize(("content", "status"), [(b'{"model"', 400), (b'{"model": "ghost"}', 404)])
def test_errors_are_those_of_openai(envoy: Envoy, content: bytes, status: int) -> None:
    response = envoy.http.post("/v1/completions", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (status, status)


def test_headers_tell_the_picker_what_they_do_elsewhere(envoy: Envoy, fleet: Fleet) -> None:
    """The model, another model, and a type that is not read: each changes the pick or its reason."""
    response = envoy.http.post("/v1/completions", json=completion("second", model="public"), headers={"x-gateway-model-name-rewrite": "m"})
    said = response.json()
    content = json.dumps(completion("second"), separators=(",", ":"))
    assert (said["pod"], said["size"], said["headers"]["content-length"]) == ("second", len(content), str(len(content)))
    nameless = json.dumps({"prompt": TEXTS["second"]}).encode()
    assert ask(envoy, nameless, **{"x-gateway-model-name": "m"})["pod"] == "second"
    before = fleet.service.metric("kv_indexer_pick_by_load_total", why="other_type")
    envoy.http.post("/v1/completions", content=b"text", headers={"content-type": "image/png"})
    assert fleet.service.metric("kv_indexer_pick_by_load_total", why="other_type") == before + 1
    before = fleet.service.metric("kv_indexer_pick_by_load_total", why="other_api")
    envoy.http.post("/v1/audio/speech?voice=x", json={"model": "m"})
    assert fleet.service.metric("kv_indexer_pick_by_load_total", why="other_api") == before + 1


@pytest.mark.parametrize("how", ["refuses", "503"])
def test_where_the_picked_pod_fails_its_fallback_gets_the_whole_request(envoy: Envoy, fleet: Fleet, how: str) -> None:
    pod = fleet.pods["first"]
    if how == "refuses":
        pod.close()
    else:
        pod.status = 503
    try:
        assert ask(envoy, json.dumps(completion("first", user="x" * 5_000_000)).encode())["pod"] == "second"
    finally:
        pod.status = 200
        if how == "refuses":
            pod.open()
    assert ask_for(envoy, "first") == "first"


def test_four_hundred_requests_at_once(envoy: Envoy, fleet: Fleet) -> None:
    with ThreadPoolExecutor(40) as pool:
        assert list(pool.map(lambda number: ask_for(envoy, "first" if number % 2 else "second"), range(400))) == ["second", "first"] * 200
    wait_until(lambda: fleet.service.metric("kv_indexer_route_open") == 0)


def test_the_pod_for_prefill_is_told_in_a_header() -> None:
    port = free_port()
    with Pod("decode") as decode, Engine() as engine:
        specs = (f"{decode.spec},role=decode", engine.spec("prefill", http="http://127.0.0.1:9", role="prefill"))
        with Running(*specs, **FLAGS, gateway_listen=f"127.0.0.1:{port}", pick_prefill_tokens="0") as service:
            service.wait_for(pod="decode", trust="live")
            with Envoy("buffered", port, [decode.netloc]) as envoy:
                envoy.wait_for_picker()
                said = ask(envoy, json.dumps(completion()).encode())
    assert said["headers"]["x-prefiller-host-port"] == "127.0.0.1:9"

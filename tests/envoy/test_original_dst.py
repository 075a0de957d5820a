"""deploy/envoy/original-dst.yaml: the pod by a header only, as Envoy AI Gateway and llm-d's stand-alone proxy have it."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.envoy.fleet import FLAGS, TEXTS, Fleet, ask, ask_for, completion, events, stream
from tests.envoy.pods import Pod
from tests.envoy.proxy import Config, Envoy, processor
from tests.ports import free_port
from tests.running import Running


@pytest.fixture(scope="module")
def envoy(fleet: Fleet) -> Iterator[Envoy]:
    with Envoy("original-dst", fleet.port, fleet.endpoints) as envoy:
        envoy.wait_for_picker()
        yield envoy


def test_requests_go_to_the_pod_that_holds_their_prefix(envoy: Envoy) -> None:
    assert [ask_for(envoy, pod) for pod in ("first", "second", "second", "first")] == ["first", "second", "second", "first"]


def test_streams_long_bodies_and_requests_without_a_body(envoy: Envoy) -> None:
    answer = stream(envoy, "second", count=6, gap_s=0.1)
    assert (answer.pod, answer.text) == ("second", events(6))
    assert answer.at_s[-1] - answer.at_s[0] > 0.4
    for size in (300_000, 12_000_000):
        ask(envoy, json.dumps(completion(user="x" * size)).encode())
    assert envoy.http.get("/v1/models").status_code == 200


def test_a_client_that_names_an_address_itself_reaches_the_picked_pod_and_without_a_picker_nobody(envoy: Envoy, fleet: Fleet) -> None:
    second = fleet.pods["second"]
    named = {"x-gateway-destination-endpoint": second.netloc}
    assert ask_for(envoy, "first", **named) == "first"
    with Envoy("original-dst", free_port(), fleet.endpoints) as alone:
        alone.wait_for_picker(is_healthy=False)
        response = alone.http.get("/v1/forged", headers=named)
        assert response.status_code == 503
    assert "/v1/forged" not in second.paths


@pytest.mark.parametrize("mode", ["FULL_DUPLEX_STREAMED", "BUFFERED"])
def test_answers_pass_through_as_envoy_ai_gateway_has_it(fleet: Fleet, mode: str) -> None:
    def both_ways(config: Config) -> None:
        trailers = "SEND" if mode == "FULL_DUPLEX_STREAMED" else "SKIP"
        modes = {"request_body_mode": mode, "response_body_mode": mode, "request_trailer_mode": trailers, "response_trailer_mode": trailers}
        processor(config)["processing_mode"] |= modes

    with Envoy("original-dst", fleet.port, fleet.endpoints, both_ways) as envoy:
        envoy.wait_for_picker()
        assert [ask_for(envoy, pod) for pod in ("first", "second", "second", "first")] == ["first", "second", "second", "first"]
        answer = stream(envoy, "second", count=6, gap_s=0.02)
        assert (answer.pod, answer.text) == ("second", events(6))
        ask(envoy, json.dumps(completion(user="x" * 300_000)).encode())


def test_a_list_is_no_address_there_which_is_why_one_endpoint_is_sent_by_default() -> None:
    port = free_port()
    with ExitStack() as stack:
        pods = [stack.enter_context(Pod(name)) for name in TEXTS]
        stack.enter_context(Running(*(pod.spec for pod in pods), **{**FLAGS, "gateway_listen": f"127.0.0.1:{port}", "gateway_fallbacks": "1"}))
        envoy = stack.enter_context(Envoy("original-dst", port, [pod.netloc for pod in pods]))
        envoy.wait_for_picker()
        response = envoy.http.post("/v1/completions", json=completion())
        assert (response.status_code, response.text) == (503, "no healthy upstream")

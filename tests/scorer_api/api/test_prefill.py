"""Prompts that other pods compute: what is picked where pods have roles."""

import json
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from indexer.errors import SettingError
from tests import ext_proc
from tests.engine import Engine, stored
from tests.ext_proc import DESTINATION, FULL_DUPLEX, RESPONSE_BODY, RESPONSE_HEADERS
from tests.gateway import Gateway
from tests.ports import free_port
from tests.running import Client, Running
from tests.settings import settings_of
from tests.waiting import wait_until

AT = {"decode-0": "10.0.0.1:80", "decode-1": "10.0.0.2:80", "prefill-0": "10.0.0.3:80", "prefill-1": "10.0.0.4:80"}
FLAGS = {"route_speculative_s": "0", "route_forget_s": "600", "load_interval_s": "0", "gateway_notice_s": "0.001", "pick_prefill_tokens": "16"}
HELD = list(range(1, 65))
PREFILLER = "x-prefiller-host-port"


class Pods:
    """Two pods for each role. `decode-1` and `prefill-1` have HELD in their caches."""

    def __init__(self, service: Client, gateway: Gateway) -> None:
        self.service = service
        self.gateway = gateway

    def open(self) -> float:
        return self.service.metric("kv_indexer_route_open")

    def pick(self, tokens: list[int]) -> httpx.Response:
        response = self.service.http.post(f"{self.service.url}/v1/pick/v1/completions", json={"model": "m", "prompt": tokens})
        assert response.status_code == 200, response.text
        return response

    def end(self, response: httpx.Response) -> None:
        self.service.http.delete(f"{self.service.url}/v1/pick/{response.headers['x-kv-request-id']}")


@pytest.fixture(scope="module")
def pods() -> Iterator[Pods]:
    port = free_port()
    with ExitStack() as stack:
        engines = {pod: stack.enter_context(Engine()) for pod in AT}
        specs = [engine.spec(pod, http=f"http://{AT[pod]}", role=pod.partition("-")[0]) for pod, engine in engines.items()]
        service = stack.enter_context(Running(*specs, gateway_listen=f"127.0.0.1:{port}", **FLAGS))
        for pod in ("decode-1", "prefill-1"):
            service.wait_for(pod=pod, sequence=engines[pod].publish(stored(list(range(16)), HELD)), trust="live")
        yield Pods(service, stack.enter_context(Gateway(port)))


@pytest.mark.parametrize(
    ("tokens", "destinations", "prefillers"),
    [
        ([*HELD, *range(1000, 1100)], {"decode-1"}, {"prefill-1"}),
        (list(range(2000, 2100)), {"decode-0", "decode-1"}, {"prefill-0", "prefill-1"}),
    ],
)
def test_a_long_uncached_prompt_is_computed_elsewhere(pods: Pods, tokens: list[int], destinations: set[str], prefillers: set[str]) -> None:
    before = pods.service.metric("kv_indexer_pick_prefills_total", outcome="remote")
    response = pods.pick(tokens)
    assert response.headers[DESTINATION] in {AT[pod] for pod in destinations}
    assert response.headers[PREFILLER] in {AT[pod] for pod in prefillers}
    assert pods.service.metric("kv_indexer_pick_prefills_total", outcome="remote") == before + 1
    assert pods.open() == 2
    pods.end(response)
    assert pods.open() == 0


def test_what_the_pod_has_in_its_cache_or_is_short_is_not(pods: Pods) -> None:
    before = pods.service.metric("kv_indexer_pick_prefills_total", outcome="short")
    for tokens in ([*HELD, 1, 2, 3], [5, 6, 7]):
        response = pods.pick(tokens)
        assert response.headers[DESTINATION] in (AT["decode-0"], AT["decode-1"])
        assert PREFILLER not in response.headers
        pods.end(response)
    assert pods.service.metric("kv_indexer_pick_prefills_total", outcome="short") == before + 2


def test_the_work_counts_where_it_is_done(pods: Pods) -> None:
    """Eight prompts of the same length are spread over both pods for prefill, and leave those for decode idle."""
    picks = [pods.pick([number * 1000 + token for token in range(500)]) for number in range(10, 18)]
    answer = pods.service.http.post(f"{pods.service.url}/v1/route", json={"model": "m", "token_ids": [9], "pods": list(AT)}).json()
    queued = {pod: reason["queued_tokens"] for pod, reason in answer["reason"].items()}
    assert queued["decode-0"] == queued["decode-1"] == 0
    assert [sum(pick.headers[PREFILLER] == AT[pod] for pick in picks) for pod in ("prefill-0", "prefill-1")] == [4, 4]
    for pick in picks:
        pods.end(pick)
    pods.service.http.post(f"{pods.service.url}/v1/route/done", json={"id": answer["id"]})
    assert pods.open() == 0


def test_a_route_names_a_pod_for_prefill_only_where_it_is_asked_for(pods: Pods) -> None:
    def route(**more: object) -> dict[str, object]:
        body = {"model": "m", "token_ids": HELD, **more}
        answer = pods.service.http.post(f"{pods.service.url}/v1/route", json=body).json()
        pods.service.http.post(f"{pods.service.url}/v1/route/done", json={"id": answer["id"]})
        return dict(answer)

    answer = route()
    assert (answer["pod"], answer["fallbacks"]) == ("decode-1", ["decode-0"])
    reasons = answer["reason"]
    assert isinstance(reasons, dict)
    assert {pod: reason["why"] for pod, reason in reasons.items()} == {
        "decode-0": None,
        "decode-1": None,
        "prefill-0": "prefill",
        "prefill-1": "prefill",
    }
    assert route(pods=["prefill-0", "prefill-1"])["pod"] == "prefill-1"


@pytest.mark.parametrize("response", [ext_proc.NONE, FULL_DUPLEX])
def test_a_gateway_tells_the_pod_and_its_response_when_the_prompt_is_computed(pods: Pods, response: int) -> None:
    body = json.dumps({"model": "m", "prompt": [*HELD, *range(3000, 3100)]}).encode()
    with pods.gateway.call() as call:
        reply = call.ask(body, response=response, x_prefiller_host_port="169.254.169.254:80", x_encoder_hosts_ports="10.9.9.9:1")
        assert reply.set[DESTINATION] == AT["decode-1"]
        assert reply.set[PREFILLER] == AT["prefill-1"]
        assert reply.removed == ["x-encoder-hosts-ports"]
        call.reply()
        assert pods.open() == 2
        call.send(ext_proc.headers(RESPONSE_HEADERS, {":status": "200"}))
        call.reply()
        wait_until(lambda: pods.open() == (1 if response == FULL_DUPLEX else 0))
        if response == FULL_DUPLEX:
            call.send(ext_proc.body(RESPONSE_BODY, b"{}", is_end=True))
            call.reply()
            wait_until(lambda: pods.open() == 0)


def test_the_pods_that_a_gateway_allows_are_those_for_prefill_too(pods: Pods) -> None:
    body = json.dumps({"model": "m", "prompt": [*HELD, *range(4000, 4100)]}).encode()
    before = pods.service.metric("kv_indexer_pick_prefills_total", outcome="no_pod")
    reply = pods.gateway.pick(body, more=ext_proc.subset(ext_proc.list_value([AT["decode-0"], AT["prefill-0"]])))
    assert (reply.set[DESTINATION], reply.set[PREFILLER]) == (AT["decode-0"], AT["prefill-0"])
    reply = pods.gateway.pick(body, more=ext_proc.subset(ext_proc.list_value([AT["decode-0"]])))
    assert (reply.set[DESTINATION], reply.set.get(PREFILLER)) == (AT["decode-0"], None)
    assert pods.service.metric("kv_indexer_pick_prefills_total", outcome="no_pod") == before + 1
    reply = pods.gateway.pick(body, more=ext_proc.subset(ext_proc.list_value([AT["prefill-0"]])))
    assert reply.status == 503


@pytest.mark.parametrize(
    ("specs", "what"),
    [
        (["pod=a,model=m,events=tcp://a:1,role=encode"], "role should be both, prefill, decode"),
        (["pod=a,model=m,events=tcp://a:1,rank=0,role=prefill", "pod=a,model=m,events=tcp://a:2,rank=1"], "two roles"),
    ],
)
def test_roles_that_are_none(specs: list[str], what: str) -> None:
    with pytest.raises(SettingError, match=what):
        settings_of({}, specs)

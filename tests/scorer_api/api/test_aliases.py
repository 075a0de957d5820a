"""Scores for the other names of a model, over real ZMQ, Redis and HTTP."""

import json
from typing import Any

import httpx

from tests.engine import Engine, stored
from tests.engine_server import EngineServer, tokenize_bytes
from tests.processes import api, ingest
from tests.redis_server import RedisServer
from tests.running import Client, Running
from tests.waiting import wait_until

TOKENS = [1, 2, 3, 4, 5]
SERVED = json.dumps({"data": [{"id": name, "root": "/models/m", "parent": None} for name in ("m", "said")]}).encode()


def ask(service: Client, model: str, route: str = "score", **body: Any) -> httpx.Response:
    return service.http.post(f"{service.url}/v1/{route}", json={"model": model, **(body or {"token_ids": TOKENS})})


def aliases(service: Client) -> dict[str, list[str]]:
    return {pod["pod"]: pod["aliases"] for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]}


def test_an_alias_of_a_spec_is_the_model_on_every_route() -> None:
    with Engine() as engine, EngineServer(routes={"/tokenize": tokenize_bytes}) as tokenizing:
        engine.publish(stored([1], TOKENS[:4]))
        with Running(engine.spec(aliases="big|org/Big", http=tokenizing.url)) as service:
            service.wait_for(sequence=0)
            for name in ("m", "big", "org/Big"):
                answer = ask(service, name).json()
                assert (answer["model"], answer["best"], answer["pods"][0]["matched_tokens"]) == (name, "pod", 4)
                assert ask(service, name, "route").json()["pod"] == "pod"
                assert ask(service, name, "explain").json()["pods"][0]["matched_tokens"] == 4
                assert ask(service, name, prompt="words").status_code == 200
            assert ask(service, "other").status_code == 404
            assert aliases(service) == {"pod": ["big", "org/Big"]}
            assert service.http.get(f"{service.url}/v1/models").json() == {"models": [{"model": "m", "pods": ["pod"]}]}


def test_an_adapter_of_a_model_with_an_alias() -> None:
    with Engine() as engine, Running(engine.spec(aliases="big")) as service:
        engine.publish(stored([1], TOKENS[:4], lora_name="ad", extra_keys=[["ad"]]))
        service.wait_for(sequence=0)
        matched = [ask(service, "big", token_ids=TOKENS, lora_name=name).json()["pods"][0]["matched_tokens"] for name in ("ad", None)]
        assert matched == [4, 0]


def test_a_models_own_name_comes_before_an_alias_and_an_alias_of_two_models_is_refused() -> None:
    with Engine() as first, Engine() as second, Running(first.spec("a", "m", aliases="both|n"), second.spec("b", "n", aliases="both")) as service:
        for pod in ("a", "b"):
            service.wait_for(pod=pod, trust="live")
        assert [pod["pod"] for pod in ask(service, "n").json()["pods"]] == ["b"]
        response = ask(service, "both")
        assert (response.status_code, response.json()["detail"]) == (422, "model: 'both' is an alias of 'm' and 'n'; send one of these")


def test_the_engine_is_asked_for_its_names() -> None:
    with Engine() as engine, EngineServer(routes={"/v1/models": lambda _: (200, SERVED)}) as served:
        engine.publish(stored([1], TOKENS[:4]))
        with Running(engine.spec(http=served.url, aliases="big"), load_interval_s="0") as service:
            service.wait_for(sequence=0)
            wait_until(lambda: aliases(service) == {"pod": ["big", "said"]})
            assert ask(service, "said").json()["best"] == "pod"


def test_scorers_that_follow_redis_know_the_names_from_flags_from_registrations_and_from_engines() -> None:
    with (
        Engine() as engine,
        Engine() as other,
        EngineServer(routes={"/v1/models": lambda _: (200, SERVED)}) as served,
        RedisServer() as redis,
        ingest(redis.url, engine.spec("a", aliases="flagged", http=served.url)) as indexer,
        api(redis.url) as scorer,
    ):
        for command in (indexer, scorer):
            command.wait_url()
        endpoints = dict(part.split("=", 1) for part in other.spec().split(","))
        body = {**{key: endpoints[key] for key in ("events", "replay")}, "model": "n", "aliases": ["registered", "more"]}
        assert scorer.http.put(f"{scorer.url}/v1/pods/b", json=body).status_code == 201
        engine.publish(stored([1], TOKENS[:4]))
        other.publish(stored([1], TOKENS[:4]))
        for name, pod in (("flagged", "a"), ("said", "a"), ("registered", "b"), ("more", "b")):
            wait_until(lambda name=name, pod=pod: ask(scorer, name).json().get("best") == pod)
        assert aliases(scorer) == {"a": ["flagged", "said"], "b": ["registered", "more"]}

"""Scores for a LoRA adapter's name as the model, over real ZMQ, Redis and HTTP."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.engine import Engine, stored
from tests.engine_server import EngineServer, tokenize_bytes
from tests.processes import api, ingest, serve
from tests.redis_server import RedisServer
from tests.running import Client, Running
from tests.waiting import wait_until

TOKENS = [1, 2, 3, 4, 5]


def with_adapter(name: str, engine_hash: int = 1) -> dict[str, Any]:
    """A block of an adapter, as vLLM 0.26 announces it."""
    return stored([engine_hash], TOKENS[:4], lora_name=name, extra_keys=[[name]])


def ask(service: Client, model: str, **more: Any) -> httpx.Response:
    return service.http.post(f"{service.url}/v1/score", json={"model": model, "token_ids": TOKENS, **more})


def matched(response: httpx.Response) -> dict[str, int]:
    assert response.status_code == 200, response.text
    return {pod["pod"]: pod["matched_tokens"] for pod in response.json()["pods"]}


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    """Models m and n, each with a pod; both have an adapter `both`, m has `ad`, and n has one that is called like the model m."""
    with Engine() as first, Engine() as second, EngineServer(routes={"/tokenize": tokenize_bytes}) as tokenizing:
        for number, name in enumerate(("ad", "both")):
            first.publish(with_adapter(name, number))
        for number, name in enumerate(("both", "m")):
            second.publish(with_adapter(name, number))
        specs = first.spec("a", http=tokenizing.url), second.spec("b", "n")
        with Running(*specs, lora="later=m") as running:
            running.tokenizing = tokenizing  # type: ignore[attr-defined]
            for pod in ("a", "b"):
                running.wait_for(pod=pod, sequence=1, trust="live")
            yield running


def test_an_adapters_name_is_the_base_model_with_that_adapter(service: Client) -> None:
    answer = ask(service, "ad")
    assert matched(answer) == {"a": 4}
    assert (answer.json()["model"], answer.json()["best"]) == ("ad", "a")
    assert matched(ask(service, "m", lora_name="ad")) == {"a": 4}
    assert matched(ask(service, "ad", lora_name="ad")) == {"a": 4}
    assert service.stream("a")["adapters"] == ["ad", "both"]


def test_a_model_of_that_very_name_comes_first(service: Client) -> None:
    assert matched(ask(service, "m")) == {"a": 0}
    assert matched(ask(service, "n", lora_name="m")) == {"b": 4}


def test_an_adapter_of_two_models_is_named_with_both(service: Client) -> None:
    refused = ask(service, "both")
    assert refused.status_code == 422
    assert refused.json()["detail"] == "model: 'both' is a LoRA adapter of 'm' and 'n'; send one of these as model, and 'both' as lora_name"
    assert matched(ask(service, "n", lora_name="both")) == {"b": 4}


def test_another_adapter_besides_is_a_contradiction(service: Client) -> None:
    refused = ask(service, "ad", lora_name="both")
    assert (refused.status_code, "lora_name: 'both' is not the adapter that model names, 'ad'" in refused.json()["detail"]) == (422, True)


def test_a_configured_adapter_is_known_before_any_engine_announces_it(service: Client) -> None:
    assert matched(ask(service, "later")) == {"a": 0}
    assert ask(service, "never").status_code == 404


def test_prompts_are_tokenized_under_the_adapters_name_by_pods_of_the_base_model(service: Client) -> None:
    answer = service.http.post(f"{service.url}/v1/score", json={"model": "ad", "prompt": "text"})
    assert (answer.status_code, answer.json()["tokens"]) == (200, 4)
    assert service.tokenizing.tokenize_requests[-1]["model"] == "ad"  # type: ignore[attr-defined]


def test_the_batch_knows_them_too(service: Client) -> None:
    requests = [{"model": "ad", "token_ids": TOKENS}, {"model": "both", "token_ids": TOKENS}]
    first, second = service.http.post(f"{service.url}/v1/score/batch", json={"requests": requests}).json()["answers"]
    assert (first["best"], second["problem"]["status"]) == ("a", 422)


def test_what_is_configured_counts_more_than_what_is_announced() -> None:
    with Engine() as first, Engine() as second:
        for engine in (first, second):
            engine.publish(with_adapter("ad"))
        with Running(first.spec("a"), second.spec("b", "n"), lora="ad=n") as service:
            for pod in ("a", "b"):
                service.wait_for(pod=pod, sequence=0)
            assert matched(ask(service, "ad")) == {"b": 4}


def test_an_engines_restart_forgets_them_and_a_reset_does_not() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        engine.publish(with_adapter("ad"))
        service.wait_for(sequence=0)
        engine.publish({"type": "AllBlocksCleared"})
        service.wait_for(sequence=1)
        assert matched(ask(service, "ad")) == {"pod": 0}
        engine.kill()
        engine.start()
        engine.publish(stored([1], TOKENS[:4]))
        wait_until(lambda: matched(ask(service, "m")) == {"pod": 4})
        assert ask(service, "ad").status_code == 404


def test_scorers_know_what_indexers_heard_also_after_a_takeover() -> None:
    with ExitStack() as stack:
        redis, engine = (stack.enter_context(each) for each in (RedisServer(), Engine()))
        first = stack.enter_context(ingest(redis.url, engine.spec()))
        scorer, both = stack.enter_context(api(redis.url)), stack.enter_context(serve(redis.url, engine.spec()))
        engine.publish(with_adapter("ad"))
        for service in (scorer, both):
            service.wait_url()
            wait_until(lambda service=service: ask(service, "ad").status_code == 200 and matched(ask(service, "ad")) == {"pod": 4})
        # Whichever of the two has the stream dies; nothing is announced since, so that the other has it from the former owner.
        owner = wait_until(lambda: str(scorer.stream()["owner"] or ""))
        owning, other = (first, both) if f":{first.process.pid}:" in owner else (both, first)
        owning.kill()
        wait_until(lambda: f":{other.process.pid}:" in str(scorer.stream()["owner"]), 60)
        engine.publish(stored([2], [9, 9, 9, 9]))
        scorer.wait_for(sequence=1)
        wait_until(lambda: scorer.stream()["adapters"] == ["ad"])
        assert matched(ask(scorer, "ad")) == {"pod": 4}


def test_a_name_without_a_model_stops_the_start() -> None:
    with serve(None, lora="ad") as service:
        assert service.process.wait(30) == 2
    assert "--lora=" in service.lines[0]
    assert "should be name=my/model" in service.lines[0]


def test_an_adapter_with_the_models_own_name_is_what_requests_for_that_name_get() -> None:
    """Engines look for an adapter first. The base model has other blocks of the same tokens."""
    with Engine() as engine, Running(engine.spec()) as running:
        running.wait_for(trust="live")
        engine.publish(stored([1, 2], [*TOKENS[:4], 5, 6, 7, 8]))
        running.wait_for(sequence=0)
        prompt = {"token_ids": [*TOKENS[:4], 5, 6, 7, 8, 9]}
        assert matched(ask(running, "m", **prompt)) == {"pod": 8}
        engine.publish(with_adapter("m", 3))
        running.wait_for(sequence=1)
        wait_until(lambda: matched(ask(running, "m", **prompt)) == {"pod": 4})
        assert matched(ask(running, "m", lora_name="m", **prompt)) == {"pod": 4}
        assert matched(ask(running, "m", lora_name="other", **prompt)) == {"pod": 0}


def test_a_thousand_adapters_are_known_by_their_names() -> None:
    with Engine() as engine, Running(engine.spec()) as running:
        running.wait_for(trust="live")
        for number in range(1_024):
            engine.publish(with_adapter(f"ad-{number}", number))
        running.wait_for(sequence=1_023)
        for number in (0, 500, 1_023):
            assert matched(ask(running, f"ad-{number}")) == {"pod": 4}

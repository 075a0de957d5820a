"""A LoRA adapter gets other weights under its name: blocks of the former ones do not count any more."""

from typing import Any

from tests.engine import Engine, stored
from tests.processes import api, ingest
from tests.redis_server import RedisServer
from tests.running import Client, Running
from tests.waiting import wait_until

TOKENS = list(range(100, 116))


def of_adapter(hashes: list[int], tokens: list[int], name: str = "ad", **more: Any) -> dict[str, Any]:
    return stored(hashes, tokens, lora_id=1, lora_name=name, extra_keys=[[name]] * len(hashes), **more)


def matched(service: Client, name: str | None = "ad") -> int:
    body = {"model": "m", "token_ids": [*TOKENS, 7], "lora_name": name}
    blocks: int = service.http.post(f"{service.url}/v1/score", json=body).json()["pods"][0]["matched_blocks"]
    return blocks


def trusts(service: Client) -> list[str]:
    return [stream["trust"] for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"] for stream in pod["streams"]]


def test_new_hashes_of_the_same_tokens_drop_the_former_blocks() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        engine.publish(of_adapter([1, 2, 3, 4], TOKENS), of_adapter([11, 12], TOKENS[:8], "other"), stored([21, 22, 23], TOKENS[:12]))
        service.wait_for(sequence=0)
        assert [matched(service, name) for name in ("ad", "other", None)] == [4, 2, 3]
        engine.publish(of_adapter([51, 52], TOKENS[:8]))
        service.wait_for(sequence=1)
        assert [matched(service, name) for name in ("ad", "other", None)] == [2, 2, 3]
        assert service.stream()["trust"] == "live"
        engine.publish(of_adapter([53, 54], TOKENS[8:], parent=52))
        service.wait_for(sequence=2)
        assert matched(service) == 4


def test_an_operator_says_so_where_hashes_do_not() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        engine.publish(of_adapter([1, 2, 3, 4], TOKENS), stored([21, 22, 23], TOKENS[:12]))
        service.wait_for(sequence=0)
        url = f"{service.url}/v1/pods/pod?lora=ad"
        assert service.http.delete(url).status_code == 204
        assert [matched(service, name) for name in ("ad", None)] == [0, 3]
        assert service.http.delete(url).status_code == 204
        assert service.http.delete(f"{service.url}/v1/pods/other?lora=ad").status_code == 404
        engine.publish(of_adapter([1, 2], TOKENS[:8]))
        service.wait_for(sequence=1)
        assert [matched(service, name) for name in ("ad", None)] == [2, 3]
        assert service.stream()["trust"] == "live"


def test_with_redis_the_indexer_that_owns_the_pod_is_told() -> None:
    with Engine() as engine, RedisServer() as redis, ingest(redis.url, engine.spec()) as indexer, api(redis.url) as scorer:
        for command in (indexer, scorer):
            command.wait_url()
        engine.publish(of_adapter([1, 2, 3, 4], TOKENS))
        wait_until(lambda: scorer.http.get(f"{scorer.url}/v1/models").json()["models"])
        wait_until(lambda: matched(scorer) == 4)
        refused = scorer.http.delete(f"{scorer.url}/v1/pods/pod?lora=ad")
        assert (refused.status_code, "does not follow" in refused.json()["detail"]) == (409, True)
        assert indexer.http.delete(f"{indexer.url}/v1/pods/pod?lora=ad").status_code == 204
        wait_until(lambda: matched(scorer) == 0)
        engine.publish(of_adapter([1], TOKENS[:4]))
        wait_until(lambda: matched(scorer) == 1)


def test_who_took_the_pod_over_drops_all_that_was_recorded_before() -> None:
    with Engine() as engine, RedisServer() as redis, api(redis.url) as scorer:
        scorer.wait_url()
        with ingest(redis.url, engine.spec()) as former:
            former.wait_url()
            engine.publish(of_adapter([1, 2, 3, 4], TOKENS), stored([21, 22, 23], TOKENS[:12]))
            wait_until(lambda: scorer.http.get(f"{scorer.url}/v1/models").json()["models"])
            wait_until(lambda: matched(scorer) == 4)
        with ingest(redis.url, engine.spec()) as indexer:
            indexer.wait_url()
            wait_until(lambda: trusts(indexer) == ["live"])
            assert matched(scorer) == 4
            assert indexer.http.delete(f"{indexer.url}/v1/pods/pod?lora=ad").status_code == 204
            wait_until(lambda: [matched(scorer, name) for name in ("ad", None)] == [0, 0])
            assert trusts(indexer) == ["partial"]
            # From now on it is known again which blocks are the adapter's.
            engine.publish(of_adapter([31], TOKENS[:4]), stored([41], TOKENS[:4]))
            wait_until(lambda: [matched(scorer, name) for name in ("ad", None)] == [1, 1])
            assert indexer.http.delete(f"{indexer.url}/v1/pods/pod?lora=ad").status_code == 204
            wait_until(lambda: [matched(scorer, name) for name in ("ad", None)] == [0, 1])

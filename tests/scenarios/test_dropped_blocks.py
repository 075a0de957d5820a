"""Engines with EAGLE or MTP drafters compute the last matched block again. Nothing on the wire says so: `drops_last_block` does.

Figures of vllm-project/vllm#54360: blocks of 2,144 tokens, and what the engine took from its cache.
"""

import pytest

from tests.engine import Engine, stored
from tests.processes import api, ingest
from tests.redis_server import RedisServer
from tests.running import Client, Running
from tests.waiting import wait_until

SIZE = 2_144
TOKENS = list(range(SIZE * 9))
REPORTED = ((3_784, 0), (7_542, 4_288), (11_292, 8_576), (15_019, 12_864), (18_770, 15_008))


def publish(engine: Engine) -> None:
    engine.publish(stored(list(range(1, 10)), TOKENS, block_size=SIZE))


def figures(service: Client, tokens: int) -> tuple[int, int, int]:
    """Matched tokens, matched and usable blocks."""
    (pod,) = service.score(TOKENS[:tokens])["pods"]
    return pod["matched_tokens"], pod["matched_blocks"], pod["usable_blocks"]


@pytest.mark.parametrize("setting", ["1", "true"])
def test_every_hit_is_a_block_shorter(setting: str) -> None:
    with Engine() as engine, Running(engine.spec(drops_last_block=setting)) as service:
        publish(engine)
        service.wait_for(sequence=0)
        assert service.stream()["drops_last_block"] == 1
        for tokens, hit in REPORTED:
            assert figures(service, tokens) == (hit, hit // SIZE, hit // SIZE), tokens


def test_or_more_blocks_shorter() -> None:
    with Engine() as engine, Running(engine.spec(drops_last_block=3)) as service:
        publish(engine)
        service.wait_for(sequence=0)
        assert [figures(service, tokens)[1] for tokens in (SIZE * 3 + 1, SIZE * 4 + 1, SIZE * 9)] == [0, 1, 5]


def test_an_explanation_says_so() -> None:
    with Engine() as engine, Running(engine.spec(drops_last_block=1)) as service:
        engine.publish(stored([1, 2, 3], list(range(12))))
        service.wait_for(sequence=0)

        def explained(tokens: list[int]) -> tuple[str, str, int | None]:
            (pod,) = service.http.post(f"{service.url}/v1/explain", json={"model": "m", "token_ids": tokens}).json()["pods"]
            (rank,) = pod["ranks"]
            assert [blocks for _, blocks in rank["runs"]] == [pod["matched_blocks"]] * bool(pod["matched_blocks"])
            return pod["why"], rank["end"]["reason"], rank["end"]["block"]

        whole = (
            "2 of 2 blocks match without the last 1, which the engine computes again; every block that the engine could take from its cache matches"
        )
        assert explained(list(range(13))) == (whole, "whole_prompt", None)
        why, reason, block = explained([*range(8), 0, 0, 0, 0, 0])
        assert (reason, block) == ("never_stored", 2)
        assert why.startswith("1 of 2 blocks match without the last 1")
        why, reason, _ = explained(list(range(8)))
        assert reason == "prompt_too_short"
        assert why.endswith("it takes 9 tokens")


def test_expected_blocks_are_shorter_too() -> None:
    """What was just sent to a pod counts as it will when the engine has announced it."""
    with Engine() as engine, Running(engine.spec(drops_last_block=1)) as service:
        engine.publish(stored([1], list(range(4))))
        service.wait_for(sequence=0)
        tokens = list(range(100, 121))
        assert service.http.post(f"{service.url}/v1/route", json={"model": "m", "token_ids": tokens}).json()["pod"] == "pod"
        body = {"model": "m", "token_ids": tokens, "include_speculative": True}
        (pod,) = service.http.post(f"{service.url}/v1/score", json=body).json()["pods"]
        assert (pod["matched_blocks"], pod["usable_blocks"]) == (4, 4)


def test_scorers_that_follow_redis_know_it_from_flags_and_registrations() -> None:
    with Engine() as engine, Engine() as other, RedisServer() as redis:
        for each in (engine, other):
            publish(each)
        with ingest(redis.url, engine.spec(drops_last_block=1)) as indexer, api(redis.url) as scorer:
            for command in (indexer, scorer):
                command.wait_url()
            spec = dict(part.split("=", 1) for part in other.spec("other").split(","))
            body = {**{key: spec[key] for key in ("model", "events", "replay")}, "drops_last_block": 2}
            assert indexer.http.put(f"{indexer.url}/v1/pods/other", json=body).status_code == 201

            def matched() -> dict[str, int]:
                response = scorer.http.post(f"{scorer.url}/v1/score", json={"model": "m", "token_ids": [*TOKENS, 1]})
                return {pod["pod"]: pod["matched_blocks"] for pod in response.json().get("pods", ())}

            wait_until(lambda: matched() == {"pod": 8, "other": 7})

"""Explanations over HTTP: every reason and every hint produced by real engines, sockets and processes."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest

from tests.engine import Engine, cleared, removed, stored
from tests.engine_server import EngineServer
from tests.ports import free_port
from tests.processes import api, ingest
from tests.redis_server import RedisServer
from tests.running import Client, Running
from tests.waiting import wait_until

EIGHT = list(range(1, 9))
NINE = [*EIGHT, 9]
THIRTEEN = [*range(1, 14)]
BUSY = b"vllm:num_requests_running 3.0\nvllm:num_requests_waiting 2.0\nvllm:kv_cache_usage_perc 0.25\n"


def explain(service: Client, tokens: list[int], model: str = "m", **more: Any) -> dict[str, Any]:
    response = service.http.post(f"{service.url}/v1/explain", json={"model": model, "token_ids": tokens, **more})
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def end(service: Client, tokens: list[int], pod: str = "pod", model: str = "m", **more: Any) -> dict[str, Any]:
    """Where the match of a pod's only rank ends."""
    (found,) = (pods for pods in explain(service, tokens, model, **more)["pods"] if pods["pod"] == pod)
    (rank,) = found["ranks"]
    ended: dict[str, Any] = rank["end"]
    return ended


def reason(service: Client, tokens: list[int], pod: str = "pod", model: str = "m", **more: Any) -> tuple[str, int | None, int | None]:
    found = end(service, tokens, pod, model, **more)
    return found["reason"], found["block"], found["sequence"]


def codes(service: Client, tokens: list[int], model: str = "m", **more: Any) -> dict[str, str]:
    """The hints: code → detail."""
    return {hint["code"]: hint["detail"] for hint in explain(service, tokens, model, **more)["hints"]}


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        yield engine


@pytest.fixture
def service(engine: Engine) -> Iterator[Client]:
    with Running(engine.spec()) as service:
        service.wait_for(trust="live", connected=True)
        yield service


# The answer


def test_an_explanation_has_every_figure(engine: Engine, service: Client) -> None:
    engine.publish(stored([1, 2], EIGHT))
    engine.publish(stored([3], [9, 10, 11, 12], 2, medium="CPU"))
    service.wait_for(sequence=1, trust="live")
    answer = explain(service, [*THIRTEEN, 14, 15, 16, 17])
    about = answer["about"]
    assert about.pop("last_event_age_s") >= 0
    (pod,) = answer["pods"]
    ends = pod["ranks"][0]["end"]
    assert pod.pop("why") == f"3 of 4 blocks match; {ends['detail']}"
    assert ends.pop("detail") == "block 3 was never announced with these tokens, as far as is remembered"
    assert answer == {
        **{"model": "m", "tokens": 17, "source": "token_ids", "hints": [], "view": {"source": "embedded", "age_s": 0.0}},
        "about": {"pods": 1, "block_sizes": [4], "adapters": []},
        "pods": [
            {
                **{"pod": "pod", "score": pytest.approx((8 + 4 * 0.8) / 16), "matched_tokens": 12, "matched_blocks": 3, "usable_blocks": 4},
                **{"block_size": 4, "trust": "live", "ready": True, "rank": 0, "load": None},
                "ranks": [
                    {
                        **{"rank": 0, "trust": "live", "block_size": 4, "matched_blocks": 3, "usable_blocks": 4, "runs": [["gpu", 2], ["cpu", 1]]},
                        "end": {"reason": "never_stored", "block": 3, "sequence": None},
                    }
                ],
            }
        ],
    }


def test_its_figures_are_those_of_a_score(engine: Engine, service: Client) -> None:
    engine.publish(stored([1, 2], EIGHT))
    service.wait_for(sequence=0, trust="live")
    for tokens in (NINE, EIGHT, [9, *NINE], []):
        (scored,), (seen,) = service.score(tokens)["pods"], explain(service, tokens)["pods"]
        same = ("pod", "score", "matched_tokens", "matched_blocks", "usable_blocks", "block_size", "rank", "trust")
        assert {name: scored[name] for name in same} == {name: seen[name] for name in same}


def test_pods_and_limit_are_as_in_a_score_and_msgpack_too(engine: Engine, service: Client) -> None:
    body = msgspec.msgpack.encode({"model": "m", "token_ids": b"\1\0\0\0", "pods": ["ghost"], "limit": 1})
    response = service.http.post(f"{service.url}/v1/explain", content=body, headers={"Content-Type": "application/msgpack"})
    answer = msgspec.msgpack.decode(response.content)
    assert (answer["pods"], answer["unknown_pods"], answer["about"]["pods"]) == ([], ["ghost"], 1)
    post, url = service.http.post, f"{service.url}/v1/explain"
    assert post(url, json={"model": "ghost", "token_ids": []}).status_code == 404
    assert post(url, json={"model": "m"}).status_code == 422
    assert post(url, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    assert service.metric("kv_indexer_explain_requests_total", outcome="answered") == 1
    assert service.metric("kv_indexer_explain_requests_total") == 4
    assert service.metric("kv_indexer_score_requests_total") == 0


def loads(service: Client) -> dict[str, Any]:
    """Each pod's load."""
    return {pod["pod"]: pod["load"] for pod in explain(service, NINE)["pods"]}


def test_each_pod_s_load_stands_beside_its_match(engine: Engine) -> None:
    """As its engine says it, while it does; nobody says one of `silent`, and that of `brief` does not tell of its cache."""
    answer = [(200, BUSY)]
    brief = BUSY.replace(b"vllm:kv_cache", b"other").replace(b"3.0", b"0.0")
    with EngineServer(routes={"/metrics": lambda _: answer[0]}) as told, EngineServer(routes={"/metrics": lambda _: (200, brief)}) as partly:
        specs = [engine.spec("busy", http=told.url), engine.spec("brief", http=partly.url), engine.spec("silent")]
        with Running(*specs, load_interval_s="0.1", load_max_age_s="1.5") as service:
            wait_until(lambda: None not in (loads(service)["busy"], loads(service)["brief"]))
            seen = loads(service)
            for pod in ("busy", "brief"):
                assert 0 <= seen[pod].pop("age_s") <= 1.5
            assert seen["busy"] == {"running": 3, "waiting": 2, "kv_usage": 0.25}
            assert seen["brief"] == {"running": 0, "waiting": 2, "kv_usage": None}
            assert seen["silent"] is None
            answer[0] = 503, b""
            wait_until(lambda: loads(service)["busy"] is None)
            assert loads(service)["brief"] is not None, "its own is as new as ever"


def test_asking_why_sends_nothing_anywhere(engine: Engine, service: Client) -> None:
    """No request counts as sent and no block as expected, which a pick changes both."""
    service.wait_for(sequence=engine.publish(stored([9], [50, 51, 52, 53])))

    def sent() -> tuple[float, float]:
        return service.metric("kv_indexer_route_open"), service.metric("kv_indexer_route_requests_total")

    for _ in range(5):
        explain(service, NINE)
    assert sent() == (0, 0)
    picked = service.http.post(f"{service.url}/v1/route", json={"model": "m", "token_ids": NINE}).json()["reason"]["pod"]
    assert (picked["queued_tokens"], picked["speculative_tokens"]) == (0, 0)
    explain(service, NINE)
    assert sent() == (1, 1)


# Reasons


def test_whole_short_and_unknown_prompts(engine: Engine, service: Client) -> None:
    engine.publish(stored([1, 2], EIGHT))
    service.wait_for(sequence=0, trust="live")
    assert reason(service, NINE) == ("whole_prompt", None, None)
    assert reason(service, [1, 2, 3, 4]) == ("prompt_too_short", None, None)
    assert reason(service, THIRTEEN) == ("never_stored", 2, None)
    assert reason(service, [7, *THIRTEEN]) == ("never_stored", 0, None)


def test_a_removed_block_is_told_with_the_batch_that_removed_it(engine: Engine, service: Client) -> None:
    engine.publish(stored([1, 2], EIGHT))
    number = engine.publish(removed([2]))
    service.wait_for(sequence=number, trust="live")
    assert reason(service, NINE) == ("removed", 1, number)
    service.wait_for(sequence=engine.publish(stored([2], [5, 6, 7, 8], 1)))
    assert reason(service, NINE) == ("whole_prompt", None, None)


def test_what_was_cleared_was_removed(engine: Engine, service: Client) -> None:
    engine.publish(stored([1, 2], EIGHT))
    number = engine.publish(cleared())
    service.wait_for(sequence=number, trust="live")
    assert reason(service, NINE) == ("removed", 0, number)


def test_a_restarted_engine_removed_nothing(engine: Engine, service: Client) -> None:
    engine.publish(stored([1, 2], EIGHT))
    service.wait_for(sequence=engine.publish(removed([2])), trust="live")
    engine.kill()
    engine.start()
    service.wait_for(restarts=1, trust="live")
    assert reason(service, NINE) == ("nothing_announced", 0, None)
    service.wait_for(sequence=engine.publish(stored([9], [5, 6, 7, 8])))
    assert reason(service, NINE) == ("never_stored", 0, None)


def test_without_a_memory_of_removals_a_removed_block_is_like_one_that_never_was(engine: Engine) -> None:
    with Running(engine.spec(), explain_removals_max="0") as service:
        engine.publish(stored([1, 2], EIGHT))
        service.wait_for(sequence=engine.publish(removed([2])), trust="live")
        assert reason(service, NINE) == ("never_stored", 1, None)


def test_a_block_that_is_held_remote_only_does_not_count(engine: Engine, service: Client) -> None:
    engine.publish(stored([1], [1, 2, 3, 4]))
    number = engine.publish(stored([2], [5, 6, 7, 8], 1, medium="CPU", locality="REMOTE"))
    service.wait_for(sequence=number, trust="live")
    assert reason(service, NINE) == ("remote_only", 1, None)


def test_nothing_announced_and_never_connected(engine: Engine) -> None:
    with Running(engine.spec(), f"pod=away,model=m,events=tcp://127.0.0.1:{free_port()}", pod_expiry_s="1000") as service:
        service.wait_for(trust="live")
        assert reason(service, NINE) == ("nothing_announced", 0, None)
        assert reason(service, NINE, "away") == ("stream_stale", 0, None)


def test_stale_and_expired(engine: Engine) -> None:
    with Running(engine.spec(), pod_expiry_s="2") as service:
        service.wait_for(sequence=engine.publish(stored([1, 2], EIGHT)), trust="live")
        engine.kill()
        service.wait_for(trust="stale")
        assert reason(service, THIRTEEN) == ("stream_stale", 2, None)
        assert reason(service, NINE) == ("whole_prompt", None, None)
        service.wait_for(trust="expired")
        assert reason(service, NINE) == ("stream_expired", 0, None)


def test_partial() -> None:
    """It has no replay endpoint, and began before the service did."""
    with Engine(with_replay=False) as engine:
        engine.next_number = 5
        with Running(engine.spec()) as service:
            service.wait_for(connected=True)
            wait_until(lambda: engine.subscriptions() > 0)
            number = engine.publish(stored([1], [1, 2, 3, 4]))
            service.wait_for(sequence=number, trust="partial")
            assert reason(service, NINE) == ("stream_partial", 1, None)


def test_other_block_size(engine: Engine, service: Client) -> None:
    engine.publish(stored([1, 2], [1, 2, 3, 4, 0, 0, 0, 0]))
    service.wait_for(sequence=engine.publish(stored([3], list(range(5, 13)), 1, block_size=8)), other_block_size=8)
    assert reason(service, THIRTEEN) == ("other_block_size", 1, None)
    assert "of 8 tokens" in end(service, THIRTEEN)["detail"]


def test_lora_unknown(engine: Engine, service: Client) -> None:
    engine.publish(stored([1], [1, 2, 3, 4]), stored([2], [1, 2, 3, 4], lora_id=1, lora_name="known", extra_keys=[["known"]]))
    service.wait_for(sequence=0, adapters=["known"])
    assert reason(service, NINE, lora_name="strange") == ("lora_unknown", 0, None)
    assert reason(service, NINE, lora_name="known") == ("never_stored", 1, None)
    assert "'strange'" in codes(service, NINE, lora_name="strange")["lora_unknown"]
    assert explain(service, NINE)["about"]["adapters"] == ["known"]


# What must not be told


def test_what_is_held_under_another_salt_is_like_what_nobody_has(engine: Engine, service: Client) -> None:
    """Held, removed or remote under a salt: whoever does not name it gets, byte for byte, the answer of a prompt that nobody ever asked for."""
    prompts = {name: list(range(start, start + 9)) for name, start in (("held", 10), ("removed", 20), ("remote", 30), ("nobody's", 40))}
    for number, (name, tokens) in enumerate(list(prompts.items())[:3]):
        hashes = [10 * number + 1, 10 * number + 2]
        where = {"medium": "CPU", "locality": "REMOTE"} if name == "remote" else {}
        engine.publish(stored(hashes, tokens[:8], extra_keys=[["secret"], None], **where))
        if name == "removed":
            engine.publish(removed(hashes))
    engine.publish(stored([99], [1, 2, 3, 4]))
    service.wait_for(sequence=4, trust="live")
    assert [reason(service, prompts[name], cache_salt="secret")[0] for name in prompts] == ["whole_prompt", "removed", "remote_only", "never_stored"]
    for more in ({}, {"cache_salt": "guess"}, {"lora_name": "l"}, {"cache_salt": "Secret"}):
        seen = {msgspec.json.encode(without_times(explain(service, tokens, **more))) for tokens in prompts.values()}
        assert len(seen) == 1, "nothing in the answer tells them apart"
        assert b"secret" not in seen.pop()


def without_times(answer: dict[str, Any]) -> dict[str, Any]:
    """The age of the last events grows from answer to answer, whatever was asked."""
    return {**answer, "about": {**answer["about"], "last_event_age_s": None}}


# Hints


def test_no_hints_where_all_is_well(engine: Engine, service: Client) -> None:
    service.wait_for(sequence=engine.publish(stored([1, 2], EIGHT)), trust="live")
    assert codes(service, NINE) == {}


def test_hint_engine_away_or_events_disabled(engine: Engine) -> None:
    """Where events are disabled nothing listens at the port; where replay was given for events, the other end does not speak to subscribers."""
    wrong = f"pod=wrong,model=m,events=tcp://127.0.0.1:{engine.replay_port}"
    with Running(engine.spec(), f"pod=away,model=m,events=tcp://127.0.0.1:{free_port()}", wrong) as service:
        service.wait_for(trust="live")
        hint = codes(service, NINE)["not_connected"]
        assert "away" in hint
        assert "wrong" in hint
        assert "enable_kv_cache_events" in hint


def test_hint_connected_and_no_events_ever(engine: Engine, service: Client) -> None:
    hint = codes(service, NINE)["no_events"]
    assert "topic" in hint
    service.wait_for(sequence=engine.publish(stored([1, 2], EIGHT)))
    assert "no_events" not in codes(service, NINE)


def test_hint_wrong_topic_without_a_replay_endpoint() -> None:
    with Engine(with_replay=False, topic=b"kv-events") as engine, Running(engine.spec(topic="kv@events")) as service:
        service.wait_for(connected=True)
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(stored([1, 2], EIGHT))
        assert "topic" in codes(service, NINE)["no_events"]


def test_hint_wrong_topic_where_only_replays_arrive() -> None:
    with Engine(topic=b"kv-events") as engine, Running(engine.spec(topic="kv@events")) as service:
        service.wait_for(trust="live")
        for gaps in (1, 2):
            service.wait_for(sequence=engine.publish(stored([gaps], [gaps] * 4)), gaps=gaps)
        assert "topic" in codes(service, [1, 1, 1, 1, 1])["only_replays"]


def test_hint_replay_endpoint_that_does_not_answer(engine: Engine) -> None:
    engine.mute = True
    with Running(engine.spec()) as service:
        service.wait_for(connected=True, last_error=f"replay endpoint tcp://127.0.0.1:{engine.replay_port} does not answer")
        assert "replay_endpoint" in codes(service, NINE)["replay_unanswered"]


def test_hint_events_that_cannot_be_used(engine: Engine, service: Client) -> None:
    service.wait_for(sequence=engine.publish(stored([1], [-1, 2, 3, 4])))
    assert "kv_indexer_refused_total" in codes(service, NINE)["events_refused"]


def test_hint_ids_of_another_vocabulary(engine: Engine, service: Client) -> None:
    service.wait_for(sequence=engine.publish(stored([1, 2], EIGHT)), highest_token=8)
    assert "foreign_tokens" not in codes(service, [9, *NINE])
    assert "17" in codes(service, [17, *NINE])["foreign_tokens"]
    assert "foreign_tokens" not in codes(service, [*EIGHT, 100, 100]), "the prompt matches"


def test_hint_nothing_ever_matches(engine: Engine, service: Client) -> None:
    """As with another tokenizer, or without the begin-of-text token: pods have blocks, and no prompt begins with any."""
    service.wait_for(sequence=engine.publish(stored([1, 2], EIGHT)))
    assert "no other prompt" in codes(service, [2, *NINE])["nothing_matches"]
    for _ in range(3):
        service.score([2, *NINE])
    assert "last 3 prompts" in codes(service, [2, *NINE])["nothing_matches"]
    assert "nothing_matches" not in codes(service, NINE), "this one matches"
    service.score(NINE)
    assert "nothing_matches" not in codes(service, [2, *NINE]), "another did a moment ago"


def test_hint_short_prompts_and_several_block_sizes(engine: Engine) -> None:
    with Engine() as other, Running(engine.spec(), other.spec("other")) as service:
        service.wait_for(sequence=engine.publish(stored([1, 2], EIGHT)))
        service.wait_for(pod="other", sequence=other.publish(stored([1], EIGHT, block_size=8)))
        found = codes(service, [1, 2, 3, 4])
        assert "below 5 tokens" in found["prompt_too_short"]
        assert "4, 8" in found["block_sizes_differ"]
        assert set(codes(service, NINE)) == {"block_sizes_differ"}
        assert explain(service, NINE)["about"]["block_sizes"] == [4, 8]


# Over Redis


def models(service: Client) -> list[str]:
    return [model["model"] for model in service.http.get(f"{service.url}/v1/models").json()["models"]]


def test_a_scorer_of_its_own_explains_too() -> None:
    """The log tells of the engine's sequence; adapters and errors come with the owner's status."""
    with ExitStack() as stack:
        redis, engine = stack.enter_context(RedisServer()), stack.enter_context(Engine())
        http = stack.enter_context(EngineServer(routes={"/metrics": lambda _: (200, BUSY)}))
        indexer = stack.enter_context(ingest(redis.url, engine.spec(http=http.url)))
        scorer = stack.enter_context(api(redis.url)).wait_url()
        indexer.wait_url()
        wait_until(lambda: models(scorer) == ["m"] and scorer.stream()["trust"] == "live")
        lora = stored([7], [1, 2, 3, 4], lora_id=1, lora_name="adapter", extra_keys=[["adapter"]])
        engine.publish(stored([1, 2], EIGHT), lora)
        wait_until(lambda: scorer.matched(NINE) == 8)
        scorer.wait_for(adapters=["adapter"], highest_token=8)
        assert reason(scorer, NINE) == ("whole_prompt", None, None)
        engine.publish(removed([2]))
        wait_until(lambda: scorer.matched(NINE) == 4)
        assert reason(scorer, NINE) == ("removed", 1, 1)
        answer = explain(scorer, NINE)
        assert (answer["about"]["adapters"], answer["view"]["source"], answer["hints"]) == (["adapter"], "redis", [])
        assert reason(scorer, NINE, lora_name="strange") == ("lora_unknown", 0, None)
        wait_until(lambda: loads(scorer)["pod"] is not None)
        assert loads(scorer)["pod"]["kv_usage"] == 0.25

        strange = stack.enter_context(api(redis.url, hash_seed="another")).wait_url()
        wait_until(lambda: models(strange) == ["m"] and strange.stream()["trust"] == "live")
        assert strange.matched(NINE) == 0
        assert "--hash-seed" in codes(strange, NINE)["hash_seed_differs"]
        assert "hash_seed_differs" not in codes(scorer, NINE)

        indexer.kill()
        wait_until(lambda: "nobody_follows" in codes(scorer, NINE))

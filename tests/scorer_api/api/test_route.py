"""Picks over HTTP, with what test engines announced behind them."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import msgspec
import pytest

from tests.engine import Engine, removed, stored
from tests.engine_server import EngineServer
from tests.processes import api, ingest
from tests.redis_server import RedisServer
from tests.running import Client, Running
from tests.waiting import wait_until

NINE = list(range(1, 10))
LONG = list(range(100, 100 + 4 * 50 + 1))
# Long enough that nothing ends by itself within a test, on any machine.
PATIENT = {"route_seed": "1", "route_speculative_s": "600", "route_forget_s": "600"}


def route(service: Client, tokens: list[int], model: str = "m", status: int = 200, **more: Any) -> dict[str, Any]:
    response = service.http.post(f"{service.url}/v1/route", json={"model": model, "token_ids": tokens, **more})
    assert response.status_code == status, response.text
    answer: dict[str, Any] = response.json()
    return answer


def done(service: Client, name: str) -> bool:
    response = service.http.post(f"{service.url}/v1/route/done", json={"id": name})
    assert response.status_code == 200, response.text
    assert response.json()["id"] == name
    return bool(response.json()["known"])


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    """a holds both blocks of a prompt, b the first one, c nothing."""
    with ExitStack() as stack:
        a, b, c = (stack.enter_context(Engine()) for _ in range(3))
        a.publish(stored([1, 2], NINE[:8]))
        b.publish(stored([1], NINE[:4]))
        c.publish(stored([1], [7, 7, 7, 7]))
        service = stack.enter_context(Running(a.spec("a"), b.spec("b"), c.spec("c"), **PATIENT))
        for pod in "abc":
            service.wait_for(pod=pod, sequence=0, trust="live")
        yield service


def test_an_answer_has_every_figure_of_every_pod(service: Client) -> None:
    answer = route(service, NINE, output_tokens_expected=0, exclude=["c", "ghost"])
    name = answer.pop("id")
    assert len(name) == 16
    unknown = {"running": None, "waiting": None, "kv_usage": None, "load_age_s": None}
    common = {"rank": 0, "speculative_tokens": 0, "queued_tokens": 0, "trust": "live", **unknown}
    assert answer == {
        **{"model": "m", "tokens": 9, "pod": "a", "rank": 0, "fallbacks": ["b"], "policy": "cost", "picked_for": "longest_match"},
        "reason": {
            "a": {**common, "matched_tokens": 8, "uncached_tokens": 1, "cost_s": pytest.approx(2.25 / 8000, abs=1e-6), "why": None},
            "b": {**common, "matched_tokens": 4, "uncached_tokens": 5, "cost_s": pytest.approx(5 * 2.25 / 8000, abs=1e-6), "why": None},
            "c": {**common, "matched_tokens": 0, "uncached_tokens": 9, "cost_s": pytest.approx(9 * 2.25 / 8000, abs=1e-6), "why": "excluded"},
        },
        "http": {"a": "http://a", "b": "http://b"},
        "view": {"source": "embedded", "age_s": 0.0},
    }
    assert done(service, name)


def test_a_prompt_may_be_named_by_the_engine_s_hashes(service: Client) -> None:
    """Nothing is expected of them elsewhere, since they name blocks of one engine; what is sent counts in the queue all the same."""
    response = service.http.post(f"{service.url}/v1/route", json={"model": "m", "block_hashes": [1, 2], "output_tokens_expected": 0})
    assert response.status_code == 200, response.text
    answer = response.json()
    reasons = answer["reason"]
    assert (answer["pod"], answer["fallbacks"], answer["picked_for"]) == ("a", ["b", "c"], "longest_match")
    assert {pod: (why["matched_tokens"], why["uncached_tokens"]) for pod, why in reasons.items()} == {"a": (8, 1), "b": (4, 5), "c": (4, 5)}
    assert {why["speculative_tokens"] for why in reasons.values()} == {0}
    assert route(service, NINE)["reason"]["a"]["queued_tokens"] == reasons["a"]["queued_tokens"] + 1
    assert done(service, answer["id"])


def test_a_request_that_is_done_counts_no_more_and_one_that_does_not_count_is_no_mistake(service: Client) -> None:
    name = route(service, LONG, pods=["c"])["id"]
    assert route(service, NINE, pods=["c"])["reason"]["c"]["queued_tokens"] >= len(LONG)
    before = service.metric("kv_indexer_route_done_total", outcome="unknown")
    assert [done(service, name), done(service, name), done(service, "never")] == [True, False, False]
    assert service.metric("kv_indexer_route_done_total", outcome="unknown") == before + 2


def test_the_limit_is_one_of_pods_and_unknown_pods_are_named(service: Client) -> None:
    answer = route(service, NINE, limit=1, pods=["b", "a", "ghost"])
    assert (answer["pod"], answer["fallbacks"], list(answer["reason"]), answer["unknown_pods"]) == ("a", [], ["a"], ["ghost"])


def test_the_body_of_a_client_may_be_passed_on_as_it_is(service: Client) -> None:
    response = service.http.post(
        f"{service.url}/v1/route", json={"model": "m", "prompt": NINE, "policy": "prefix", "temperature": 0.7, "stream": True, "n": 1}
    )
    assert (response.status_code, response.json()["pod"]) == (200, "a")
    assert done(service, response.json()["id"])


@pytest.mark.parametrize("policy", ["cost", "prefix", "least-load", "round-robin", "session"])
def test_every_policy_can_be_asked_for(service: Client, policy: str) -> None:
    answer = route(service, NINE, policy=policy, session_id="s")
    assert answer["policy"] == policy
    assert {answer["pod"], *answer["fallbacks"]} == set("abc")
    picked = service.metric("kv_indexer_route_picks_total", policy=policy, picked_for=answer["picked_for"])
    assert picked >= 1


@pytest.mark.parametrize(
    ("more", "status", "said"),
    [
        ({"model": "ghost"}, 404, "model: 'ghost' is not known"),
        ({"exclude": ["a", "b", "c"]}, 503, "no pod can be picked: 3 excluded"),
        ({"pods": ["ghost"]}, 503, "there is none of those asked for"),
        ({"policy": "session"}, 422, "session_id: the policy session needs one"),
        ({"policy": "best"}, 422, "policy: Invalid enum value 'best'; it should be cost, prefix, least-load, round-robin or session"),
        ({"output_tokens_expected": -1}, 422, "output_tokens_expected: "),
        ({"exclude": "a"}, 422, "exclude: Expected `array"),
        ({"sesion_id": "s"}, 422, "sesion_id: there is no such field; did you mean session_id?"),
        ({"token_ids": [-1]}, 422, "token_ids[0]: -1 should be"),
    ],
)
def test_what_is_wrong_is_said(service: Client, more: dict[str, Any], status: int, said: str) -> None:
    counts = service.metric("kv_indexer_route_requests_total")
    response = service.http.post(f"{service.url}/v1/route", json={"model": "m", "token_ids": NINE, **more})
    assert response.status_code == status
    assert said in response.json()["detail"]
    assert ("retry-after" in response.headers) is (status == 503)
    assert service.metric("kv_indexer_route_requests_total") == counts + 1


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{", 400), (b"[]", 422), (b"{}", 422), (b'{"id": 1}', 422), (b'{"id": "a", "x": 1}', 422), (b"[" * 9999, 422), (b"\xff", 400)],
)
def test_what_is_wrong_about_being_done_is_said(service: Client, body: bytes, status: int) -> None:
    response = service.http.post(f"{service.url}/v1/route/done", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == status


def test_msgpack_with_packed_tokens_gets_the_same_answer_in_msgpack(service: Client) -> None:
    packed = b"".join(token.to_bytes(4, "little") for token in NINE)
    body = msgspec.msgpack.encode({"model": "m", "token_ids": packed})
    answer = msgspec.msgpack.decode(post(service, "/v1/route", body).content)
    assert answer["reason"]["a"]["matched_tokens"] == 8
    told = msgspec.msgpack.decode(post(service, "/v1/route/done", msgspec.msgpack.encode({"id": answer["id"]})).content)
    assert told == {"id": answer["id"], "known": True}


def post(service: Client, path: str, body: bytes) -> httpx.Response:
    response = service.http.post(f"{service.url}{path}", content=body, headers={"Content-Type": "application/msgpack"})
    assert response.status_code == 200
    return response


def test_a_huge_list_of_excluded_pods_is_refused_before_it_is_built(service: Client) -> None:
    body = msgspec.json.encode({"model": "m", "token_ids": [], "exclude": ["x"] * 200_000})
    response = service.http.post(f"{service.url}/v1/route", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 422
    assert "exclude: " in response.json()["detail"]


# Speculation, with events that really come


def test_a_burst_goes_to_one_pod_until_its_events_come_and_scores_show_nothing_of_it() -> None:
    """Then the events say the same, and one that is evicted is not expected any more."""
    with Engine() as a, Engine() as b, Running(a.spec("a"), b.spec("b"), **PATIENT) as service:
        engines = {"a": a, "b": b}
        for pod, engine in engines.items():
            service.wait_for(pod=pod, sequence=engine.publish(stored([1], [7, 7, 7, 7])), trust="live")
        picks = Counter(route(service, [*LONG, *range(number * 10, number * 10 + 8)], output_tokens_expected=1)["pod"] for number in range(12))
        assert len(picks) == 1
        (picked,) = picks
        assert service.matched(LONG, picked) == 0
        shown = service.score(LONG, include_speculative=True)["pods"]
        assert [(pod["pod"], pod["matched_blocks"], pod["speculative_blocks"]) for pod in shown] == [
            (picked, 50, 50),
            ("ba"[picked == "b"], 0, 0),
        ]
        batch = {"requests": [{"model": "m", "token_ids": LONG, "include_speculative": expects} for expects in (True, False)]}
        answers = service.http.post(f"{service.url}/v1/score/batch", json=batch).json()["answers"]
        assert [answer["pods"][0]["matched_blocks"] for answer in answers] == [50, 0]

        hashes = list(range(1000, 1050))
        alone = route(service, LONG, output_tokens_expected=1)
        assert alone["pod"] == picked
        number = engines[picked].publish(stored(hashes, LONG[:-1]))
        service.wait_for(pod=picked, sequence=number)
        reason = route(service, LONG)["reason"][picked]
        assert (reason["matched_tokens"], reason["speculative_tokens"]) == (200, 0)


def test_what_was_announced_and_evicted_is_not_expected_and_its_blocks_are_counted() -> None:
    with Engine() as engine, Running(engine.spec("a"), **PATIENT) as service:
        service.wait_for(pod="a", sequence=engine.publish(stored([1], LONG[:4])), trust="live")
        route(service, LONG)
        assert service.metric("kv_indexer_route_speculative_blocks") == 50
        number = engine.publish(stored(list(range(2, 51)), LONG[4:-1], 1))
        service.wait_for(pod="a", sequence=number)
        assert service.metric("kv_indexer_route_speculative_blocks") == 0
        counted = [service.metric("kv_indexer_route_blocks_total", outcome=outcome) for outcome in ("matched_held", "new_announced")]
        assert counted == [1, 49]
        service.wait_for(pod="a", sequence=engine.publish(removed([50])))
        assert route(service, LONG)["reason"]["a"]["matched_tokens"] == 196


def test_what_is_expected_and_what_was_sent_end_with_their_time() -> None:
    with Engine() as engine, Running(engine.spec("a"), route_speculative_s="0.3", route_forget_s="0.3") as service:
        service.wait_for(pod="a", sequence=engine.publish(stored([1], [7, 7, 7, 7])), trust="live")
        route(service, LONG)
        wait_until(lambda: service.metric("kv_indexer_route_speculative_blocks") == 0 == service.metric("kv_indexer_route_open"))
        reason = route(service, LONG)["reason"]["a"]
        assert (reason["speculative_tokens"], reason["queued_tokens"]) == (0, 0)
        assert service.metric("kv_indexer_route_forgotten_total", why="time") == 1
        assert service.metric("kv_indexer_route_blocks_total", outcome="new_unseen") == 50


def test_a_pod_whose_engine_is_gone_is_picked_only_while_there_is_no_other() -> None:
    with Engine() as a, Engine() as b, Running(a.spec("a"), b.spec("b"), pod_expiry_s="600") as service:
        for pod, engine in (("a", a), ("b", b)):
            service.wait_for(pod=pod, sequence=engine.publish(stored([1, 2], NINE[:8])), trust="live")
        a.kill()
        service.wait_for(pod="a", trust="stale")
        answer = route(service, NINE)
        assert (answer["pod"], answer["fallbacks"], answer["reason"]["a"]["why"]) == ("b", ["a"], "stale")
        alone = route(service, NINE, exclude=["b"])
        assert (alone["pod"], alone["picked_for"]) == ("a", "stale")


# Load, as engines tell it


def load_metrics(running: int, waiting: int, usage: float) -> str:
    """As vLLM shows it."""
    labels = '{engine="0",model_name="m"}'
    shown = {"vllm:num_requests_running": running, "vllm:num_requests_waiting": waiting, "vllm:kv_cache_usage_perc": usage}
    return "".join(f"# TYPE {name} gauge\n{name}{labels} {value}\n" for name, value in shown.items())


def test_the_load_that_engines_tell_outweighs_a_match() -> None:
    """a holds the prompt; while 50 requests wait there, b is picked, and a again when they are gone."""
    with ExitStack() as stack:
        a, b = (stack.enter_context(Engine()) for _ in range(2))
        busy, idle = (stack.enter_context(EngineServer(metrics=load_metrics(0, 0, 0.0))) for _ in range(2))
        specs = [a.spec("a", http=busy.url), b.spec("b", http=idle.url)]
        service = stack.enter_context(Running(*specs, load_interval_s="0.1", load_max_age_s="600", **PATIENT))
        service.wait_for(pod="a", sequence=a.publish(stored(list(range(50)), LONG[:-1])), trust="live")
        service.wait_for(pod="b", trust="live")

        def picks(expected: str, waiting: int) -> bool:
            answer = route(service, LONG)
            done(service, answer["id"])
            return answer["pod"] == expected and answer["reason"]["a"]["waiting"] == waiting

        wait_until(lambda: picks("a", 0))
        busy.metrics = load_metrics(20, 50, 0.99)
        wait_until(lambda: picks("b", 50))
        reason = route(service, LONG)["reason"]["a"]
        assert (reason["running"], reason["kv_usage"], reason["matched_tokens"]) == (20, 0.99, 200)
        assert reason["queued_tokens"] == 50 * 1024
        busy.metrics = load_metrics(0, 0, 0.0)
        wait_until(lambda: picks("a", 0))


def test_scorers_that_share_a_redis_share_loads_and_nothing_of_what_each_has_routed() -> None:
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer())
        engine = stack.enter_context(Engine())
        told = stack.enter_context(EngineServer(metrics=load_metrics(3, 2, 0.5)))
        stack.enter_context(ingest(redis.url, engine.spec("a", http=told.url), load_interval_s="0.1"))
        one, other = (stack.enter_context(api(redis.url, load_max_age_s="600", **PATIENT)) for _ in range(2))
        engine.publish(stored([1], [7, 7, 7, 7]))

        def knows_all(scorer: Client) -> bool:
            response = scorer.http.post(f"{scorer.url}/v1/route", json={"model": "m", "token_ids": [7] * 5})
            shown = response.json().get("reason", {}).get("a", {})
            return (shown.get("running"), shown.get("matched_tokens"), shown.get("trust")) == (3, 4, "live")

        for scorer in (one, other):
            scorer.wait_url()
            wait_until(lambda: knows_all(scorer))  # noqa: B023 - asked at once
        picked = route(one, LONG)
        assert route(one, LONG)["reason"]["a"]["speculative_tokens"] == 200
        assert route(other, LONG)["reason"]["a"]["speculative_tokens"] == 0
        assert [done(scorer, picked["id"]) for scorer in (other, one)] == [False, True]
        number = engine.publish(stored(list(range(2, 52)), LONG[:-1]))
        one.wait_for(pod="a", sequence=number)
        wait_until(lambda: one.metric("kv_indexer_route_speculative_blocks") == 0)

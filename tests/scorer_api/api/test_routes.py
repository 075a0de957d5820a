"""The routes, asked over HTTP, with what test engines announced behind them."""

import re
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any
from urllib.parse import quote

import httpx
import msgspec
import pytest

from indexer.compiled import ACTIVE
from tests.engine import Engine, stored
from tests.running import Client, Running

ODD_POD = "org/pod:8000@eu west"
ODD_MODEL = "org/model:v1@main"
# Two blocks of four tokens can be used of nine, one of eight: an engine never takes a whole prompt from its cache.
NINE = list(range(1, 10))
EIGHT = list(range(1, 9))
IMAGE = ["img", -1]


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    """a: both blocks on the gpu. b: the second one on the cpu. r: rank 0 has one block, rank 1 both. The odd pod: nothing."""
    with ExitStack() as stack:
        a, b, odd, r0, r1, other, images = (stack.enter_context(Engine()) for _ in range(7))
        a.publish(stored([1, 2], EIGHT))
        b.publish(stored([1], [1, 2, 3, 4]))
        b.publish(stored([2], [5, 6, 7, 8], 1, medium="CPU"))
        r0.publish(stored([1], [1, 2, 3, 4]))
        r1.publish(stored([1, 2], EIGHT))
        other.publish(stored([1, 2], EIGHT))
        images.publish(stored([1, 2], EIGHT, extra_keys=[[IMAGE], None]))
        images.publish(stored([3, 4], EIGHT, extra_keys=[["salt"], None]))
        images.publish(stored([5, 6], EIGHT, extra_keys=[["lora"], ["lora"]], lora_id=1, lora_name="lora"))
        specs = [a.spec("a"), b.spec("b"), odd.spec(ODD_POD), r0.spec("r", rank=0), r1.spec("r", rank=1), other.spec("o", ODD_MODEL)]
        service = stack.enter_context(Running(*specs, images.spec("i", "images")))
        for pod, rank, sequence in [("a", 0, 0), ("b", 0, 1), ("r", 0, 0), ("r", 1, 0), ("o", 0, 0), ("i", 0, 2)]:
            service.wait_for(pod=pod, rank=rank, sequence=sequence, trust="live")
        service.wait_for(pod=ODD_POD, trust="live")
        yield service


def by_pod(answer: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {pod["pod"]: pod for pod in answer["pods"]}


# Score


def test_an_answer_has_every_figure_of_every_pod(service: Client) -> None:
    answer = service.score(NINE)
    assert answer == {
        "model": "m",
        "tokens": 9,
        "best": "a",
        "pods": [
            {
                **{"pod": "a", "score": 1.0, "matched_tokens": 8, "matched_blocks": 2, "usable_blocks": 2, "block_size": 4},
                **{"tiers": {"gpu": 2}, "rank": 0, "ranks": {"0": 2}, "trust": "live"},
            },
            {
                **{"pod": "r", "score": 1.0, "matched_tokens": 8, "matched_blocks": 2, "usable_blocks": 2, "block_size": 4},
                **{"tiers": {"gpu": 2}, "rank": 1, "ranks": {"0": 1, "1": 2}, "trust": "live"},
            },
            {
                **{"pod": "b", "score": pytest.approx((4 * 1.0 + 4 * 0.8) / 8), "matched_tokens": 8, "matched_blocks": 2, "usable_blocks": 2},
                **{"block_size": 4, "tiers": {"gpu": 1, "cpu": 1}, "rank": 0, "ranks": {"0": 2}, "trust": "live"},
            },
            {
                **{"pod": ODD_POD, "score": 0.0, "matched_tokens": 0, "matched_blocks": 0, "usable_blocks": 0, "block_size": None},
                **{"tiers": {}, "rank": 0, "ranks": {"0": 0}, "trust": "live"},
            },
        ],
        "view": {"source": "embedded", "age_s": 0.0},
    }


def test_the_last_token_of_a_prompt_is_never_taken_from_the_cache(service: Client) -> None:
    answer = service.score(EIGHT)
    assert [(pod["pod"], pod["matched_tokens"], pod["usable_blocks"]) for pod in answer["pods"]] == [
        *[("a", 4, 1), ("b", 4, 1), ("r", 4, 1)],
        (ODD_POD, 0, 0),
    ]
    assert answer["pods"][0]["score"] == pytest.approx(4 / 7)


def test_equal_pods_come_in_the_same_order_every_time(service: Client) -> None:
    orders = [[pod["pod"] for pod in service.score(EIGHT)["pods"]] for _ in range(5)]
    assert orders == [["a", "b", "r", ODD_POD]] * 5


@pytest.mark.parametrize("tokens", [[], [1], [1, 2, 3], [1, 2, 3, 4]])
def test_a_prompt_without_a_usable_block_scores_zero_everywhere(service: Client, tokens: list[int]) -> None:
    answer = service.score(tokens)
    assert answer["best"] is None
    assert answer["tokens"] == len(tokens)
    assert sorted(by_pod(answer)) == ["a", "b", ODD_POD, "r"]
    assert all(pod["score"] == 0 == pod["matched_tokens"] == pod["usable_blocks"] for pod in answer["pods"])


def test_best_is_null_when_nothing_matches(service: Client) -> None:
    answer = service.score([9, *NINE])
    assert answer["best"] is None
    assert [pod["score"] for pod in answer["pods"]] == [0.0, 0.0, 0.0, 0.0]
    assert by_pod(answer)["a"]["usable_blocks"] == 2


def test_a_match_ends_at_the_first_block_that_differs(service: Client) -> None:
    assert service.matched([1, 2, 3, 4, 99, 6, 7, 8, 9], "a") == 4


def test_the_pods_asked_for_are_the_only_ones_and_unknown_ones_are_named(service: Client) -> None:
    answer = service.score(NINE, pods=["b", "ghost", ODD_POD, "ghost", "o"])
    assert [pod["pod"] for pod in answer["pods"]] == ["b", ODD_POD]
    assert answer["best"] == "b"
    assert answer["unknown_pods"] == ["ghost", "o"]


def test_asking_for_no_pod_at_all_gets_none(service: Client) -> None:
    answer = service.score(NINE, pods=[])
    assert (answer["pods"], answer["best"], answer["unknown_pods"]) == ([], None, [])


def test_unknown_pods_is_left_out_when_no_pods_were_asked_for(service: Client) -> None:
    assert "unknown_pods" not in service.score(NINE)


def test_limit_keeps_the_best(service: Client) -> None:
    answer = service.score(NINE, limit=2)
    assert [pod["pod"] for pod in answer["pods"]] == ["a", "r"]
    assert len(service.score(NINE, limit=1000)["pods"]) == 4


def test_a_limit_hides_no_known_pod_as_unknown(service: Client) -> None:
    answer = service.score(NINE, pods=["a", "b", "ghost"], limit=1)
    assert [pod["pod"] for pod in answer["pods"]] == ["a"]
    assert answer["unknown_pods"] == ["ghost"]


def test_null_is_the_same_as_left_out(service: Client) -> None:
    nothing: dict[str, Any] = {"pods": None, "lora_name": None, "cache_salt": None, "block_extra_keys": None, "limit": None}
    assert service.score(NINE, **nothing) == service.score(NINE)


def test_models_do_not_see_each_others_blocks(service: Client) -> None:
    answer = service.score(NINE, ODD_MODEL)
    assert [(pod["pod"], pod["matched_tokens"]) for pod in answer["pods"]] == [("o", 8)]


@pytest.mark.parametrize(
    ("more", "matched"),
    [
        ({"block_extra_keys": [[0, [IMAGE]]]}, 8),
        ({"block_extra_keys": [[0, [["img", -2]]]]}, 0),
        ({"block_extra_keys": [[0, [IMAGE]], [1, [IMAGE]]]}, 4),
        ({"cache_salt": "salt"}, 8),
        ({"block_extra_keys": [[0, ["salt"]]]}, 8),
        ({"cache_salt": "pepper"}, 0),
        ({"lora_name": "lora"}, 8),
        ({"lora_name": "lora", "block_extra_keys": [[0, ["lora"]], [1, ["lora"]]]}, 8),
        ({"lora_name": "other"}, 0),
        ({"lora_name": "lora", "cache_salt": "salt"}, 0),
        ({}, 0),
    ],
)
def test_images_salts_and_adapters_part_prompts_of_equal_tokens(service: Client, more: dict[str, Any], matched: int) -> None:
    assert service.matched(NINE, "i", "images", **more) == matched


def test_packed_tokens_get_the_same_answer_as_a_list(service: Client) -> None:
    body = msgspec.msgpack.encode({"model": "m", "token_ids": struct.pack("<9I", *NINE)})
    response = service.http.post(f"{service.url}/v1/score", content=body, headers={"Content-Type": "application/msgpack"})
    assert msgspec.msgpack.decode(response.content) == service.score(NINE)


def test_the_largest_token_is_a_token(service: Client) -> None:
    assert service.score([2**32 - 1] * 5)["tokens"] == 5


# Pods


def test_pods_shows_each_stream(service: Client) -> None:
    pods = service.http.get(f"{service.url}/v1/pods").json()["pods"]
    assert [(pod["pod"], pod["model"], [stream["rank"] for stream in pod["streams"]]) for pod in pods] == [
        *[("a", "m", [0]), ("b", "m", [0]), (ODD_POD, "m", [0]), ("r", "m", [0, 1])],
        *[("o", ODD_MODEL, [0]), ("i", "images", [0])],
    ]
    stream = service.wait_for(pod="b", last_error=None)  # a busy machine may not have answered a replay in time: the next one clears it
    assert stream.pop("last_batch_age_s") >= 0
    assert re.fullmatch(r"tcp://127\.0\.0\.1:\d+ tcp://127\.0\.0\.1:\d+", f"{stream.pop('events')} {stream.pop('replay')}")
    assert stream == {
        **{"rank": 0, "sequence": 1, "trust": "live", "connected": True, "block_size": 4, "blocks": {"gpu": 1, "cpu": 1}},
        **{"batches": 2, "gaps": 0, "replayed": 2, "restarts": 0, "last_error": None, "owner": None, "topic": ""},
        **{"highest_token": 4, "adapters": [], "other_block_size": None, "drops_last_block": 0},
        **{"groups": [{"group": 0, "kind": "full", "block_size": 4, "window": None, "blocks": {"gpu": 1, "cpu": 1}}]},
        **{"undecided": [], "announcements": 2, "refused": {}},
    }


def test_a_pod_with_an_odd_name_is_put_and_deleted_by_its_percent_encoded_name(service: Client) -> None:
    name = "a/b:c@d %/ü"
    url = f"{service.url}/v1/pods/{quote(name, safe='')}"
    with Engine() as engine:
        engine.publish(stored([1, 2], EIGHT))
        body = {"model": "odd", "events": f"tcp://127.0.0.1:{engine.events_port}", "replay": f"tcp://127.0.0.1:{engine.replay_port}"}
        response = service.http.put(url, json=body)
        assert response.status_code == 201
        assert (response.json()["pod"], response.json()["model"]) == (name, "odd")
        service.wait_for(pod=name, sequence=0, trust="live")
        assert service.matched(NINE, name, "odd") == 8
        deleted = service.http.delete(url)
        assert (deleted.status_code, deleted.content) == (204, b"")
    assert service.http.delete(url).status_code == 404


def test_a_put_may_repeat_the_name_in_its_body(service: Client) -> None:
    url = f"{service.url}/v1/pods/twice"
    assert service.http.put(url, json={"pod": "twice", "model": "tw", "events": "tcp://127.0.0.1:9"}).status_code == 201
    assert service.http.delete(url).status_code == 204


def test_a_deleted_pod_is_gone_from_scores_pods_and_models_at_once(service: Client) -> None:
    with Engine() as engine:
        engine.publish(stored([1, 2], EIGHT))
        url = f"{service.url}/v1/pods/short"
        body = {"model": "m", "events": f"tcp://127.0.0.1:{engine.events_port}", "replay": f"tcp://127.0.0.1:{engine.replay_port}"}
        service.http.put(url, json=body)
        service.wait_for(pod="short", sequence=0, trust="live")
        assert service.matched(NINE, "short") == 8
        blocks, holders = service.metric("kv_indexer_index_blocks"), service.metric("kv_indexer_index_holders")
        service.http.delete(url)
        assert service.score(NINE, pods=["short"])["unknown_pods"] == ["short"]
        assert "short" not in service.http.get(f"{service.url}/v1/pods").text
        assert "short" not in service.http.get(f"{service.url}/v1/models").text
        # The blocks are a's as well; the holders were one per block.
        assert service.metric("kv_indexer_index_blocks") == blocks
        assert service.metric("kv_indexer_index_holders") == holders - 2


def test_a_model_is_known_from_its_first_pod_to_its_last(service: Client) -> None:
    asked = {"model": "brief", "token_ids": NINE}
    assert service.http.post(f"{service.url}/v1/score", json=asked).status_code == 404
    service.http.put(f"{service.url}/v1/pods/brief-0", json={"model": "brief", "events": "tcp://127.0.0.1:9"})
    answer = service.score(NINE, "brief")
    assert [(pod["pod"], pod["score"], pod["trust"]) for pod in answer["pods"]] == [("brief-0", 0.0, "stale")]
    service.http.delete(f"{service.url}/v1/pods/brief-0")
    assert service.http.post(f"{service.url}/v1/score", json=asked).status_code == 404


def test_models_lists_every_model_with_its_pods(service: Client) -> None:
    assert service.http.get(f"{service.url}/v1/models").json() == {
        "models": [{"model": "m", "pods": ["a", "b", ODD_POD, "r"]}, {"model": ODD_MODEL, "pods": ["o"]}, {"model": "images", "pods": ["i"]}]
    }


# Health and metrics


def test_health_says_that_it_lives(service: Client) -> None:
    response = service.http.get(f"{service.url}/healthz")
    assert (response.status_code, response.json()) == (200, {"status": "alive"})


def test_readiness_says_ready_and_names_what_is_wrong_once_something_is(service: Client) -> None:
    assert service.http.get(f"{service.url}/readyz").json() == {"status": "ready", "reasons": [], "core": ACTIVE}
    service.http.put(f"{service.url}/v1/pods/nowhere", json={"model": "m", "events": "tcp://127.0.0.1:9"})
    response = service.http.get(f"{service.url}/readyz")
    assert response.status_code == 200
    assert response.json()["status"] == "degraded"
    (reason,) = response.json()["reasons"]
    assert "nowhere" in reason
    service.http.delete(f"{service.url}/v1/pods/nowhere")
    assert service.http.get(f"{service.url}/readyz").json()["status"] == "ready"


def test_score_requests_are_counted_by_outcome(service: Client) -> None:
    outcomes = ["match", "no_match", "malformed", "unknown_model", "unsupported_type", "wrong_value"]
    name = "kv_indexer_score_requests_total"
    before = {outcome: service.metric(name, outcome=outcome) for outcome in [*outcomes, "failed"]}
    service.score(NINE)
    service.score([])
    post, url = service.http.post, f"{service.url}/v1/score"
    assert post(url, content=b"{", headers={"Content-Type": "application/json"}).status_code == 400
    assert post(url, json={"model": "ghost", "token_ids": []}).status_code == 404
    assert post(url, content=b"{}", headers={"Content-Type": "text/plain"}).status_code == 415
    assert post(url, json={"model": "m", "token_ids": [-1]}).status_code == 422
    after = {outcome: service.metric(name, outcome=outcome) for outcome in [*outcomes, "failed"]}
    assert after == {**{outcome: before[outcome] + 1 for outcome in outcomes}, "failed": before["failed"]}


def test_each_answered_score_is_timed_by_phase(service: Client) -> None:
    before = {phase: service.metric("kv_indexer_score_seconds_count", phase=phase) for phase in ("decode", "look_up", "encode")}
    service.score(NINE)
    after = {phase: service.metric("kv_indexer_score_seconds_count", phase=phase) for phase in before}
    assert after == {phase: count + 1 for phase, count in before.items()}


def test_metrics_count_the_tokens_asked_about_and_those_that_the_best_pod_holds(service: Client) -> None:
    names = "kv_indexer_prompt_tokens_total", "kv_indexer_matched_tokens_total"
    before = [service.metric(name) for name in names]
    service.score(NINE)
    service.score(NINE, limit=1)
    service.score([7] * 9)
    service.http.post(f"{service.url}/v1/score", json={"model": "ghost", "token_ids": NINE})
    assert [service.metric(name) - known for name, known in zip(names, before, strict=True)] == [27, 16]


def test_metrics_show_what_is_held_and_how_far_it_can_be_trusted(service: Client) -> None:
    # m: block 1 and 2 on the gpu, block 2 on the cpu. The other model: 2. Images: two blocks for each of its three prompts.
    assert service.metric("kv_indexer_index_blocks") == 3 + 2 + 6
    # m: a 2, b 1 + 1, r 1 + 2.
    assert service.metric("kv_indexer_index_holders") == 7 + 2 + 6
    assert service.metric("kv_indexer_streams", trust="live") == 7
    assert service.metric("kv_indexer_streams", trust="stale") == 0


def test_every_metric_is_ours_and_has_help(service: Client) -> None:
    response = service.http.get(f"{service.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    helps = re.findall(r"^# HELP (\S+) (.*)$", response.text, re.MULTILINE)
    assert len(helps) >= 15
    assert all(name.startswith("kv_indexer_") and text.endswith(".") for name, text in helps)
    assert len({name for name, _ in helps}) == len(helps)


def test_many_requests_may_come_over_one_connection(service: Client) -> None:
    with httpx.Client(limits=httpx.Limits(max_connections=1)) as client:
        answers = {client.post(f"{service.url}/v1/score", json={"model": "m", "token_ids": NINE}).status_code for _ in range(20)}
    assert answers == {200}

"""Batches of score requests over HTTP."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from indexer.config.settings import Settings
from indexer.core.names import StreamKey
from indexer.http.negotiation import JSON, MSGPACK
from scorer_api.api.batch import BatchHandler
from scorer_api.api.score import ScoreHandler
from scorer_api.index.view import View
from scorer_api.metrics import ScorerMetrics
from scorer_api.routing.metrics import RouteMetrics
from scorer_api.routing.router import Router
from tests.engine import Engine, stored
from tests.running import Client, Running
from tests.scorer_api.api.request_resolver import request_resolver

ENCODE = {JSON: msgspec.json.encode, MSGPACK: msgspec.msgpack.encode}
DECODE: dict[str, Any] = {JSON: msgspec.json.decode, MSGPACK: msgspec.msgpack.decode}
NINE = list(range(1, 10))


@pytest.fixture(scope="module")
def service() -> Iterator[Client]:
    with Engine() as engine, Running(engine.spec(), body_bytes_max="3000000") as service:
        engine.publish(stored([1, 2], NINE[:8]))
        service.wait_for(sequence=0, trust="live")
        yield service


def post(service: Client, body: bytes, media_type: str = JSON, **headers: str) -> httpx.Response:
    return service.http.post(f"{service.url}/v1/score/batch", content=body, headers={"Content-Type": media_type, **headers})


def answers(service: Client, requests: list[Any], media_type: str = JSON) -> list[Any]:
    response = post(service, ENCODE[media_type]({"requests": requests}), media_type)
    assert (response.status_code, response.headers["content-type"]) == (200, media_type), response.text
    found: list[Any] = DECODE[media_type](response.content)["answers"]
    return found


@pytest.mark.parametrize("media_type", [JSON, MSGPACK])
def test_each_request_gets_the_answer_that_it_would_get_by_itself(service: Client, media_type: str) -> None:
    requests = [{"model": "m", "token_ids": NINE[:length], "pods": ["pod", "ghost"], "limit": 1} for length in (9, 5, 4, 0, 9)]
    assert answers(service, requests, media_type) == [service.score(request["token_ids"], pods=["pod", "ghost"], limit=1) for request in requests]


def test_tokens_may_be_packed_in_a_batch_too(service: Client) -> None:
    packed = b"".join(token.to_bytes(4, "little") for token in NINE)
    (answer,) = answers(service, [{"model": "m", "token_ids": packed}], MSGPACK)
    assert answer["pods"][0]["matched_tokens"] == 8


def test_a_bad_request_gets_its_own_problem_and_spoils_nothing(service: Client) -> None:
    good = {"model": "m", "token_ids": NINE}
    bad = [
        {"model": "ghost", "token_ids": [1]},
        {"model": "m", "token_ids": [-1]},
        {"model": "m"},
        7,
        None,
        [],
        {"model": "m", "token_ids": [1], "token_id": 1},
    ]
    found = answers(service, [good, *(request for one in bad for request in (one, good))])
    assert found[::2] == [service.score(NINE)] * (len(bad) + 1)
    problems = [answer["problem"] for answer in found[1::2]]
    assert [problem["status"] for problem in problems] == [404, 422, 422, 422, 422, 422, 422]
    for request, problem in zip(bad, problems, strict=True):
        alone = service.http.post(f"{service.url}/v1/score", content=msgspec.json.encode(request), headers={"Content-Type": JSON})
        assert (problem, alone.status_code) == (alone.json(), problem["status"])


def test_an_empty_batch_has_no_answers(service: Client) -> None:
    assert answers(service, []) == []


def test_the_answer_comes_in_the_type_that_is_accepted(service: Client) -> None:
    body = msgspec.json.encode({"requests": [{"model": "m", "token_ids": NINE}, 1]})
    found = msgspec.msgpack.decode(post(service, body, Accept=MSGPACK).content)["answers"]
    assert found[0] == service.score(NINE)
    assert found[1]["problem"]["status"] == 422


def test_a_whole_batch_that_cannot_be_read_is_one_problem(service: Client) -> None:
    statuses = {name: post(service, body, media_type).status_code for name, body, media_type in BAD_BATCHES}
    assert statuses == {"malformed": 400, "too large": 413, "another type": 415, "no batch": 422, "too many": 422}


BAD_BATCHES = [
    *[("malformed", b"{", JSON), ("too large", b" " * 3_000_001, JSON), ("another type", b"{}", "text/plain")],
    *[("no batch", b"{}", JSON), ("too many", b'{"requests": [' + b"0," * 1_000_000 + b"0]}", JSON)],
]


def test_each_request_of_a_batch_is_counted_by_its_outcome(service: Client) -> None:
    name = "kv_indexer_score_requests_total"
    outcomes = {"match": 2, "no_match": 1, "unknown_model": 1, "wrong_value": 2, "malformed": 0, "failed": 0}
    before = {outcome: service.metric(name, outcome=outcome) for outcome in outcomes}
    timed = service.metric("kv_indexer_score_seconds_count", phase="look_up")
    requests = [{"model": "m", "token_ids": tokens} for tokens in (NINE, NINE, [], [-1])]
    answers(service, [*requests, {"model": "ghost", "token_ids": []}, 7])
    assert {outcome: service.metric(name, outcome=outcome) - before[outcome] for outcome in outcomes} == outcomes
    assert service.metric("kv_indexer_score_seconds_count", phase="look_up") == timed + 3


async def test_others_have_their_turn_between_the_requests_of_a_batch() -> None:
    """Whatever else runs in the process is not held up by a batch for longer than by one of its requests: counted in turns, not in seconds."""
    settings = Settings()
    view = View(settings)
    view.open(StreamKey("m", "pod", 0))
    works: list[int] = []
    look_up = view.score

    def score(*words: Any) -> Any:
        works.append(turns)
        return look_up(*words)

    view.score = score  # type: ignore[method-assign]  # the same, and noted
    turns = 0

    body = msgspec.json.encode({"requests": [{"model": "m", "token_ids": list(range(4_000))}] * 256})
    router = Router(Settings(), view, RouteMetrics(CollectorRegistry()))
    resolver, metrics = request_resolver(view), ScorerMetrics(CollectorRegistry(), view)
    batches = BatchHandler(ScoreHandler(view, resolver, metrics, router), resolver, metrics)

    async def answer() -> bytes:
        return b"".join([piece async for piece in await batches.answer(body, JSON, JSON)])

    task = asyncio.create_task(answer())
    while not task.done():
        turns += 1
        await asyncio.sleep(0)
    assert len(msgspec.json.decode(await task)["answers"]) == 256
    assert len(works) == 256
    assert len(set(works)) == 256, "no two prompts were looked up in one turn of the event loop"


def test_many_batches_at_once_get_their_own_answers(service: Client) -> None:
    found: dict[int, list[int]] = {}

    def ask(length: int) -> None:
        with httpx.Client(timeout=30) as http:
            body = msgspec.json.encode({"requests": [{"model": "m", "token_ids": NINE[:length]}] * 50})
            answer = http.post(f"{service.url}/v1/score/batch", content=body, headers={"Content-Type": JSON}).json()
            found[length] = [one["pods"][0]["matched_tokens"] for one in answer["answers"]]

    threads = [threading.Thread(target=ask, args=(length,)) for length in (4, 5, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {4: [0] * 50, 5: [4] * 50, 9: [8] * 50}

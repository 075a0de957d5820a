"""The `ingest` role as processes of their own, with a real Redis: pods that one replica is told of, all know."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import NamedTuple

import httpx
import pytest

from tests.engine import Engine, stored
from tests.json_schema import check_described
from tests.ports import free_port
from tests.processes import api, ingest
from tests.redis_server import RedisServer
from tests.running import Client, Command
from tests.waiting import wait_until

PROMPT = [1, 2, 3, 4, 5]
# Long enough for a loaded test machine, short enough to tell that nobody waits for Redis to come back.
ANSWERED_S = 5.0


class Replicas(NamedTuple):
    """Two indexers and a scorer that share a Redis; all follow `pod` of the model `m`."""

    redis: RedisServer
    first: Command
    second: Command
    scorer: Command


@pytest.fixture(scope="module")
def replicas() -> Iterator[Replicas]:
    with ExitStack() as stack:
        redis, engine = stack.enter_context(RedisServer()), stack.enter_context(Engine())
        engine.publish(stored([1], PROMPT[:4]))
        timeout = {"redis_timeout_s": "0.5"}
        commands = [ingest(redis.url, engine.spec(), **timeout), ingest(redis.url, engine.spec(), **timeout), api(redis.url, **timeout)]
        first, second, scorer = [stack.enter_context(command) for command in commands]
        for command in commands:
            command.wait_url()
            wait_until(lambda command=command: readiness(command) == (200, "ready"), 30, "the replica to be ready")
        yield Replicas(redis, first, second, scorer)


def readiness(service: Client) -> tuple[int, str]:
    response = service.http.get(f"{service.url}/readyz")
    return response.status_code, response.json()["status"]


def pods(service: Client) -> dict[str, str]:
    """Pod → model."""
    return {pod["pod"]: pod["model"] for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]}


def owned(indexer: Client, pod: str) -> int:
    """How many streams of the pod this indexer owns."""
    return sum(len(known["streams"]) for known in indexer.http.get(f"{indexer.url}/v1/pods").json()["pods"] if known["pod"] == pod)


def body_of(engine: Engine, model: str) -> dict[str, str]:
    return {"model": model, "events": f"tcp://127.0.0.1:{engine.events_port}", "replay": f"tcp://127.0.0.1:{engine.replay_port}"}


def put(service: Client, path: str, body: dict[str, str]) -> httpx.Response:
    return service.http.put(f"{service.url}/v1/pods/{path}", json=body)


def delete(service: Client, path: str) -> httpx.Response:
    return service.http.delete(f"{service.url}/v1/pods/{path}")


# Known to all


def test_a_pod_put_at_one_indexer_is_known_to_all_and_so_is_its_deletion_at_another(replicas: Replicas) -> None:
    first, second, scorer = replicas.first, replicas.second, replicas.scorer
    with Engine() as engine:
        engine.publish(stored([1], PROMPT[:4]))
        response = put(first, "a%2Fb%3A1", body_of(engine, "org/new"))
        assert (response.status_code, response.json()["pod"], response.json()["model"]) == (201, "a/b:1", "org/new")
        for replica in replicas[1:]:
            wait_until(lambda replica=replica: pods(replica).get("a/b:1") == "org/new", 20, "the pod to be known")
        scorer.wait_for(pod="a/b:1", sequence=0, trust="live")
        assert scorer.matched(PROMPT, "a/b:1", "org/new") == 4
        assert owned(first, "a/b:1") + owned(second, "a/b:1") == 1

        assert put(second, "a%2Fb%3A1", body_of(engine, "org/new")).status_code == 200
        deleted = delete(second, "a%2Fb%3A1")
        assert (deleted.status_code, deleted.content) == (204, b"")
        for replica in replicas[1:]:
            wait_until(lambda replica=replica: "a/b:1" not in pods(replica), 20, "the pod to be forgotten")
            assert delete(replica, "a%2Fb%3A1").status_code == 404
            assert pods(replica) == {"pod": "m"}
        assert scorer.http.post(f"{scorer.url}/v1/score", json={"model": "org/new", "token_ids": PROMPT}).status_code == 404


def test_a_pod_put_at_an_indexer_is_known_to_those_that_start_after_its_end() -> None:
    with RedisServer() as redis, Engine() as engine:
        engine.publish(stored([1], PROMPT[:4]))
        with ingest(redis.url) as indexer:
            assert put(indexer.wait_url(), "lasting", body_of(engine, "m")).status_code == 201
            indexer.kill()
        with ingest(redis.url) as indexer:
            indexer.wait_url()
            wait_until(lambda: owned(indexer, "lasting") == 1, 30, "the pod's stream to be owned")
            assert indexer.wait_for(pod="lasting", sequence=0, trust="live")["blocks"] == {"gpu": 1}


def test_more_pods_than_there_may_be_are_refused_as_a_wrong_value() -> None:
    with RedisServer() as redis, Engine() as engine, ingest(redis.url, streams_max="1") as indexer:
        indexer.wait_url()
        assert put(indexer, "one", body_of(engine, "m")).status_code == 201
        response = put(indexer, "two", body_of(engine, "m"))
        assert (response.status_code, response.headers["content-type"]) == (422, "application/problem+json")
        assert "at most 1" in response.json()["detail"]
        assert pods(indexer) == {"one": "m"}


# Failures of Redis


def frozen(redis: RedisServer) -> Callable[[], object]:
    redis.freeze()
    return redis.thaw


def away(redis: RedisServer) -> Callable[[], object]:
    redis.kill()
    return redis.start


def full(redis: RedisServer) -> Callable[[], object]:
    client = redis.client()
    client.config_set("maxmemory", 1)
    return lambda: client.config_set("maxmemory", 0)


def read_only(redis: RedisServer) -> Callable[[], object]:
    client = redis.client()
    client.replicaof("127.0.0.1", free_port())
    return lambda: client.replicaof("no", "one")


@pytest.mark.parametrize(("fault", "failure"), [(frozen, "unreachable"), (away, "unreachable"), (full, "full"), (read_only, "read-only")])
def test_while_redis_fails_changes_are_503_and_all_else_is_answered(
    replicas: Replicas, fault: Callable[[RedisServer], Callable[[], object]], failure: str
) -> None:
    indexer = replicas.first
    document = indexer.http.get(f"{indexer.url}/openapi.json").json()
    with Engine() as engine:
        body = body_of(engine, "m")
        assert put(indexer, "kept", body).status_code == 201
        end_fault = fault(replicas.redis)
        wait_until(lambda: readiness(indexer) == (200, "degraded"), 20, "the failure to be noticed")
        changes = [lambda: put(indexer, "new", body), lambda: delete(indexer, "kept"), lambda: delete(indexer, "ghost")]
        # What makes room a full Redis takes.
        for change in changes[:1] if failure == "full" else changes:
            asked_s = time.monotonic()
            response = change()
            assert time.monotonic() - asked_s < ANSWERED_S
            assert (response.status_code, response.headers.get("content-type")) == (503, "application/problem+json")
            assert response.headers["retry-after"] == "1"
            assert f"Redis is {failure}" in response.json()["detail"]
            check_described(response, document, "/v1/pods/{pod}")
        assert put(indexer, "new", {"model": "m"}).status_code == 422, "a wrong spec is wrong, Redis or not"
        assert pods(indexer) == {"pod": "m", "kept": "m"}
        assert indexer.http.get(f"{indexer.url}/healthz").status_code == 200
        assert indexer.metric("kv_indexer_redis_up") == 0
        end_fault()

        # Nobody knows whether Redis read what it did not answer: whoever asks again comes to the end that was wanted.
        wait_until(lambda: put(indexer, "new", body).status_code in (200, 201), 30, "the pod to be taken")
        for pod in ("new", "kept"):
            wait_until(lambda pod=pod: delete(indexer, pod).status_code in (204, 404), 30, "the pod to be forgotten")
        for replica in replicas[1:]:
            wait_until(lambda replica=replica: pods(replica) == {"pod": "m"} and readiness(replica) == (200, "ready"), 30, "all to be well")
        replicas.scorer.wait_for(sequence=0, trust="live")
        assert replicas.scorer.matched(PROMPT) == 4

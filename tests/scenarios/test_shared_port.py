"""Data-parallel ranks that publish at one port: each batch says whose it is."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any

import pytest

from tests.engine import Engine, batch, removed, stored
from tests.processes import api, ingest
from tests.redis_server import RedisServer
from tests.running import Client, Running
from tests.waiting import wait_until

TOKENS = list(range(100, 108))
PROMPT = [*TOKENS, 7]


def publish(engine: Engine, rank: int | None, *events: Any) -> int:
    return engine.publish_payload(batch(events, rank))


def by_rank(service: Client, pod: str = "pod") -> dict[str, int]:
    """Rank → matched blocks."""
    answer = service.http.post(f"{service.url}/v1/score", json={"model": "m", "token_ids": PROMPT}).json()
    found: dict[str, int] = next(each["ranks"] for each in answer["pods"] if each["pod"] == pod)
    return found


def both_ranks(engine: Engine) -> None:
    """Rank 0 has the first block, rank 1 both, under the same engine hashes."""
    publish(engine, 0, stored([1], TOKENS[:4]))
    publish(engine, 1, stored([1, 2], TOKENS))


@contextmanager
def engine_alone() -> Iterator[Engine]:
    """An engine, and nothing that listens at the ports after its own."""
    with ExitStack() as stack:
        while True:
            engine = stack.enter_context(Engine())
            try:
                for port in (engine.events_port, engine.replay_port):
                    stack.enter_context(closing(socket.socket())).bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            yield engine
            return


@pytest.mark.parametrize("given", [{}, {"ranks": 2}, {"ranks": 2, "ranks_share_port": "true"}, {"ranks": 3, "ranks_share_port": "true"}])
def test_blocks_belong_to_the_rank_that_the_batch_names(given: dict[str, Any]) -> None:
    """Given or not, also where ranks are expected at ports of their own and none is there."""
    with engine_alone() as engine, Running(engine.spec(**given)) as service:
        service.wait_for(trust="live")
        both_ranks(engine)
        unused = {"2": 0} if given.get("ranks") == 3 else {}
        wait_until(lambda: by_rank(service) == {"0": 1, "1": 2, **unused})
        number = publish(engine, 0, removed([1]))
        for rank in (0, 1):
            service.wait_for(rank=rank, sequence=number, trust="live")
        assert by_rank(service) == {"0": 0, "1": 2, **unused}
        answer = service.score(PROMPT)["pods"][0]
        assert (answer["rank"], answer["matched_blocks"]) == (1, 2)
        publish(engine, None, stored([1], TOKENS[:4]))  # of no rank: the first one's
        wait_until(lambda: by_rank(service) == {"0": 1, "1": 2, **unused})


def test_a_rank_beyond_those_that_are_given_is_followed_too() -> None:
    with Engine() as engine, Running(engine.spec(ranks=2, ranks_share_port="true")) as service:
        service.wait_for(trust="live")
        both_ranks(engine)
        publish(engine, 3, stored([1, 2], TOKENS))
        wait_until(lambda: by_rank(service) == {"0": 1, "1": 2, "2": 0, "3": 2})


def test_the_first_rank_need_not_be_the_lowest() -> None:
    with Engine() as engine, Running(engine.spec()) as service:
        service.wait_for(trust="live")
        publish(engine, 1, stored([1, 2], TOKENS))
        wait_until(lambda: by_rank(service) == {"0": 2})  # one rank alone: the spec has its number wrong
        publish(engine, 0, stored([1], TOKENS[:4]))
        wait_until(lambda: by_rank(service) == {"0": 1, "1": 2})


def test_a_pod_that_is_registered_again_keeps_its_ranks_and_blocks() -> None:
    with Engine() as engine, Running() as service:
        body = {"model": "m", "events": f"tcp://127.0.0.1:{engine.events_port}", "replay": f"tcp://127.0.0.1:{engine.replay_port}"}

        def register() -> int:
            return int(service.http.put(f"{service.url}/v1/pods/pod", json=body).status_code)

        assert register() == 201
        both_ranks(engine)
        wait_until(lambda: by_rank(service) == {"0": 1, "1": 2})
        asked = len(engine.asked)
        assert register() == 200
        assert by_rank(service) == {"0": 1, "1": 2}
        assert service.http.delete(f"{service.url}/v1/pods/pod").status_code == 204
        engine.history.clear()
        assert register() == 201
        assert [len(pod["streams"]) for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]] == [1]
        assert len(engine.asked) >= asked


def test_without_replay_a_spec_that_says_so_loses_nothing() -> None:
    with Engine(with_replay=False) as engine, Running(engine.spec(ranks=2, ranks_share_port="true")) as service:
        wait_until(lambda: engine.subscriptions() >= 2)
        both_ranks(engine)
        wait_until(lambda: by_rank(service) == {"0": 1, "1": 2})


def test_indexers_that_share_streams_say_so_where_the_spec_does_not() -> None:
    with Engine() as engine, RedisServer() as redis, ingest(redis.url, engine.spec()) as indexer:
        indexer.wait_url()
        both_ranks(engine)
        wait_until(lambda: "ranks_share_port=true" in indexer.http.get(f"{indexer.url}/v1/pods").text)


def test_indexers_that_share_streams_tell_ranks_apart_where_the_spec_says_so() -> None:
    with Engine() as engine, RedisServer() as redis:
        spec = engine.spec(ranks=2, ranks_share_port="true")
        with ingest(redis.url, spec) as one, ingest(redis.url, spec) as other, api(redis.url) as scorer:
            for command in (one, other, scorer):
                command.wait_url()
            both_ranks(engine)
            wait_until(lambda: scorer.http.get(f"{scorer.url}/v1/models").json()["models"])
            wait_until(lambda: by_rank(scorer) == {"0": 1, "1": 2})

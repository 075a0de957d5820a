"""Several processes of one scorer share its port: what each of them knows, what is lost with one of them, and how they end."""

import http.client
import json
import os
import re
import signal
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from types import TracebackType
from typing import Any, Self

import grpc
import httpx

from tests.ports import free_port
from tests.running import NO_AUTHORITIES, Command
from tests.scenarios.redis.world import World, readiness, wait_ready
from tests.scorer_stub import messages, stub_of
from tests.waiting import wait_until

MANY = 40
GRPC_S = 30.0


class Connection:
    """A connection that stays open, to whichever worker took it."""

    def __init__(self, service: Command) -> None:
        host, port = service.url.removeprefix("http://").split(":")
        self._http = http.client.HTTPConnection(host, int(port), timeout=20)

    def post(self, path: str, body: Any) -> Any:
        """Raises OSError or HTTPException where there is no answer."""
        self._http.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self._http.getresponse()
        content = answer.read()
        assert answer.status == 200, content
        return json.loads(content)

    def close(self) -> None:
        self._http.close()


def pids(service: Command) -> dict[int, int]:
    """Number → process of the workers that run now."""
    started = [re.search(r"worker started worker=(\d+) pid=(\d+)", line) for line in list(service.lines)]
    return {int(found[1]): int(found[2]) for found in started if found}


def worker_of(service: Command, connection: Connection, question: Any) -> int:
    """The number of the worker at the other end."""
    before = answered(service)
    connection.post("/v1/score", question)
    (number,) = (number for number, count in answered(service).items() if count > before.get(number, 0))
    return number


def answered(service: Command) -> dict[int, float]:
    """How many scores each worker has answered since it started."""
    return {number: service.metric("kv_indexer_score_requests_total", worker=str(number)) for number in pids(service)}


def by_worker(service: Command, question: Any, count: int) -> dict[int, Connection]:
    """A connection to each worker."""
    found: dict[int, Connection] = {}
    others = []
    for _ in range(MANY):
        connection = Connection(service)
        number = worker_of(service, connection, question)
        if number in found:
            others.append(connection)  # while it is open, the other worker is the one with fewer
        else:
            found[number] = connection
        if len(found) == count:
            break
    for connection in others:
        connection.close()
    assert len(found) == count, f"of {MANY} connections all were taken by {found.keys()}"
    return found


def stubs_by_worker(service: Command, port: int, channels: ExitStack, model: str, tokens: Any) -> dict[int, Any]:
    """Who asks each worker over gRPC: the kernel spreads connections over them by chance."""
    found: dict[int, Any] = {}

    def calls() -> dict[int, float]:
        return {number: service.metric("kv_indexer_rpc_calls_total", worker=str(number), method="Score", code="OK") for number in (0, 1)}

    for _ in range(MANY):
        channel = channels.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]))
        stub, before = stub_of(channel), calls()
        stub.Score(messages.ScoreRequest(model=model, token_ids=tokens), timeout=GRPC_S, wait_for_ready=True)
        (number,) = (number for number, count in calls().items() if count > before[number])
        found.setdefault(number, stub)
        if len(found) == 2:
            return found
    raise AssertionError(f"of {MANY} connections all were taken by {found.keys()}")


class Asking:
    """`with Asking(ask) as asking:` asks again and again, in a thread. `failures`: of requests that had no right answer."""

    def __init__(self, ask: Callable[[], None]) -> None:
        self.asked = 0
        self.failures: list[BaseException] = []
        self._ask = ask
        self._is_over = threading.Event()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def _run(self) -> None:
        while not self._is_over.is_set():
            try:
                self._ask()
            except Exception as failure:  # noqa: BLE001 - shown by the test
                self.failures.append(failure)
            self.asked += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._is_over.set()
        self._thread.join(30)


def test_two_workers_answer_as_one_and_one_that_is_killed_comes_back_alone(world: World) -> None:
    """Both workers answer the same at one port; a request's end reaches the one that routed it; metrics and hot prefixes are those of both. When
    one is killed, requests on other connections and on new ones go on without a failure, and it accepts again once it has loaded everything."""
    fleet = world.fleet(streams=4)
    world.indexers(1, fleet)
    fleet.play(60)
    port = free_port()
    (service,) = world.scorers(1, workers="2", hot_prefixes="200", gateway_listen=f"127.0.0.1:{port}", gateway_notice_s="0.001")
    wait_ready(service)
    fleet.settle(service)
    prompt = fleet.texts[0]
    question = {"model": fleet.model, "token_ids": prompt.tokens}
    connections = by_worker(service, question, 2)
    answers = [connection.post("/v1/score", question) | {"view": None} for connection in connections.values()]
    assert answers[0] == answers[1]
    assert service.metric("kv_indexer_worker_up") == 2
    assert service.metric("kv_indexer_index_blocks", worker="0") == service.metric("kv_indexer_index_blocks", worker="1") > 0

    picks = {number: connection.post("/v1/route", question)["id"] for number, connection in connections.items()}
    assert service.metric("kv_indexer_route_open", worker="0") == service.metric("kv_indexer_route_open", worker="1") == 1
    for number, other in ((0, 1), (1, 0)):
        assert connections[other].post("/v1/route/done", {"id": picks[number]})["known"] is True
        assert connections[other].post("/v1/route/done", {"id": picks[number]})["known"] is False
    assert service.metric("kv_indexer_route_open") == 0
    for number, connection in connections.items():
        for _ in range(number + 1):
            connection.post("/v1/score", {"model": fleet.model, "token_ids": [*range(90_000, 90_016), 1]})
    hot = service.http.get(f"{service.url}/v1/hot?limit=200").json()["prefixes"]
    asked_for_thrice = [prefix for prefix in hot if prefix["tokens"] == 16 and round(prefix["requests"], 1) == 3]
    assert asked_for_thrice, "both workers' prompts are counted, whichever answers"
    assert all(prefix["held"] == {} for prefix in asked_for_thrice)

    with ExitStack() as channels:
        stubs = stubs_by_worker(service, port, channels, fleet.model, prompt.tokens)
        scores = [stub.Score(messages.ScoreRequest(**question), timeout=GRPC_S) for stub in stubs.values()]
        assert list(scores[0].pods) == list(scores[1].pods)
        assert [pod.pod for pod in scores[0].pods] == [pod["pod"] for pod in answers[0]["pods"]]
        for number, other in ((0, 1), (1, 0)):
            name = stubs[number].Route(messages.RouteRequest(**question), timeout=GRPC_S).id
            assert service.metric("kv_indexer_route_open", worker=str(number)) == 1
            assert stubs[other].Done(messages.DoneRequest(id=name), timeout=GRPC_S).known
            assert not stubs[number].Done(messages.DoneRequest(id=name), timeout=GRPC_S).known

    def ask_anew() -> None:
        with closing(Connection(service)) as connection:
            assert connection.post("/v1/score", question) | {"view": None} == answers[0]

    def ask_other() -> None:
        assert connections[1].post("/v1/score", question) | {"view": None} == answers[0]

    killed = pids(service)[0]
    with Asking(ask_anew) as anew, Asking(ask_other) as other_asker:
        service.http.close()  # its connection may be to the one that is killed
        service.http = httpx.Client(timeout=30, verify=NO_AUTHORITIES, limits=httpx.Limits(max_keepalive_connections=0))
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda: service.metric("kv_indexer_worker_restarts_total", worker="0") == 1, what="it to be started again")
        wait_until(lambda: readiness(service) == (200, "ready", []) and service.metric("kv_indexer_worker_up") == 2, what="it to be back")
    # A new connection may have been its own when it was killed; then it saw the end of it.
    lost = [failure for failure in anew.failures if isinstance(failure, OSError | http.client.HTTPException)]
    assert len(lost) <= 1
    assert lost == anew.failures
    assert other_asker.failures == []
    assert anew.asked > 1
    assert other_asker.asked > 1
    with suppress(OSError, http.client.HTTPException):
        connections[0].post("/v1/score", question)
        raise AssertionError("the killed worker's connection is still there")
    again = by_worker(service, question, 2)
    assert all(connection.post("/v1/score", question) | {"view": None} == answers[0] for connection in again.values())
    assert pids(service)[0] != killed

    running = pids(service)
    for connection in (*connections.values(), *again.values()):
        connection.close()
    assert service.stop() == 0
    assert [line for line in service.lines if "ERROR" in line and "worker died" not in line] == []
    assert not any(os.path.exists(f"/proc/{pid}") for pid in running.values())

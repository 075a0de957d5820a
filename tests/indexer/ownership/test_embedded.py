"""Pods that come, change and go while the service runs, with real engines."""

import concurrent.futures
import random
import resource
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from indexer.compiled import ACTIVE
from indexer.errors import SettingError
from tests.engine import Engine, stored
from tests.running import Client, Command, Running
from tests.settings import QUICK, words_of
from tests.waiting import wait_until

FIRST, SECOND = list(range(1, 6)), list(range(101, 106))


@pytest.fixture(scope="module")
def shared() -> Iterator[Client]:
    with Running() as service:
        yield service


@pytest.fixture
def service(shared: Client) -> Iterator[Client]:
    """Without any pod, before and after."""
    yield shared
    for pod in shared.http.get(f"{shared.url}/v1/pods").json()["pods"]:
        assert shared.http.delete(f"{shared.url}/v1/pods/{pod['pod']}").status_code == 204
    assert shared.metric("kv_indexer_index_holders") == 0
    assert shared.metric("kv_indexer_index_blocks") == 0
    assert shared.metric("kv_indexer_streams") == 0


@pytest.fixture
def engine() -> Iterator[Engine]:
    with Engine() as engine:
        engine.publish(stored([1], FIRST[:4]))
        yield engine


def put(service: Client, engine: Engine, pod: str = "pod", **more: Any) -> int:
    body = {"model": "m", "events": f"tcp://127.0.0.1:{engine.events_port}", "replay": f"tcp://127.0.0.1:{engine.replay_port}", **more}
    return service.http.put(f"{service.url}/v1/pods/{pod}", json={key: value for key, value in body.items() if value is not None}).status_code


def test_a_registered_pod_is_followed(service: Client, engine: Engine) -> None:
    assert put(service, engine) == 201
    service.wait_for(sequence=0, trust="live")
    assert service.matched(FIRST) == 4
    engine.publish(stored([2], SECOND[:4]))
    service.wait_for(sequence=1)
    assert service.matched(SECOND) == 4


def test_an_identical_put_keeps_blocks_and_connection(service: Client, engine: Engine) -> None:
    assert put(service, engine) == 201
    before = service.wait_for(sequence=0, trust="live")
    asked = list(engine.asked)
    assert put(service, engine) == 200
    after = service.stream()
    assert (after["trust"], after["connected"], after["batches"], after["blocks"]) == ("live", True, before["batches"], {"gpu": 1})
    assert service.matched(FIRST) == 4
    engine.publish(stored([2], SECOND[:4]))
    service.wait_for(sequence=1, batches=2, replayed=before["replayed"])
    # A new connection would have begun with a replay from the start; the silence's questions ask for what comes next.
    assert 0 not in engine.asked[len(asked) :]
    assert service.metric("kv_indexer_streams") == 1


def test_a_put_of_another_engine_forgets_what_the_first_one_held(service: Client, engine: Engine) -> None:
    with Engine() as other:
        other.publish(stored([7], SECOND[:4]))
        put(service, engine)
        service.wait_for(sequence=0, trust="live")
        assert put(service, other) == 200
        service.wait_for(sequence=0, trust="live")
        assert (service.matched(FIRST), service.matched(SECOND)) == (0, 4)
        engine.publish(stored([3], [9, 9, 9, 9]))
        other.publish(stored([8], [8, 8, 8, 8]))
        service.wait_for(sequence=1)
        assert service.matched([9] * 5) == 0


@pytest.mark.parametrize("more", [{"counting": "set"}, {"topic": "kv"}, {"offload_block_size": 8}, {"replay": None}, {"rank": 1}])
def test_a_put_with_any_other_key_begins_anew(service: Client, engine: Engine, more: dict[str, Any]) -> None:
    put(service, engine)
    service.wait_for(sequence=0, trust="live")
    asked = len(engine.asked)
    assert put(service, engine, **more) == 200
    rank = more.get("rank", 0)
    assert [stream["rank"] for stream in service.http.get(f"{service.url}/v1/pods").json()["pods"][0]["streams"]] == [rank]
    if "replay" not in more:
        wait_until(lambda: 0 in engine.asked[asked:], what="the question for everything from the start")
        service.wait_for(rank=rank, sequence=0)
        assert service.matched(FIRST) == 4
    else:
        service.wait_for(connected=True, sequence=None)
        assert service.matched(FIRST) == 0


@pytest.mark.parametrize("path", ["a%0Ab", "%0A", "a%2Fb%2F%2Fc", "%20", "%F0%9F%98%80", "a%00b"])
def test_a_pod_may_have_any_name(service: Client, engine: Engine, path: str) -> None:
    assert put(service, engine, pod=path) == 201
    service.wait_for(pod=unquote(path), sequence=0, trust="live")
    assert put(service, engine, pod=path) == 200
    assert service.http.delete(f"{service.url}/v1/pods/{path}").status_code == 204


def test_a_pod_may_change_its_model(service: Client, engine: Engine) -> None:
    put(service, engine)
    service.wait_for(sequence=0, trust="live")
    assert put(service, engine, model="n") == 200
    service.wait_for(sequence=0, trust="live")
    assert service.http.get(f"{service.url}/v1/models").json() == {"models": [{"model": "n", "pods": ["pod"]}]}
    assert service.matched(FIRST, model="n") == 4


def test_a_forgotten_pod_holds_nothing_when_it_comes_back_without_replay(service: Client, engine: Engine) -> None:
    put(service, engine)
    service.wait_for(sequence=0, trust="live")
    service.http.delete(f"{service.url}/v1/pods/pod")
    assert service.http.get(f"{service.url}/v1/pods").json() == {"pods": []}
    assert put(service, engine, replay=None) == 201
    service.wait_for(connected=True)
    assert service.matched(FIRST) == 0


def test_of_many_puts_at_once_the_pod_is_registered_once(service: Client, engine: Engine) -> None:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(lambda _: put(service, engine), range(16)))
    assert sorted(statuses) == [200] * 15 + [201]
    assert service.metric("kv_indexer_streams") == 1
    service.wait_for(sequence=0, trust="live")
    assert service.matched(FIRST) == 4


def test_puts_and_deletes_in_any_order_leave_nothing_behind(service: Client, engine: Engine) -> None:
    def act(number: int) -> int:
        if number % 3:
            return put(service, engine, ranks=None, topic="" if number % 2 else "kv")
        return service.http.delete(f"{service.url}/v1/pods/pod").status_code

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(act, range(60))) <= {200, 201, 204, 404}
    put(service, engine)
    service.wait_for(sequence=0, trust="live")
    assert service.matched(FIRST) == 4
    assert service.metric("kv_indexer_streams") == 1


def test_two_specs_of_one_pod_are_its_ranks() -> None:
    with Engine() as one, Engine() as other:
        one.publish(stored([1], FIRST[:4]))
        other.publish(stored([1], SECOND[:4]))
        with Running(one.spec(rank=0), other.spec(rank=5)) as service:
            service.wait_for(rank=0, sequence=0, trust="live")
            service.wait_for(rank=5, sequence=0, trust="live")
            (pod,) = service.score(SECOND)["pods"]
            assert (pod["rank"], pod["matched_tokens"], pod["ranks"]) == (5, 4, {"0": 0, "5": 1})
            (pod,) = service.score(FIRST)["pods"]
            assert (pod["rank"], pod["matched_tokens"], pod["ranks"]) == (0, 4, {"0": 1, "5": 0})
            # A PUT is the whole pod: the rank that it does not name goes.
            assert put(service, one, rank=0) == 200
            (pod,) = service.score(SECOND)["pods"]
            assert pod["ranks"] == {"0": 0}
            assert service.matched(FIRST) == 4


def two_free_ports_in_a_row() -> int:
    """The first of them, below the range that the system hands out by itself."""
    while True:
        port = random.randrange(15_000, 30_000)
        try:
            with ExitStack() as stack:
                for number in (port, port + 1):
                    stack.enter_context(socket.create_server(("127.0.0.1", number)))
        except OSError:
            continue
        return port


def test_rank_r_is_followed_at_both_ports_plus_r(service: Client) -> None:
    events, replay = two_free_ports_in_a_row(), two_free_ports_in_a_row()
    engines = [Engine(), Engine()]
    with ExitStack() as stack:
        for rank, engine in enumerate(engines):
            engine.events_port, engine.replay_port = events + rank, replay + rank
            stack.enter_context(engine)
        engines[0].publish(stored([1], FIRST[:4]))
        engines[1].publish(stored([1], SECOND[:4]))
        assert put(service, engines[0], ranks=2) == 201
        service.wait_for(rank=0, sequence=0, trust="live")
        service.wait_for(rank=1, sequence=0, trust="live")
        (pod,) = service.score(SECOND)["pods"]
        assert (pod["rank"], pod["ranks"]) == (1, {"0": 0, "1": 1})
        # Fewer ranks: the one that stays keeps what it holds, and its connection.
        asked = len(engines[0].asked)
        assert put(service, engines[0]) == 200
        (pod,) = service.score(FIRST)["pods"]
        assert (pod["matched_tokens"], pod["ranks"], pod["trust"]) == (4, {"0": 1}, "live")
        assert 0 not in engines[0].asked[asked:]


def test_engines_of_the_same_pods_on_other_models_are_apart(service: Client, engine: Engine) -> None:
    with Engine() as other:
        other.publish(stored([1], FIRST[:4]))
        put(service, engine, "one", model="x")
        put(service, other, "two", model="y")
        service.wait_for(pod="one", sequence=0)
        service.wait_for(pod="two", sequence=0)
        assert [pod["pod"] for pod in service.score(FIRST, "x")["pods"]] == ["one"]
        assert [pod["pod"] for pod in service.score(FIRST, "y")["pods"]] == ["two"]


# Readiness


def readiness(service: Client) -> tuple[int, dict[str, Any]]:
    response = service.http.get(f"{service.url}/readyz")
    return response.status_code, response.json()


def test_without_engines_it_is_ready_at_once() -> None:
    with Running(ready_after_s="1000") as service:
        assert readiness(service) == (200, {"status": "ready", "reasons": [], "core": ACTIVE})


def test_it_is_ready_once_every_engine_has_answered_its_first_replay() -> None:
    with Engine() as one, Engine() as other:
        other.mute = True
        with Running(one.spec("one"), other.spec("other"), ready_after_s="1000", replay_idle_s="1000", replay_total_s="1000") as service:
            service.wait_for(pod="one", trust="live")
            wait_until(lambda: other.asked, what="the replay request")
            status, body = readiness(service)
            assert (status, body["status"]) == (503, "starting")
            (reason,) = body["reasons"]
            assert "other" in reason
            assert "stale" in reason


def test_a_failed_first_replay_is_settled_too() -> None:
    with Engine() as engine:
        engine.mute = True
        with Running(engine.spec(), ready_after_s="1000", replay_idle_s="0.1") as service:
            wait_until(lambda: readiness(service)[0] == 200)
            status, body = readiness(service)
            assert (status, body["status"]) == (200, "degraded")
            (reason,) = body["reasons"]
            assert "does not answer" in reason


def test_a_stream_without_replay_is_settled_by_its_connection() -> None:
    with Engine(with_replay=False) as engine, Running(engine.spec(), ready_after_s="1000") as service:
        wait_until(lambda: readiness(service) == (200, {"status": "ready", "reasons": [], "core": ACTIVE}))


def test_missing_engines_hold_readiness_up_for_a_while_only() -> None:
    with Running("pod=away,model=m,events=tcp://127.0.0.1:9", ready_after_s="0.5") as service:
        body = wait_until(lambda: (answer := readiness(service))[0] == 200 and answer[1])
        assert isinstance(body, dict)
        assert body["status"] == "degraded"
        assert "away" in body["reasons"][0]


def test_once_ready_it_stays_ready_and_says_what_is_wrong() -> None:
    with Engine() as engine, Running(engine.spec("p"), ready_after_s="1000") as service:
        wait_until(lambda: readiness(service) == (200, {"status": "ready", "reasons": [], "core": ACTIVE}))
        engine.kill()
        service.wait_for(pod="p", trust="stale")
        status, body = readiness(service)
        assert (status, body["status"]) == (200, "degraded")
        assert "pod p rank 0 is stale" in body["reasons"][0]
        engine.start()
        wait_until(lambda: readiness(service) == (200, {"status": "ready", "reasons": [], "core": ACTIVE}))


def test_deleting_the_pod_that_is_missing_makes_it_ready() -> None:
    with Engine() as engine, Running(engine.spec("here"), "pod=away,model=m,events=tcp://127.0.0.1:9", ready_after_s="1000") as service:
        service.wait_for(pod="here", trust="live")
        assert readiness(service)[0] == 503
        service.http.delete(f"{service.url}/v1/pods/away")
        wait_until(lambda: readiness(service) == (200, {"status": "ready", "reasons": [], "core": ACTIVE}))


# Limits


def spec_of(ranks: int, port: int = 2_000) -> dict[str, Any]:
    """A pod of so many ranks, that nobody answers for."""
    return {"model": "m", "events": f"tcp://127.66.66.66:{port}", "ranks": ranks}


def test_no_more_streams_are_followed_than_allowed(engine: Engine) -> None:
    with Running(engine.spec(), streams_max="4") as service:
        service.wait_for(sequence=0, trust="live")
        pods = f"{service.url}/v1/pods"
        refused = service.http.put(f"{pods}/many", json=spec_of(4))
        assert refused.status_code == 422
        assert "5 streams" in refused.json()["detail"]
        assert "at most 4" in refused.json()["detail"]
        assert service.http.put(f"{pods}/many", json=spec_of(3)).status_code == 201
        assert service.http.put(f"{pods}/more", json=spec_of(1)).status_code == 422
        assert service.http.put(f"{pods}/many", json=spec_of(3, port=3_000)).status_code == 200, "its old streams make room for its new ones"
        assert service.http.delete(f"{pods}/many").status_code == 204
        assert service.http.put(f"{pods}/more", json=spec_of(1)).status_code == 201
        assert service.stream()["trust"] == "live"


def test_the_start_stops_where_more_streams_are_given_than_allowed() -> None:
    with pytest.raises(SettingError, match="at most 2"), Running("pod=p,model=m,events=tcp://127.0.0.1:2000,ranks=3", streams_max="2"):
        pass


def test_where_the_system_allows_no_more_open_files_a_pod_is_refused_as_a_whole(engine: Engine) -> None:
    """Nothing of it stays, and what was there before is followed on."""
    with Command("serve", *words_of({**QUICK, "port": "0"}), "--engine", engine.spec()) as service:
        service.wait_url().wait_for(sequence=0, trust="live")
        open_files = Path(f"/proc/{service.process.pid}/fd")
        before = len(list(open_files.iterdir()))
        resource.prlimit(service.process.pid, resource.RLIMIT_NOFILE, (before + 100, before + 100))
        pods = f"{service.url}/v1/pods"
        refused = service.http.put(f"{pods}/many", json=spec_of(300))
        assert refused.status_code == 422
        assert "Too many open files" in refused.json()["detail"]
        assert [pod["pod"] for pod in service.http.get(pods).json()["pods"]] == ["pod"]
        # A probe of the engine has sockets of its own for a moment.
        wait_until(lambda: len(list(open_files.iterdir())) <= before + 2)
        engine.publish(stored([2], SECOND[:4]), is_lost=True)
        service.wait_for(sequence=1, trust="live")
        assert service.http.put(f"{pods}/few", json=spec_of(3)).status_code == 201
        assert not [line for line in service.lines if "Traceback" in line or "ERROR" in line]

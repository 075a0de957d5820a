"""Engines that dial us: pods come by their topic, and go with their connection."""

import socket
from contextlib import closing

import pytest

from tests.engine import Engine, batch, cleared, removed, stored
from tests.running import Command, Running
from tests.waiting import wait_until

PROMPT = [1, 2, 3, 4, 5]
OTHER = [6, 7, 8, 9, 5]


def free_ports(count: int = 1) -> int:
    """The first of so many ports in a row that are free now."""
    while True:
        with closing(socket.create_server(("127.0.0.1", 0))) as first:
            port: int = first.getsockname()[1]
        try:
            for taken in range(port, port + count):
                socket.create_server(("127.0.0.1", taken)).close()
        except OSError:
            continue
        return port


def dialler(port: int, pod: str = "pod", model: str = "m", **more: bool) -> Engine:
    return Engine(topic=f"kv@{pod}@{model}".encode(), dials=port, **{"with_replay": False, **more})


def pods(service: Running) -> list[str]:
    return [pod["pod"] for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]]


def publish_until_known(service: Running, engine: Engine, *events: object, pod: str = "pod", rank: int = 0) -> None:
    wait_until(lambda: engine.subscriptions() > 0)
    number = engine.publish(*events)
    wait_until(lambda: pod in pods(service) and any(s["rank"] == rank for s in _streams(service, pod)))
    service.wait_for(pod=pod, rank=rank, sequence=number)


def _streams(service: Running, pod: str) -> list[dict[str, object]]:
    (found,) = (p["streams"] for p in service.http.get(f"{service.url}/v1/pods").json()["pods"] if p["pod"] == pod)
    streams: list[dict[str, object]] = found
    return streams


def test_pods_and_models_come_from_the_topic() -> None:
    """It is split at the first two @, so a model's name may hold more."""
    port = free_ports()
    with Running(listen=f"tcp://127.0.0.1:{port}") as service, dialler(port, "10.0.0.7:8000", "my/model@v2") as engine:
        publish_until_known(service, engine, stored([1], PROMPT[:4]), pod="10.0.0.7:8000")
        assert service.http.get(f"{service.url}/v1/models").json() == {"models": [{"model": "my/model@v2", "pods": ["10.0.0.7:8000"]}]}
        assert service.matched(PROMPT, pod="10.0.0.7:8000", model="my/model@v2") == 4
        assert service.stream(pod="10.0.0.7:8000")["trust"] == "live"


def test_the_rank_is_the_port() -> None:
    port = free_ports(2)
    with Running(listen=f"tcp://127.0.0.1:{port},ranks=2") as service, dialler(port) as zero, dialler(port + 1) as one:
        publish_until_known(service, zero, stored([1], PROMPT[:4]))
        publish_until_known(service, one, stored([1], OTHER[:4]), rank=1)
        (pod,) = service.score(OTHER)["pods"]
        assert (pod["rank"], pod["ranks"]) == (1, {"0": 0, "1": 1})


def test_topics_that_name_no_pod_are_counted() -> None:
    port = free_ports()
    with Running(listen=f"tcp://127.0.0.1:{port}") as service, dialler(port) as engine:
        publish_until_known(service, engine, stored([1], PROMPT[:4]))
        for topic in (b"", b"kv@", b"kv@pod", b"kv@@m", b"kv@pod@", b"kw@pod@m", b"kv@\xff@m"):
            engine.send([topic, b"\0" * 8, batch([])])
        wait_until(lambda: service.metric("kv_indexer_refused_total", reason="topic") == 7)
        assert pods(service) == ["pod"]


def test_a_pod_that_disconnects_is_stale_and_an_idle_one_is_not() -> None:
    port = free_ports()
    with Running(listen=f"tcp://127.0.0.1:{port}") as service, dialler(port, "idle") as idle:
        publish_until_known(service, idle, stored([1], PROMPT[:4]), pod="idle")
        with dialler(port, "gone") as gone:
            publish_until_known(service, gone, stored([1], PROMPT[:4]), pod="gone")
        service.wait_for(pod="gone", trust="stale", connected=False)
        status = service.stream("idle")
        assert (status["trust"], status["connected"]) == ("live", True)


def test_a_new_connection_without_replay_purges() -> None:
    port = free_ports()
    with Running(listen=f"tcp://127.0.0.1:{port}") as service, dialler(port) as engine:
        publish_until_known(service, engine, stored([1], PROMPT[:4]))
        engine.kill()
        service.wait_for(connected=False)
        engine.start(next_number=1)
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(stored([2], OTHER[:4]))
        service.wait_for(sequence=1, connected=True, trust="partial")
        assert (service.matched(PROMPT), service.matched(OTHER)) == (0, 4)
        engine.publish(cleared())
        service.wait_for(sequence=2, trust="live")


def test_a_replay_address_made_from_the_pods_own_closes_gaps_and_tells_restarts() -> None:
    port = free_ports()
    with (
        Engine(topic=b"kv@pod@m", dials=port) as engine,
        Running(listen=f"tcp://127.0.0.1:{port}", listen_replay=f"tcp://{{host}}:{engine.replay_port}") as service,
    ):
        engine.publish(stored([1], PROMPT[:4]), is_lost=True)
        publish_until_known(service, engine, stored([2], OTHER[:4]))
        service.wait_for(trust="live")
        assert (service.matched(PROMPT), service.matched(OTHER)) == (4, 4)
        engine.publish(removed([1]), is_lost=True)
        service.wait_for(sequence=2)
        assert service.matched(PROMPT) == 0
        engine.kill()
        service.wait_for(connected=False)
        engine.start()
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(stored([1], PROMPT[:4]))
        service.wait_for(sequence=0, restarts=1, trust="live")
        assert (service.matched(PROMPT), service.matched(OTHER)) == (4, 0)


def test_a_registration_gives_the_replay_address_of_a_pod_that_dials_us() -> None:
    port = free_ports()
    with Running(listen=f"tcp://127.0.0.1:{port}") as service, Engine(topic=b"kv@pod@m", dials=port) as engine:
        spec = {"model": "m", "replay": f"tcp://127.0.0.1:{engine.replay_port}"}
        assert service.http.put(f"{service.url}/v1/pods/pod", json=spec).status_code == 201
        assert service.stream()["connected"] is False
        engine.publish(stored([1], PROMPT[:4]), is_lost=True)
        publish_until_known(service, engine, stored([2], OTHER[:4]))
        service.wait_for(trust="live")
        assert (service.matched(PROMPT), service.matched(OTHER)) == (4, 4)


def test_a_registration_without_events_needs_somebody_who_listens() -> None:
    with Running() as service:
        response = service.http.put(f"{service.url}/v1/pods/pod", json={"model": "m", "replay": "tcp://127.0.0.1:9"})
        assert response.status_code == 422
        assert "--listen" in response.json()["detail"]


@pytest.mark.rule("E2")
def test_two_publishers_that_claim_one_topic_are_noticed() -> None:
    """The first keeps it as long as it is connected."""
    port = free_ports()
    with Running(listen=f"tcp://127.0.0.1:{port}") as service, dialler(port) as first, dialler(port) as second:
        publish_until_known(service, first, stored([1], PROMPT[:4]))
        wait_until(lambda: second.subscriptions() > 0)
        second.publish(stored([2], OTHER[:4]))
        wait_until(lambda: service.metric("kv_indexer_refused_total", reason="topic_claimed") == 1)
        assert "second publisher" in service.stream()["last_error"]
        assert (service.matched(PROMPT), service.matched(OTHER)) == (4, 0)
        first.kill()
        service.wait_for(connected=False)
        second.publish(stored([3], OTHER[:4]))
        service.wait_for(connected=True, sequence=1)
        assert (service.matched(PROMPT), service.matched(OTHER)) == (0, 4)


@pytest.mark.rule("E2")
def test_a_topic_cannot_take_the_name_of_an_engine_that_we_dial() -> None:
    port = free_ports()
    with Engine() as dialled, Running(dialled.spec(), listen=f"tcp://127.0.0.1:{port}") as service, dialler(port) as claiming:
        service.wait_for(trust="live")
        wait_until(lambda: claiming.subscriptions() > 0)

        def is_refused() -> bool:
            claiming.publish(stored([2], OTHER[:4]))
            return service.metric("kv_indexer_refused_total", reason="topic_claimed") > 0

        wait_until(is_refused)
        assert service.matched(OTHER) == 0


def test_a_pod_that_stays_away_is_expired_and_then_forgotten() -> None:
    port = free_ports()
    with Running(listen=f"tcp://127.0.0.1:{port}", pod_expiry_s="1") as service, dialler(port) as engine:
        publish_until_known(service, engine, stored([1], PROMPT[:4]))
        engine.kill()
        service.wait_for(trust="expired")
        wait_until(lambda: pods(service) == [])
        assert service.http.get(f"{service.url}/v1/models").json() == {"models": []}
        engine.start()
        publish_until_known(service, engine, stored([1], PROMPT[:4]))
        assert service.matched(PROMPT) == 4


def test_the_simulator_counts_from_1_and_writes_0_for_no_parent() -> None:
    """llm-d's simulator: arrays, and a stream that began at 1 was heard from its start."""
    port = free_ports()
    with Running(listen=f"tcp://127.0.0.1:{port}") as service, dialler(port) as engine:
        engine.next_number = 1
        publish_until_known(service, engine, ["BlockStored", [1], 0, PROMPT[:4], 4, None])
        assert service.stream()["trust"] == "live"
        assert service.matched(PROMPT) == 4


@pytest.mark.parametrize("listen", ["tcp://*", "udp://*:1", "tcp://*:70000", "tcp://*:65535,ranks=2", "tcp://*:1,ranks=0", "tcp://*:1,rank=1"])
def test_a_wrong_listen_stops_the_start(listen: str) -> None:
    with Command("serve", "--port", "0", "--listen", listen) as service:
        assert service.process.wait(30) == 2
        wait_until(lambda: service.lines)
    assert len(service.lines) == 1
    assert listen in service.lines[0]


def test_a_listening_port_that_is_taken_stops_the_start() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        with Command("serve", "--port", "0", "--listen", endpoint) as service:
            assert service.process.wait(30) == 2
            wait_until(lambda: service.lines)
    assert len(service.lines) == 1
    assert endpoint in service.lines[0]
    assert "in use" in service.lines[0]

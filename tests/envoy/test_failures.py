"""A picker that is away, hangs, is killed or ends: what clients see with the configurations of deploy/envoy."""

import json
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import httpx
import pytest
from msgspec import Struct

from tests.envoy.fleet import FLAGS, TEXTS, Streamed, ask, ask_for, completion, events, is_answered, stream
from tests.envoy.pods import Pod
from tests.envoy.proxy import Change, Config, Envoy, cluster, processor
from tests.ports import free_port
from tests.redis_server import RedisServer
from tests.running import Command
from tests.settings import words_of
from tests.waiting import wait_until


class Behind(Struct, frozen=True):
    """A service in a process of its own, behind Envoy."""

    command: Command
    envoy: Envoy
    pods: list[Pod]


@contextmanager
def behind(*changes: Change, config: str = "override-host", **flags: str) -> Iterator[Behind]:
    port = free_port()
    with ExitStack() as stack:
        pods = [stack.enter_context(Pod(name)) for name in TEXTS]
        engines = [word for pod in pods for word in ("--engine", pod.spec)]
        words = words_of({**FLAGS, "port": "0", "gateway_listen": f"127.0.0.1:{port}", **flags})
        command = stack.enter_context(Command("serve", *engines, *words)).wait_url()
        wait_until(partial(is_following, command, len(pods)))
        for pod in pods:
            command.wait_for(pod=pod.name, sequence=pod.cache(TEXTS[pod.name]), trust="live")
        envoy = stack.enter_context(Envoy(config, port, [pod.netloc for pod in pods], *changes))
        envoy.wait_for_picker()
        assert ask_for(envoy, "second") == "second"
        yield Behind(command, envoy, pods)


def is_following(service: Command, pods: int) -> bool:
    """Whether all these pods have their streams: among workers, each has its own."""
    return sum(len(pod["streams"]) for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]) == pods


def echoes(config: Config) -> None:
    processor(config)["processing_mode"] |= {"response_body_mode": "FULL_DUPLEX_STREAMED", "response_trailer_mode": "SEND"}


def begin_stream(envoy: Envoy, count: int = 30) -> tuple[threading.Thread, list[Streamed]]:
    """A streamed answer of three seconds, which has begun."""
    found: list[Streamed] = []
    begun = threading.Event()

    def run() -> None:
        try:
            found.append(stream(envoy, count=count, gap_s=0.1, begun=begun))
        except httpx.TransportError:
            return

    thread = threading.Thread(target=run)
    thread.start()
    wait_until(begun.is_set)
    return thread, found


def test_where_no_picker_is_requests_go_round_with_bodies_of_any_length() -> None:
    with ExitStack() as stack:
        pods = [stack.enter_context(Pod(name)) for name in TEXTS]
        envoy = stack.enter_context(Envoy("override-host", free_port(), [pod.netloc for pod in pods]))
        envoy.wait_for_picker(is_healthy=False)
        assert {ask_for(envoy) for _ in range(10)} == set(TEXTS)
        ask(envoy, json.dumps(completion(user="x" * 12_000_000)).encode())
        forged = {"x-gateway-destination-endpoint": pods[1].netloc}
        answers = [ask(envoy, json.dumps(completion()).encode(), **forged) for _ in range(10)]
        assert {answer["pod"] for answer in answers} == set(TEXTS)
        assert not any(forged.keys() & answer["headers"].keys() for answer in answers)


@pytest.mark.parametrize(("says", "status"), [(True, 503), (False, 500)])
def test_where_no_picker_is_a_gateway_that_fails_closed_refuses_at_once(says: bool, status: int) -> None:
    def closed(config: Config) -> None:
        processor(config)["failure_mode_allow"] = False
        if not says:
            del processor(config)["status_on_error"]

    with ExitStack() as stack:
        pods = [stack.enter_context(Pod(name)) for name in TEXTS]
        envoy = stack.enter_context(Envoy("override-host", free_port(), [pod.netloc for pod in pods], closed))
        envoy.wait_for_picker(is_healthy=False)
        assert {envoy.http.post("/v1/completions", json=completion()).status_code for _ in range(5)} == {status}
        assert not any(pod.paths for pod in pods)


def test_without_the_health_check_envoy_cannot_let_requests_with_bodies_through() -> None:
    """Why deploy/envoy has one: `failure_mode_allow` by itself does not help once a piece of a body is on its way."""

    def unchecked(config: Config) -> None:
        del cluster(config, "picker")["health_checks"]

    with ExitStack() as stack:
        pods = [stack.enter_context(Pod(name)) for name in TEXTS]
        envoy = stack.enter_context(Envoy("override-host", free_port(), [pod.netloc for pod in pods], unchecked))
        assert {status_of(envoy, json.dumps(completion()).encode()) for _ in range(20)} == {503}


def status_of(envoy: Envoy, body: bytes) -> int:
    """Of a request whose body comes along with its headers, in one piece."""
    head = f"POST /v1/completions HTTP/1.1\r\nHost: pool\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    with socket.create_connection(("127.0.0.1", envoy.port), timeout=10) as connection:
        connection.sendall(head.encode() + body)
        return int(connection.recv(65_536).split()[1])


@pytest.mark.parametrize("config", ["override-host", "buffered"])
def test_a_picker_that_is_killed_harms_no_answer_and_requests_go_round_until_it_is_back(config: str) -> None:
    with behind(config=config) as all_of_it:
        thread, found = begin_stream(all_of_it.envoy)
        all_of_it.command.kill()
        all_of_it.envoy.wait_for_picker(is_healthy=False)
        assert {ask_for(all_of_it.envoy) for _ in range(10)} == set(TEXTS)
        thread.join()
        assert [answer.text for answer in found] == [events(30)]


def test_a_picker_that_is_killed_breaks_off_the_answers_that_pass_through_it() -> None:
    """Why deploy/envoy has the headers of answers only go there."""
    with behind(echoes) as all_of_it:
        thread, found = begin_stream(all_of_it.envoy)
        all_of_it.command.kill()
        thread.join()
        assert found == []
        all_of_it.envoy.wait_for_picker(is_healthy=False)
        assert {ask_for(all_of_it.envoy) for _ in range(10)} == set(TEXTS)


def test_a_picker_that_hangs_is_noticed_within_seconds_and_is_used_again_when_it_goes_on() -> None:
    with behind() as all_of_it:
        all_of_it.command.freeze()
        all_of_it.envoy.wait_for_picker(is_healthy=False)
        wait_until(lambda: is_answered(all_of_it.envoy), 10)
        assert {ask_for(all_of_it.envoy) for _ in range(10)} == set(TEXTS)
        all_of_it.command.thaw()
        all_of_it.envoy.wait_for_picker()
        assert [ask_for(all_of_it.envoy, pod) for pod in ("first", "second", "first")] == ["first", "second", "first"]


def test_a_picker_that_hangs_is_not_waited_for_for_ever() -> None:
    """No timeout of Envoy counts in full duplex. The keepalive does."""
    with behind() as all_of_it:
        all_of_it.command.freeze()
        response = all_of_it.envoy.http.post("/v1/completions", json=completion(), timeout=10)
        assert response.status_code in (200, 500, 503)


def test_requests_whose_bodies_are_buffered_go_round_once_they_have_waited_for_a_picker_that_hangs() -> None:
    """And at once where it is killed, before the health check has seen it."""

    def unchecked(config: Config) -> None:
        del cluster(config, "picker")["health_checks"]
        del cluster(config, "picker")["typed_extension_protocol_options"]["envoy.extensions.upstreams.http.v3.HttpProtocolOptions"][
            "explicit_http_config"
        ]["http2_protocol_options"]["connection_keepalive"]
        processor(config)["message_timeout"] = "0.3s"

    with behind(unchecked, config="buffered") as all_of_it:
        all_of_it.command.freeze()
        assert {ask_for(all_of_it.envoy) for _ in range(6)} == set(TEXTS)
        all_of_it.command.kill()
        assert {ask_for(all_of_it.envoy) for _ in range(20)} == set(TEXTS)


def test_a_timeout_counts_where_bodies_are_buffered() -> None:
    def buffered(config: Config) -> None:
        processor(config)["processing_mode"] |= {"request_body_mode": "BUFFERED", "request_trailer_mode": "SKIP"}
        processor(config)["failure_mode_allow"] = False
        processor(config)["message_timeout"] = "0.5s"

    with behind(buffered) as all_of_it:
        all_of_it.command.freeze()
        assert all_of_it.envoy.http.post("/v1/completions", json=completion(), timeout=10).status_code == 504


@pytest.mark.parametrize(
    ("config", "changes"), [("override-host", ()), ("override-host", (echoes,)), ("buffered", ())], ids=["headers only", "echoed", "buffered"]
)
def test_a_picker_that_ends_in_order_costs_no_request_and_no_answer(config: str, changes: tuple[Change, ...]) -> None:
    with behind(*changes, config=config, gateway_notice_s="4.0", gateway_drain_s="30") as all_of_it:
        envoy = all_of_it.envoy
        thread, found = begin_stream(envoy)
        all_of_it.command.process.terminate()
        statuses = set()
        while all_of_it.command.is_running:
            statuses.add(envoy.http.post("/v1/completions", json=completion()).status_code)
        thread.join()
        assert [answer.text for answer in found] == [events(30)]
        assert statuses == {200}
        assert {ask_for(envoy) for _ in range(10)} == set(TEXTS)


def test_gateways_that_want_tls_get_it() -> None:
    """Envoy AI Gateway, NGINX Gateway Fabric and agentgateway connect by TLS and check no certificate."""

    def over_tls(config: Config) -> None:
        kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
        context = {"@type": kind, "common_tls_context": {"alpn_protocols": ["h2"]}}
        cluster(config, "picker")["transport_socket"] = {"name": "envoy.transport_sockets.tls", "typed_config": context}

    with behind(over_tls, gateway_self_signed="true") as all_of_it:
        assert [ask_for(all_of_it.envoy, pod) for pod in ("first", "second", "first")] == ["first", "second", "first"]


def test_two_workers_pick_for_one_gateway_and_either_may_be_killed() -> None:
    """Envoy's connection is one worker's, by chance: it finds another one at the same port."""
    asked = ["first", "second", "first", "second"]
    with RedisServer() as redis, behind(workers="2", redis=redis.url) as all_of_it:
        assert [ask_for(all_of_it.envoy, pod) for pod in asked] == asked
        for number in range(2):
            started = workers(all_of_it.command)
            os.kill(started[number], signal.SIGKILL)
            wait_until(lambda: is_answered(all_of_it.envoy), 10)
            wait_until(partial(is_restarted, all_of_it.command, number, started[number]))
            wait_until(lambda: all_of_it.command.http.get(f"{all_of_it.command.url}/readyz").json()["status"] == "ready")
            all_of_it.envoy.wait_for_picker()
            assert [ask_for(all_of_it.envoy, pod) for pod in asked] == asked


def workers(service: Command) -> dict[int, int]:
    """Number → process of the workers that run now."""
    found = [re.search(r"worker started worker=(\d+) pid=(\d+)", line) for line in list(service.lines)]
    return {int(each[1]): int(each[2]) for each in found if each}


def is_restarted(service: Command, number: int, pid: int) -> bool:
    return workers(service)[number] != pid

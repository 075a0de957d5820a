"""Where the service dials to ask for tokens."""

from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from tests.engine import Engine, stored
from tests.engine_server import EngineServer, tokenize_bytes
from tests.ports import free_port
from tests.processes import api, ingest, serve
from tests.redis_server import RedisServer
from tests.running import Client, Running
from tests.security.test_networks import NAME, Listener, Names, put, ready
from tests.waiting import wait_until

pytestmark = pytest.mark.rule("C15")
NOWHERE = "tcp://10.255.255.1:9"


def ask(service: Client, text: str = "a prompt") -> httpx.Response:
    return service.http.post(f"{service.url}/v1/score", json={"model": "m", "prompt": text})


def test_the_name_of_a_registered_pod_leads_to_nobody_outside() -> None:
    with Listener() as listener, serve(None, allowed_engine_networks="10.0.0.0/8") as service:
        ready(service)
        for pod in (f"127.0.0.1:{listener.port}", f"localhost:{listener.port}"):
            assert put(service, pod, events=NOWHERE).status_code == 201
            refused = ask(service)
            assert refused.status_code == 502
            assert "outside the networks where engines may be: 10.0.0.0/8" in refused.json()["detail"]
            service.http.delete(f"{service.url}/v1/pods/{pod}")
        assert service.metric("kv_indexer_tokenize_requests_total", outcome="outside") == 2
        assert not listener.was_dialled()


def test_nor_does_that_of_a_pod_that_dials_us() -> None:
    port = free_port()
    with Listener() as listener, serve(None, allowed_engine_networks="10.0.0.0/8", listen=f"tcp://127.0.0.1:{port}") as service:
        ready(service)
        pod = f"127.0.0.1:{listener.port}"
        with Engine(dials=port, topic=f"kv@{pod}@m".encode(), with_replay=False) as engine:

            def is_known() -> bool:
                engine.publish(stored([1], [1, 2, 3, 4]))
                return '"m"' in service.http.get(f"{service.url}/v1/models").text

            wait_until(is_known)
            refused = ask(service)
            assert (refused.status_code, "outside the networks" in refused.json()["detail"]) == (502, True)
        assert not listener.was_dialled()


def test_what_the_operator_names_is_asked_wherever_it_is() -> None:
    with EngineServer(routes={"/tokenize": tokenize_bytes}) as tokenizing, Engine() as engine:
        named = engine.spec(http=tokenizing.url.replace("127.0.0.1", "localhost"))
        with serve(None, named, allowed_engine_networks="10.0.0.0/8") as service:
            ready(service).wait_for(connected=True)
            assert ask(service).json()["tokens"] == 8


class Rebinding(Names):
    """A name that means another address whenever it is asked for again."""

    def _getaddrinfo(self, host: Any, *arguments: Any, **named: Any) -> Any:
        found = super()._getaddrinfo(host, *arguments, **named)
        if host == NAME and len(self.addresses) > 1:
            self.addresses.append(self.addresses.pop(0))
        return found[:1] if host == NAME else found


def test_what_was_looked_at_is_what_is_dialled_even_if_the_name_changes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with EngineServer(routes={"/tokenize": tokenize_bytes}) as tokenizing, Running(allowed_engine_networks="127.0.0.1,10.0.0.0/8") as service:
        names = Rebinding(monkeypatch, "127.0.0.1")
        assert put(service, "pod", events=NOWHERE, http=f"http://{NAME}:{tokenizing.port}").status_code == 201
        names.addresses = ["127.0.0.1", "127.0.0.2"]
        # Asked for again while it dials the name would mean 127.0.0.2, where nobody is.
        assert ask(service, "first").json()["tokens"] == 5
        assert tokenizing.tokenize_headers[-1]["host"] == f"{NAME}:{tokenizing.port}"
        assert names.addresses == ["127.0.0.2", "127.0.0.1"], "the name was asked for once"
        refused = ask(service, "second")
        assert (refused.status_code, f"http://{NAME}:{tokenizing.port} is at 127.0.0.2, which is outside" in refused.json()["detail"]) == (502, True)
        assert [asked["prompt"] for asked in tokenizing.tokenize_requests] == ["first"]


def test_a_name_without_an_address_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    with Running() as service:
        names = Names(monkeypatch, "127.0.0.1")
        assert put(service, "pod", events=NOWHERE, http=f"http://{NAME}:80").status_code == 201
        names.addresses = []
        assert f"pod {NAME} cannot be resolved" in ask(service).json()["detail"]


def test_no_redirection_and_no_proxy_leads_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    with Listener() as listener, Engine() as engine:
        elsewhere = f"http://127.0.0.1:{listener.port}/"
        monkeypatch.setenv("http_proxy", elsewhere)
        monkeypatch.setenv("HTTP_PROXY", elsewhere)
        redirecting = EngineServer(routes={"/tokenize": lambda _: (307, b"")}, headers={"Location": elsewhere})
        with redirecting:
            service = Running(engine.spec(http=redirecting.url))
            service.http = httpx.Client(timeout=30, trust_env=False)
            with service:
                service.wait_for(connected=True)
                assert "pod answered 307" in ask(service).json()["detail"]
            assert len(redirecting.tokenize_requests) == 1
            assert not listener.was_dialled()


def test_scorers_know_the_apis_of_pods_that_indexers_name_and_limit_them() -> None:
    with ExitStack() as stack:
        redis, engine, tokenizing, listener = (
            stack.enter_context(each) for each in (RedisServer(), Engine(), EngineServer(routes={"/tokenize": tokenize_bytes}), Listener())
        )
        stack.enter_context(ingest(redis.url, engine.spec(http=tokenizing.url)))
        wide, narrow = stack.enter_context(api(redis.url)), stack.enter_context(api(redis.url, allowed_engine_networks="10.0.0.0/8"))
        for service in (wide, narrow):
            ready(service)
            wait_until(lambda service=service: tokenizing.url in service.http.get(f"{service.url}/v1/pods").text)
        assert ask(wide).json()["tokens"] == 8
        refused = ask(narrow)
        assert (refused.status_code, f"{tokenizing.url} is outside the networks" in refused.json()["detail"]) == (502, True)
        # A registration replaces what a flag says, also where the API is.
        assert put(wide, "pod", events=f"tcp://127.0.0.1:{engine.events_port}", http=f"http://127.0.0.1:{listener.port}").status_code == 200
        wait_until(lambda: str(listener.port) in narrow.http.get(f"{narrow.url}/v1/pods").text)
        ask(narrow, "another")
        assert not listener.was_dialled()

"""Where the service dials when somebody registers a pod."""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from indexer.engines import resolver as dialling
from indexer.engines.endpoints import check_endpoints, check_registration
from indexer.engines.networks import EngineNetworks
from indexer.engines.spec import EngineSpec
from tests.engine import Engine, stored
from tests.processes import api, ingest, serve
from tests.redis_server import RedisServer
from tests.running import Client, Command, Running
from tests.waiting import wait_until

PROMPT = [1, 2, 3, 4, 5]
NAME = "engine.example"


def ready(service: Command) -> Command:
    service.wait_url()
    wait_until(lambda: service.http.get(f"{service.url}/healthz").status_code == 200)
    return service


def put(service: Client, pod: str, **spec: Any) -> httpx.Response:
    return service.http.put(f"{service.url}/v1/pods/{pod}", json={"model": "m", **spec})


class Listener:
    """Somebody on this machine who should not be dialled."""

    def __enter__(self) -> "Listener":
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def was_dialled(self) -> bool:
        try:
            self._socket.accept()[0].close()
        except BlockingIOError:
            return False
        return True


@pytest.fixture(scope="module", params=["serve", "ingest", "api"])
def narrow(request: pytest.FixtureRequest) -> Iterator[Command]:
    """Each role, with one network that this machine is not in."""
    with RedisServer() as redis:
        settings = {"allowed_engine_networks": "10.0.0.0/8"}
        starting = {
            "serve": lambda: serve(None, **settings),
            "ingest": lambda: ingest(redis.url, **settings),
            "api": lambda: api(redis.url, **settings),
        }[request.param]()
        with starting as service:
            yield ready(service)


@pytest.mark.rule("C9")
def test_a_registration_outside_is_refused_with_what_is_allowed_and_nobody_is_dialled(narrow: Command) -> None:
    with Listener() as listener, Listener() as other:
        outside = f"tcp://127.0.0.1:{listener.port}"
        api = f"http://127.0.0.1:{listener.port}/v1"
        inside = "tcp://10.255.255.1:9"
        specs: list[dict[str, Any]] = [{"events": outside}, {"events": inside, "replay": outside}, {"events": outside, "ranks": 2}]
        for spec in (*specs, {"events": inside, "http": api}):
            refused = put(narrow, "x", **spec)
            assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
            detail = refused.json()["detail"]
            key = next(key for key in ("http", "replay", "events") if key in spec)
            assert detail == f"{key}: {spec[key]} is outside the networks where engines may be: 10.0.0.0/8 (--allowed-engine-networks)"
        named = put(narrow, "x", events=f"tcp://localhost:{other.port}")
        assert named.status_code == 422
        assert f"events: tcp://localhost:{other.port} is at 127.0.0.1, which is outside" in named.json()["detail"]
        named = put(narrow, "x", events=inside, http=f"http://localhost:{other.port}")
        assert f"http: http://localhost:{other.port} is at 127.0.0.1, which is outside" in named.json()["detail"]
        assert narrow.http.get(f"{narrow.url}/v1/pods").json() == {"pods": []}
        assert not listener.was_dialled()
        assert not other.was_dialled()


@pytest.mark.rule("C9")
@pytest.mark.parametrize("host", ["8.8.8.8", "169.254.169.254", "[::ffff:169.254.169.254]", "[fe80::1]", "0", "2852039166", "0251.0376.0251.0376"])
def test_by_default_link_local_and_public_addresses_are_outside_however_they_are_written(wide: Client, host: str) -> None:
    refused = put(wide, "x", events=f"tcp://{host}:80")
    assert refused.status_code == 422
    assert "outside the networks" in refused.json()["detail"]


@pytest.fixture(scope="module")
def wide() -> Iterator[Client]:
    """With the default networks."""
    with Running() as service:
        yield service


@pytest.mark.rule("C10")
def test_an_engine_is_followed_by_a_name_whose_addresses_are_inside() -> None:
    with Engine() as engine, serve(None) as service:
        engine.publish(stored([1], PROMPT[:4]))
        ready(service)
        spec = {"events": f"tcp://localhost:{engine.events_port}", "replay": f"tcp://localhost:{engine.replay_port}"}
        assert put(service, "pod", **spec).status_code == 201
        service.wait_for(sequence=0, trust="live")
        assert service.matched(PROMPT) == 4
        assert put(service, "pod", **spec).status_code == 200
        assert service.stream()["trust"] == "live", "what stays the same is not touched"


class Names:
    """What the name means, as this process is told; libzmq would ask the system itself, which knows no such name."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
        self.addresses = list(addresses)
        self.asked = 0
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self._getaddrinfo)
        monkeypatch.setattr(dialling, "AGAIN_S", 0.1)

    def _getaddrinfo(self, host: Any, *arguments: Any, **named: Any) -> Any:
        if host != NAME:
            return self._real(host, *arguments, **named)
        self.asked += 1
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [info for address in self.addresses for info in self._real(address, *arguments, **named)]


@pytest.mark.rule("C10")
def test_all_addresses_of_a_name_have_to_be_inside(monkeypatch: pytest.MonkeyPatch, wide: Client) -> None:
    Names(monkeypatch, "127.0.0.1", "8.8.8.8")
    refused = put(wide, "x", events=f"tcp://{NAME}:9")
    assert (refused.status_code, f"tcp://{NAME}:9 is at 8.8.8.8, which is outside" in refused.json()["detail"]) == (422, True)


@pytest.mark.rule("C10")
def test_to_check_a_registration_dials_nobody() -> None:
    """A name that nobody looked at is not tried either."""
    with Listener() as listener:
        spec = EngineSpec("pod", "m", events=f"tcp://localhost:{listener.port}", replay=f"tcp://localhost:{listener.port}")
        for _ in range(20):
            check_registration(spec, EngineNetworks.from_text("10.0.0.0/8"))
            check_endpoints(spec)
        assert not listener.was_dialled()
        socket.create_connection(("localhost", listener.port)).close()
        wait_until(listener.was_dialled, what="a dial that shows")


@pytest.mark.rule("C10")
def test_a_name_that_takes_another_address_is_looked_at_again_and_never_dialled_as_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch, "127.0.0.1")
    with Running(allowed_engine_networks="127.0.0.1,127.0.0.3") as service:
        with Engine() as engine:
            engine.publish(stored([1], PROMPT[:4]))
            spec = {"events": f"tcp://{NAME}:{engine.events_port}", "replay": f"tcp://{NAME}:{engine.replay_port}"}
            assert put(service, "pod", **spec).status_code == 201
            service.wait_for(sequence=0, trust="live")
            names.addresses = ["127.0.0.2"]
            engine_port = engine.events_port
        service.wait_for(connected=False)
        with socket.create_server(("127.0.0.2", engine_port)) as outside:
            outside.setblocking(False)
            wait_until(lambda: "is at 127.0.0.2, which is outside" in str(service.stream()["last_error"]))
            asked = names.asked
            wait_until(lambda: names.asked > asked + 5)
            with pytest.raises(BlockingIOError):
                outside.accept()
        with socket.create_server(("127.0.0.3", engine_port)) as inside:
            names.addresses = ["127.0.0.3"]
            inside.settimeout(30)
            inside.accept()[0].close()


@pytest.mark.rule("C10")
def test_a_pod_whose_name_has_no_address_yet_is_followed_once_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    names = Names(monkeypatch)
    with Engine() as engine, Running(allowed_engine_networks="127.0.0.1") as service:
        engine.publish(stored([1], PROMPT[:4]))
        assert put(service, "pod", events=f"tcp://{NAME}:{engine.events_port}").status_code == 201
        wait_until(lambda: "cannot be resolved" in str(service.stream()["last_error"]))
        names.addresses = ["127.0.0.2"]
        wait_until(lambda: "is at 127.0.0.2, which is outside" in str(service.stream()["last_error"]))
        names.addresses = ["127.0.0.1"]
        service.wait_for(connected=True)
        assert service.http.delete(f"{service.url}/v1/pods/pod").status_code == 204
        asked = names.asked
        assert asyncio.run_coroutine_threadsafe(count_dialling(), service.loop).result(30) == 0, "nobody looks any more"
        assert names.asked == asked


async def count_dialling() -> int:
    return sum(task.get_name().startswith("dialling") for task in asyncio.all_tasks())


@pytest.mark.rule("C11")
def test_ipc_is_refused_unless_it_is_named(wide: Client, tmp_path: Path) -> None:
    refused = put(wide, "x", events=f"ipc://{tmp_path}/engine")
    assert (refused.status_code, "ipc://" in refused.json()["detail"]) == (422, True)
    with Running(allowed_engine_networks="127.0.0.0/8,ipc") as service:
        assert put(service, "x", events=f"ipc://{tmp_path}/engine").status_code == 201
        document = service.http.get(f"{service.url}/openapi.json").json()
        assert "ipc" in document["components"]["schemas"]["PodSpec"]["properties"]["events"]["anyOf"][0]["pattern"]
    document = wide.http.get(f"{wide.url}/openapi.json").json()
    assert "ipc" not in document["components"]["schemas"]["PodSpec"]["properties"]["events"]["anyOf"][0]["pattern"]


@pytest.mark.rule("C12")
def test_engines_that_a_flag_a_variable_or_the_file_names_are_not_limited(tmp_path: Path) -> None:
    file = tmp_path / "kv-indexer.toml"
    with Engine() as engine:
        engine.publish(stored([1], PROMPT[:4]))
        file.write_text(f'[[engines]]\npod = "pod"\nmodel = "m"\nevents = "tcp://localhost:{engine.events_port}"\n')
        narrow = ["--port", "0", "--allowed-engine-networks", ""]
        ways: list[tuple[list[str], dict[str, str]]] = [
            (["--engine", engine.spec()], {}),
            ([], {"KV_INDEXER_ENGINES": engine.spec()}),
            (["--config", str(file)], {}),
        ]
        for words, env in ways:
            with Command("serve", *narrow, *words, env=env) as service:
                ready(service).wait_for(connected=True)


@pytest.mark.rule("C13")
def test_what_another_replica_registered_outside_is_not_dialled_and_told_of_once() -> None:
    with ExitStack() as stack:
        redis, engine, listener = (stack.enter_context(each) for each in (RedisServer(), Engine(), Listener()))
        wide = stack.enter_context(ingest(redis.url))
        narrow = stack.enter_context(ingest(redis.url, allowed_engine_networks="10.0.0.0/8"))
        ready(wide)
        ready(narrow)
        for pod, host in (("written", "127.0.0.1"), ("named", "localhost")):
            assert put(wide, pod, events=f"tcp://{host}:{listener.port}").status_code == 201
        wait_until(listener.was_dialled)

        def told() -> list[str]:
            return [line for line in narrow.lines if "pod=written" in line and "pod cannot be followed from here" in line]

        wait_until(told)
        wide.stop()
        wait_until(lambda: any("engine not dialled" in line and "pod=named" in line for line in narrow.lines))
        while listener.was_dialled():  # by the other one, before
            pass
        commands = redis.client().info()["total_commands_processed"]
        wait_until(lambda: redis.client().info()["total_commands_processed"] > commands + 200)
        assert not listener.was_dialled()
        assert len(told()) == 1
        assert len([line for line in narrow.lines if "engine not dialled" in line]) == 1
        pods = narrow.http.get(f"{narrow.url}/v1/pods").json()["pods"]
        assert sorted(pod["pod"] for pod in pods) == ["named", "written"]
        for pod in ("written", "named"):
            assert narrow.http.delete(f"{narrow.url}/v1/pods/{pod}").status_code == 204
        assert put(narrow, "inside", events=f"tcp://127.0.0.1:{engine.events_port}").status_code == 422


@pytest.mark.rule("C9")
def test_a_wrong_network_stops_the_start() -> None:
    with serve(None, allowed_engine_networks="10.0.0.0/8,everywhere") as service:
        assert service.process.wait(30) == 2
    (line,) = service.lines
    assert [word for word in ("--allowed-engine-networks", "'everywhere'", "10.0.0.0/8 or fd00::/8, or ipc") if word not in line] == []

"""Engines and services at IPv6 addresses."""

import socket
from contextlib import closing
from typing import Any

import pytest

from indexer.receiving import subscription
from indexer.receiving.addresses import SocketAddress
from tests.engine import Engine, stored
from tests.running import Running
from tests.waiting import wait_until

PROMPT = [1, 2, 3, 4, 5]


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")


def free_port() -> int:
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as listener:
        port: int = listener.getsockname()[1]
        return port


def test_an_engine_at_an_ipv6_address_is_followed_live_and_by_replay() -> None:
    with Engine(host="::1") as engine:
        engine.publish(stored([1], PROMPT[:4]))
        with Running(engine.spec()) as service:
            service.wait_for(sequence=0)
            engine.publish(stored([2], [5, 6, 7, 8], parent=1))
            service.wait_for(sequence=1)
            assert service.matched([*PROMPT, 6, 7, 8, 9]) == 8


def test_a_registered_engine_at_an_ipv6_address_is_followed() -> None:
    with Engine(host="::1") as engine, Running() as service:
        events, replay = f"tcp://[::1]:{engine.events_port}", f"tcp://[::1]:{engine.replay_port}"
        assert service.http.put(f"{service.url}/v1/pods/pod", json={"model": "m", "events": events, "replay": replay}).status_code == 201
        engine.publish(stored([1], PROMPT[:4]))
        service.wait_for(sequence=0)
        assert service.matched(PROMPT) == 4


def test_a_registered_engine_outside_the_ipv6_networks_is_refused() -> None:
    with Running(allowed_engine_networks="fd00::/8") as service:
        for events, status in (("tcp://[::1]:5557", 422), ("tcp://[fd00::7]:5557", 201)):
            assert service.http.put(f"{service.url}/v1/pods/pod", json={"model": "m", "events": events}).status_code == status, events


@pytest.mark.parametrize("listen", ["[::1]", "[::]", "*"])
def test_engines_dial_in_over_ipv6(listen: str) -> None:
    port = free_port()
    with (
        Running(listen=f"tcp://{listen}:{port}", listen_replay="tcp://{host}:7") as service,
        Engine(topic=b"kv@pod@m", dials=port, with_replay=False, host="::1") as engine,
    ):
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(stored([1], PROMPT[:4]))
        wait_until(lambda: service.http.get(f"{service.url}/v1/pods").json()["pods"])
        assert service.stream()["replay"] == "tcp://[::1]:7"


def test_an_engine_that_dials_a_socket_of_both_families_over_ipv4_has_its_ipv4_address() -> None:
    port = free_port()
    with (
        Running(listen=f"tcp://*:{port}", listen_replay="tcp://{host}:7") as service,
        Engine(topic=b"kv@pod@m", dials=port, with_replay=False) as engine,
    ):
        wait_until(lambda: engine.subscriptions() > 0)
        engine.publish(stored([1], PROMPT[:4]))
        wait_until(lambda: service.http.get(f"{service.url}/v1/pods").json()["pods"])
        assert service.stream()["replay"] == "tcp://127.0.0.1:7"


def test_a_name_is_dialled_in_both_address_families_until_the_engine_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine starts after its name was dialled in IPv4, and in IPv6 too."""
    families: list[int] = []

    class Dialled(socket.socket):
        def connect_ex(self, address: Any) -> int:
            families.append(self.family)
            return super().connect_ex(address)

    both = [SocketAddress(socket.AF_INET, ("127.0.0.1", 1)), SocketAddress(socket.AF_INET6, ("::1", 1, 0, 0))]
    monkeypatch.setattr(subscription.socket, "socket", Dialled)
    monkeypatch.setattr(subscription, "LOOK_UP_S", 0.05)
    engine = Engine().start()
    spec = engine.spec().replace("127.0.0.1", "localhost")
    engine.kill()
    monkeypatch.setattr(subscription, "socket_addresses", lambda _, port: [SocketAddress(at.family, (at.at[0], port, *at.at[2:])) for at in both])
    with Running(spec) as service:
        wait_until(lambda: families[:4] == [socket.AF_INET, socket.AF_INET6] * 2)
        with engine:
            for number in range(2):
                engine.publish(stored([1 + number], [number, 2, 3, 4]))
                service.wait_for(sequence=number)

"""Address and port of a pod, from where its API is."""

import asyncio
import socket
from typing import Any

import pytest

from indexer.engines.api import EngineApi
from indexer.engines.networks import DEFAULT_NETWORKS, EngineNetworks
from scorer_api.api import destinations
from scorer_api.api.destinations import Destinations

Address = tuple[int, int, int, str, tuple[str, int]]


@pytest.fixture
def found() -> Destinations:
    return Destinations(EngineNetworks.from_text(DEFAULT_NETWORKS))


class Names:
    """Stands in for the name server: name → addresses. No name is a failure."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: dict[str, list[str]] = {}
        self.asked = 0
        monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", self._look_up)

    async def _look_up(self, host: str, port: Any, **_: Any) -> list[Address]:
        self.asked += 1
        await asyncio.sleep(0)
        if host not in self.addresses:
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in self.addresses[host]]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


@pytest.mark.parametrize(
    ("base", "destination"),
    [
        ("http://10.0.0.7:8000", "10.0.0.7:8000"),
        ("http://10.0.0.7", "10.0.0.7:80"),
        ("https://10.0.0.7/base", "10.0.0.7:443"),
        ("http://[fd00::7]:8000", "[fd00::7]:8000"),
        ("http://8.8.8.8:80", "8.8.8.8:80"),
    ],
)
async def test_an_address_is_taken_as_it_is(found: Destinations, base: str, destination: str) -> None:
    assert await found.of(EngineApi("a", base, is_limited=False)) == destination


@pytest.mark.rule("G3")
async def test_what_a_client_registered_has_to_be_in_the_networks(found: Destinations, names: Names) -> None:
    names.addresses["pod"] = ["8.8.8.8"]
    assert await found.of(EngineApi("a", "http://8.8.8.8:80", is_limited=True)) is None
    assert await found.of(EngineApi("a", "http://pod:80", is_limited=True)) is None
    assert await found.of(EngineApi("a", "http://pod:80", is_limited=False)) == "8.8.8.8:80"


async def test_a_name_is_looked_up_once_for_all_who_wait_and_again_in_the_background(
    found: Destinations, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = EngineApi("a", "http://pod:8000", is_limited=True)
    names.addresses["pod"] = ["10.0.0.7"]
    assert found.known(api) is None
    assert await asyncio.gather(*(found.of(api) for _ in range(4))) == ["10.0.0.7:8000"] * 4
    assert names.asked == 1

    monkeypatch.setattr(destinations, "AGAIN_S", 0.0)
    found._known[api].due_s = 0.0
    names.addresses["pod"] = ["10.0.0.8"]
    assert await found.of(api) == "10.0.0.7:8000", "nobody waits for the new address"
    for _ in range(20):
        await asyncio.sleep(0)
    assert found.known(api) == "10.0.0.8:8000"


async def test_a_name_server_that_is_away_moves_no_pod_and_a_name_without_address_is_tried_again(
    found: Destinations, names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(destinations, "AGAIN_S", 0.0)
    monkeypatch.setattr(destinations, "RETRY_S", 0.0)
    api = EngineApi("a", "http://pod:8000", is_limited=True)
    assert await found.of(api) is None
    names.addresses["pod"] = ["10.0.0.7"]
    assert await found.of(api) == "10.0.0.7:8000"
    del names.addresses["pod"]
    assert found.known(api) == "10.0.0.7:8000"
    for _ in range(20):
        await asyncio.sleep(0)
    assert found.known(api) == "10.0.0.7:8000"
    assert names.asked > 2

"""Endpoints are dialled by an address that was checked."""

import asyncio

import pytest

from indexer.engines.networks import DEFAULT_NETWORKS, EngineNetworks
from indexer.engines.resolver import EndpointWatcher, address_of
from indexer.errors import SettingError
from tests.waiting import wait_until_async

NETWORKS = EngineNetworks.from_text(DEFAULT_NETWORKS)


async def test_a_name_is_replaced_by_its_address() -> None:
    assert await address_of("tcp://localhost:5557", "events", NETWORKS) == "tcp://127.0.0.1:5557"


@pytest.mark.parametrize("endpoint", ["tcp://10.1.2.3:5557", "ipc:///tmp/events"])
async def test_what_has_no_name_stays(endpoint: str) -> None:
    assert await address_of(endpoint, "events", NETWORKS) == endpoint


async def test_an_address_outside_the_networks_is_refused() -> None:
    with pytest.raises(SettingError, match=r"127\.0\.0\.1"):
        await address_of("tcp://localhost:5557", "events", EngineNetworks.from_text("10.0.0.0/8"))


async def test_a_watcher_connects_once_and_reports_a_name_without_an_address() -> None:
    connected: list[tuple[str | None, str | None]] = []
    reported: list[str] = []

    async def connect(events: str | None, replay: str | None) -> None:
        connected.append((events, replay))

    for name in ("localhost", "no-such-host.invalid"):
        watcher = EndpointWatcher(NETWORKS, f"tcp://{name}:5557", None, is_due=lambda: True, connect=connect, report=reported.append)
        task = asyncio.create_task(watcher.run())
        await wait_until_async(lambda name=name: connected if name == "localhost" else reported)
        task.cancel()
    assert connected == [("tcp://127.0.0.1:5557", None)]
    assert len(reported) == 1
    assert "no-such-host.invalid" in reported[0]

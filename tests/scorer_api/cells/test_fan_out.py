"""One cell as the scorer in front knows it, and that cells do not hold up each other."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from prometheus_client import CollectorRegistry

from scorer_api.cells import fan_out
from scorer_api.cells.fan_out import FanOut
from scorer_api.cells.metrics import CellMetrics
from tests.engine_server import EngineServer, Reply, Request

ready = {"/readyz": lambda _: (200, b"{}")}


class Hanging:
    """A route that answers once it is told to."""

    def __init__(self) -> None:
        self.may_answer = threading.Event()

    def __call__(self, _: Request) -> Reply:
        self.may_answer.wait(20)
        return 200, b""


@asynccontextmanager
async def fan_out_to(*servers: EngineServer, timeout_s: float) -> AsyncIterator[FanOut]:
    urls = [server.url for server in servers]
    async with FanOut(urls, CellMetrics(CollectorRegistry(), urls), timeout_s) as cells:
        yield cells


async def test_a_cell_that_is_late_is_not_asked_though_it_says_in_between_that_it_is_ready() -> None:
    hanging = Hanging()
    with EngineServer(routes={**ready, "/v1/score": hanging}) as server:
        async with fan_out_to(server, timeout_s=0.3) as cells:
            (cell,) = cells.cells
            for _ in range(3):
                assert cell.is_up
                assert (await cell.ask("/v1/score", b"{}", {})).state == "late"
                if cell.is_up:
                    await cell.look()
            assert (await cell.ask("/v1/score", b"{}", {})).state == "down"
            hanging.may_answer.set()
            await cell.look()
            assert (await cell.ask("/v1/score", b"{}", {})).state == "answered"


async def test_a_cell_that_hangs_takes_no_connection_from_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fan_out, "CONNECTIONS_MAX", 4)
    hanging = Hanging()
    with EngineServer(routes={**ready, "/v1/score": hanging}) as slow, EngineServer(routes={**ready, "/v1/score": lambda _: (200, b"")}) as quick:
        async with fan_out_to(slow, quick, timeout_s=5.0) as cells:
            asked = [asyncio.create_task(cells.cells[0].ask("/v1/score", b"{}", {})) for _ in range(8)]
            await asyncio.sleep(0.1)
            assert (await cells.cells[1].ask("/v1/score", b"{}", {})).state == "answered"
            assert not any(each.done() for each in asked)
            hanging.may_answer.set()
            assert {part.state for part in await asyncio.gather(*asked)} == {"answered"}

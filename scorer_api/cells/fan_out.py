"""Asking all cells at once, and looking each second which of them are ready."""

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from msgspec import Struct

from indexer.engines.http_client import HttpClient
from indexer.streams.readiness import Readiness, readiness
from scorer_api.cells.cell import Cell, Part
from scorer_api.cells.metrics import CellMetrics

LOOK_S = 1.0
# To each cell, so that one that hangs takes none from the others. A request that finds none waits for one, no longer than for an answer.
CONNECTIONS_MAX = 128


class Parts(Struct, frozen=True):
    """The parts of one request, by cell, in the order of the settings."""

    of: dict[Cell, Part]

    @property
    def refusal(self) -> Part | None:
        """What the first cell says that takes the request for wrong."""
        return next((part for part in self.of.values() if part.is_refusal), None)

    @property
    def answers(self) -> dict[Cell, bytes]:
        """Those that were answered."""
        return {cell: part.body for cell, part in self.of.items() if part.state == "answered"}


class FanOut:
    """`async with FanOut(urls, metrics, timeout_s) as cells:` each was looked at once."""

    def __init__(self, urls: Sequence[str], metrics: CellMetrics, timeout_s: float) -> None:
        self._clients = [HttpClient(connections_max=CONNECTIONS_MAX) for _ in urls]
        self.cells = [Cell(url, client, metrics, timeout_s) for url, client in zip(urls, self._clients, strict=True)]

    async def __aenter__(self) -> Self:
        for client in self._clients:
            await client.__aenter__()
        await asyncio.gather(*(cell.look() for cell in self.cells))
        self._looking = [asyncio.create_task(self._look_again(cell), name=f"cell {cell.url}") for cell in self.cells]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)
        for client in self._clients:
            await client.__aexit__(kind, error, trace)

    @staticmethod
    async def _look_again(cell: Cell) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            await cell.look()

    async def ask(self, path: str, body: bytes | None, headers: Mapping[str, str]) -> Parts:
        """Ask every cell that is up."""
        parts = await asyncio.gather(*(cell.ask(path, body, headers) for cell in self.cells))
        return Parts(dict(zip(self.cells, parts, strict=True)))

    def named(self, name: str) -> Cell | None:
        """The cell with this name."""
        return next((cell for cell in self.cells if cell.name == name), None)

    def readiness(self) -> Readiness:
        """Ready while one cell is up; what the others know is missing then."""
        reasons = [f"cell {cell.url}: {cell.why}" for cell in self.cells if not cell.is_up]
        return readiness(is_ready=any(cell.is_up for cell in self.cells), reasons=reasons)

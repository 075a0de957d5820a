"""Runs one task for all callers that want the same result at the same time. A caller that is cancelled does not cancel the task of the others."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Flight(Generic[T]):
    def __init__(self, task: "asyncio.Task[T]") -> None:
        self.task = task
        self.callers = 0


class SingleFlight(Generic[T]):
    """A task ends with its result, or is cancelled once no caller waits for it any more."""

    def __init__(self) -> None:
        self._flights: dict[bytes, _Flight[T]] = {}

    def is_running(self, key: bytes) -> bool:
        """Whether a caller waits for this key already."""
        return key in self._flights

    async def run(self, key: bytes, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result for this key. `work` is started only where it is not running yet. Raises what the work raises."""
        flight = self._flights.get(key)
        if flight is None:
            flight = self._flights[key] = _Flight(asyncio.create_task(work(), name="tokens"))
        flight.callers += 1
        try:
            return await asyncio.shield(flight.task)
        finally:
            flight.callers -= 1
            if flight.task.done() or not flight.callers:
                self._end(key, flight)

    def _end(self, key: bytes, flight: _Flight[T]) -> None:
        flight.task.cancel()
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def aclose(self) -> None:
        """Cancel every task and wait until it has ended."""
        tasks = [flight.task for flight in self._flights.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

"""One piece of work for all that want the same at the same time. Whoever stops waiting stops nobody else."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class _Work(Generic[T]):
    def __init__(self, task: "asyncio.Task[T]") -> None:
        self.task = task
        self.waiting = 0


class Sharing(Generic[T]):
    """The work ends with its result, or once nobody waits for it any more."""

    def __init__(self) -> None:
        self._works: dict[bytes, _Work[T]] = {}

    def has(self, key: bytes) -> bool:
        """Whether somebody waits for it already."""
        return key in self._works

    async def share(self, key: bytes, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """The result of the work with this key, which is begun where nobody waits for it. Raises what the work raises."""
        shared = self._works.get(key)
        if shared is None:
            shared = self._works[key] = _Work(asyncio.create_task(work(), name="tokens"))
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if shared.task.done() or not shared.waiting:
                self._end(key, shared)

    def _end(self, key: bytes, shared: _Work[T]) -> None:
        shared.task.cancel()
        if self._works.get(key) is shared:
            del self._works[key]

    async def aclose(self) -> None:
        """End all of it."""
        tasks = [shared.task for shared in self._works.values()]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

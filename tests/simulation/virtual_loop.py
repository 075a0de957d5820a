"""An event loop whose time is virtual: it jumps to the next timer whenever nothing is ready.

Each handle belongs to the process in whose context it was made. What belongs to a frozen process waits until it is thawed, as if the process had
been stopped; time goes on meanwhile.
"""

import asyncio
import heapq
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import Any, Self, TypeVar, TypeVarTuple

from tests.simulation.errors import SimulationError

T = TypeVar("T")
Args = TypeVarTuple("Args")
# More handles without any progress of time are an endless loop.
STEPS_MAX = 20_000
# How long whatever is ready takes: time that stands still would never be past a moment that a task computed.
TURN_S = 1e-6
START_S = 1_000.0


class Process:
    """A process of the simulated world. `held`: what waits for it to be thawed, None while it runs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.is_dead = False
        self.held: list[Handle] | None = None


class Handle(asyncio.TimerHandle):
    """A callback that waits. asyncio's own asks its loop several things that are always the same here."""

    __slots__ = ()

    def __init__(self, callback: Callable[..., object], args: tuple[Any, ...], context: Context | None) -> None:
        self._callback = callback
        self._args = args
        self._context = copy_context() if context is None else context
        self._cancelled = False

    def cancel(self) -> None:
        self._cancelled = True


PROCESS: ContextVar[Process | None] = ContextVar("PROCESS", default=None)
"""The process that runs now."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """`VirtualLoop.new().run(…)` one coroutine in it; its tasks and futures are those of asyncio."""

    def __init__(self) -> None:
        self._now_s = START_S
        self._ready: deque[Handle] = deque()
        self._timers: list[tuple[float, int, Handle]] = []
        self._numbers = count()
        self._failure: BaseException | None = None
        self._world = copy_context()
        """The context of what belongs to no process."""

    @classmethod
    def new(cls) -> Self:
        return cls()  # there are neither sockets nor processes

    # What asyncio asks of a loop

    def time(self) -> float:
        return self._now_s

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_soon(self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None) -> Handle:
        handle = Handle(callback, args, context)
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(self, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None) -> Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(self, delay: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None) -> Handle:
        handle = Handle(callback, args, context)
        heapq.heappush(self._timers, (self._now_s + delay, next(self._numbers), handle))
        return handle

    def call_at(self, when: float, callback: Callable[[*Args], object], *args: *Args, context: Context | None = None) -> Handle:
        handle = Handle(callback, args, context)
        heapq.heappush(self._timers, (when, next(self._numbers), handle))
        return handle

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> "asyncio.Task[Any]":
        return asyncio.Task(coro, loop=self, name=name, context=context)

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> "asyncio.Future[T]":  # type: ignore[override]
        """There are no threads: it is done at once."""
        future: asyncio.Future[T] = self.create_future()
        future.set_result(func(*args))
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self._failure = self._failure or context.get("exception") or SimulationError(str(context.get("message")))

    # What the simulation asks of it

    def later(self, delay: float, callback: Callable[[*Args], object], *args: *Args) -> Handle:
        """Call it in the surrounding of all processes: it happens whether who asks for it is frozen or not."""
        return self.call_later(delay, callback, *args, context=self._world)

    def start(self, process: Process, work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
        """Run it as a task of a process."""
        context = copy_context()
        context.run(PROCESS.set, process)
        task: asyncio.Task[T] = self.create_task(work, name=process.name, context=context)
        return task

    def freeze(self, process: Process) -> None:
        """It does nothing until it is thawed."""
        process.held = []

    def thaw(self, process: Process) -> None:
        """It goes on with all that was due meanwhile."""
        self._ready.extend(process.held or ())
        process.held = None

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run until it ends. Raises what it raises, or what went wrong in a task that nobody waits for."""
        asyncio._set_running_loop(self)
        try:
            task: asyncio.Task[T] = self.create_task(main, name="main", context=self._world)
            self._run_until(task)
            return task.result()
        finally:
            asyncio._set_running_loop(None)

    def _run_until(self, task: "asyncio.Task[Any]") -> None:
        ready, timers, steps = self._ready, self._timers, 0
        while not task.done():
            self._now_s += TURN_S
            if not ready:
                steps = 0
                self._advance()
            while timers and timers[0][0] <= self._now_s:
                ready.append(heapq.heappop(timers)[2])
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                process = handle._context.get(PROCESS)
                if process is not None and process.held is not None:
                    process.held.append(handle)
                    continue
                try:
                    handle._context.run(handle._callback, *handle._args)
                except Exception as error:  # noqa: BLE001 - as asyncio's loops do
                    self.call_exception_handler({"exception": error})
            steps += 1
            if steps > STEPS_MAX:
                raise SimulationError("an endless loop without any progress of time")
            if self._failure is not None:
                raise self._failure

    def _advance(self) -> None:
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
        if not timers:
            raise SimulationError("everything waits for something that never comes")
        self._now_s = max(self._now_s, timers[0][0])

"""Processes that measurements are made of."""

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self

P = ParamSpec("P")

STOP_TIMEOUT_S = 10.0

spawning = multiprocessing.get_context("spawn")


class Child:
    """`with Child(name, work, *arguments):` calls `work(connection, *arguments)` in a process of its own, whose end is that of the connection.

    `connection`: our end of it.
    """

    def __init__(self, name: str, work: Callable[Concatenate[Connection, P], None], *arguments: P.args, **named: P.kwargs) -> None:
        self.connection, theirs = spawning.Pipe()
        words: tuple[Any, ...] = (theirs, *arguments)
        self._process = spawning.Process(target=work, args=words, kwargs=named, name=name, daemon=True)
        self._process.start()
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.connection.close()
        self._process.join(STOP_TIMEOUT_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

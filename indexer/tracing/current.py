"""The tracer of this process and the span of the running task; both are None unless traces are wanted, and asking for them costs next to nothing."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol

Attributes = Mapping[str, str | int | float | bool]


class Span(Protocol):
    """A span that has begun."""

    def note(self, attributes: Attributes) -> None: ...

    def fail(self, why: str) -> None:
        """What it stands for went wrong."""

    def headers(self) -> dict[str, str]:
        """`traceparent`, and `tracestate` where there is one, for a request that is part of it."""

    def exemplar(self) -> dict[str, str] | None:
        """The labels that lead from a metric to this trace; None where it is not kept."""


class Tracer(Protocol):
    """Makes spans. Every context manager ends its span, and makes it the current one meanwhile."""

    def request(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> AbstractContextManager[Span]:
        """A request to this service. `headers`: its own, with names in lower case; where they name a trace this is a part of it."""

    def call(self, name: str, attributes: Attributes) -> AbstractContextManager[Span]:
        """A request of this service to another one, as a part of the current span."""

    def past(self, name: str, attributes: Attributes, *parts: tuple[str, int]) -> dict[str, str] | None:
        """What has happened by now, in a trace of its own. `parts`: name of each part and when it began, in nanoseconds since the epoch.

        A part ends where the next one begins, and the last one now. Returns what `Span.exemplar` does of it.
        """

    def shutdown(self) -> None:
        """Send what is left. Blocks, for seconds at most."""


current_span: ContextVar[Span | None] = ContextVar("current_span", default=None)
_tracer: Tracer | None = None


def active_tracer() -> Tracer | None:
    """The process's tracer."""
    return _tracer


def use(tracer: Tracer | None) -> None:
    """Make this the process's tracer: before the parts of a service are made."""
    global _tracer  # one for the process, like its logging
    _tracer = tracer


def exemplar() -> dict[str, str] | None:
    """That of the current span."""
    span = current_span.get()
    return None if span is None else span.exemplar()

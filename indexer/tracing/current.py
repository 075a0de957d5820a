"""The tracer of this process and the span of the running task; both are None unless traces are wanted, and asking for them costs next to nothing.

A span is passed on in Redis as 24 bytes: the id of its trace, 16 bytes, and its own, 8, as W3C's Trace Context has them.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Protocol

Attributes = Mapping[str, str | int | float | bool]
TRACE_ID_BYTES = 16
PACKED_SPAN_BYTES = 24
# So many spans are what one span follows from, at most.
FOLLOWED_SPANS_MAX = 16
PACKED_SPANS_BYTES_MAX = PACKED_SPAN_BYTES * FOLLOWED_SPANS_MAX


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

    def past(self, name: str, attributes: Attributes, *parts: tuple[str, int], follows: bytes = b"") -> dict[str, str] | None:
        """What has happened by now. `parts`: name of each part and when it began, in nanoseconds since the epoch.

        A part ends where the next one begins, and the last one now. `follows`: packed spans of other processes; it is a part of the first one's
        trace and has links to the others. Without any it begins a trace. Returns what `Span.exemplar` does of it.
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


def pack_span(exemplar: Mapping[str, str]) -> bytes:
    """The span of an exemplar, packed."""
    return bytes.fromhex(exemplar["trace_id"] + exemplar["span_id"])


def unpack_spans(packed: bytes) -> list[tuple[int, int]]:
    """Ids of trace and span of each, as many as may be, without those that are no ids. None of what ends amid a span."""
    if len(packed) % PACKED_SPAN_BYTES:
        return []
    found = []
    for start in range(0, min(len(packed), PACKED_SPANS_BYTES_MAX), PACKED_SPAN_BYTES):
        trace_end, end = start + TRACE_ID_BYTES, start + PACKED_SPAN_BYTES
        ids = int.from_bytes(packed[start:trace_end], "big"), int.from_bytes(packed[trace_end:end], "big")
        if all(ids):
            found.append(ids)
    return found


def exemplar() -> dict[str, str] | None:
    """That of the current span."""
    span = current_span.get()
    return None if span is None else span.exemplar()

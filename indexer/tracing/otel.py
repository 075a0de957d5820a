"""The tracer over OpenTelemetry's SDK. Exporter, endpoint, headers, sampler and batching are as its standard variables say."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from indexer import __version__
from indexer.tracing.current import Attributes, Span, current_span, unpack_spans

SERVICE = "kv-indexer"
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
# Only the one that is used is imported: each takes a tenth of a second.
EXPORTERS = {
    "grpc": "opentelemetry.exporter.otlp.proto.grpc.trace_exporter",
    "http/protobuf": "opentelemetry.exporter.otlp.proto.http.trace_exporter",
}
# What is not sent by then is lost.
SHUTDOWN_S = 5.0
_propagator = TraceContextTextMapPropagator()


def make_exporter(environ: Mapping[str, str]) -> SpanExporter:
    """The exporter of the protocol that the variables name. Raises ValueError for another one, ModuleNotFoundError where it is not installed."""
    protocol = next((environ[name] for name in PROTOCOLS if environ.get(name)), "http/protobuf")
    if protocol not in EXPORTERS:
        raise ValueError(f"the protocol {protocol!r} should be one of {', '.join(EXPORTERS)}")
    more = {"session": import_module("indexer.tracing.bounded_answers").bounded_session()} if protocol == "http/protobuf" else {}
    exporter: SpanExporter = import_module(EXPORTERS[protocol]).OTLPSpanExporter(**more)
    return exporter


class OtelSpan:
    """Implements `Span`."""

    def __init__(self, span: trace.Span) -> None:
        self.span = span

    def note(self, attributes: Attributes) -> None:
        self.span.set_attributes(dict(attributes))

    def fail(self, why: str) -> None:
        self.span.set_status(trace.StatusCode.ERROR, why)

    def headers(self) -> dict[str, str]:
        found: dict[str, str] = {}
        _propagator.inject(found, trace.set_span_in_context(self.span))
        return found

    def exemplar(self) -> dict[str, str] | None:
        return _exemplar(self.span)


class OtelTracer:
    """Implements `Tracer`. Spans are sent by a thread of its own."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        is_named = environ.get("OTEL_SERVICE_NAME") or "service.name=" in environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
        resource = Resource.create({"service.version": __version__, **({} if is_named else {"service.name": SERVICE})})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(make_exporter(environ)))
        self._tracer = self._provider.get_tracer("kv-event-indexer", __version__)

    @contextmanager
    def request(self, name: str, headers: Mapping[str, str], attributes: Attributes) -> Iterator[Span]:
        with self._current(name, trace.SpanKind.SERVER, _propagator.extract(headers, contexts.Context()), attributes) as span:
            yield span

    @contextmanager
    def call(self, name: str, attributes: Attributes) -> Iterator[Span]:
        above = current_span.get()
        parent = trace.set_span_in_context(above.span, contexts.Context()) if isinstance(above, OtelSpan) else contexts.Context()
        with self._current(name, trace.SpanKind.CLIENT, parent, attributes) as span:
            yield span

    @contextmanager
    def _current(self, name: str, kind: trace.SpanKind, parent: contexts.Context, attributes: Attributes) -> Iterator[Span]:
        span = OtelSpan(self._tracer.start_span(name, context=parent, kind=kind, attributes=dict(attributes)))
        token = current_span.set(span)
        try:
            yield span
        except BaseException as error:
            span.fail(type(error).__name__)
            raise
        finally:
            current_span.reset(token)
            span.span.end()

    def past(self, name: str, attributes: Attributes, *parts: tuple[str, int], follows: bytes = b"") -> dict[str, str] | None:
        ended_ns = time.time_ns()
        kind = trace.SpanKind.CONSUMER
        root, links = _after(follows) if follows else (contexts.Context(), ())
        whole = self._tracer.start_span(name, context=root, kind=kind, attributes=dict(attributes), links=links, start_time=parts[0][1])
        if whole.is_recording():
            parent = trace.set_span_in_context(whole, root)
            ends = [*(start_ns for _, start_ns in parts[1:]), ended_ns]
            for (part, start_ns), end_ns in zip(parts, ends, strict=True):
                self._tracer.start_span(part, context=parent, start_time=start_ns).end(end_ns)
        whole.end(ended_ns)
        return _exemplar(whole)

    def shutdown(self) -> None:
        # The library waits for 30 s where a receiver does not answer. A daemon thread does not keep the process.
        ending = threading.Thread(target=self._provider.shutdown, name="end of traces", daemon=True)
        ending.start()
        ending.join(SHUTDOWN_S)


def _after(packed: bytes) -> tuple[contexts.Context, tuple[trace.Link, ...]]:
    """The context of what follows from these spans, and its links. They were sampled: only such are passed on."""
    sampled = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    first, *others = [trace.SpanContext(*ids, is_remote=True, trace_flags=sampled) for ids in unpack_spans(packed)] or [trace.INVALID_SPAN_CONTEXT]
    return trace.set_span_in_context(trace.NonRecordingSpan(first), contexts.Context()), tuple(map(trace.Link, others))


def _exemplar(span: trace.Span) -> dict[str, str] | None:
    found = span.get_span_context()
    if not found.trace_flags.sampled:
        return None
    return {"trace_id": trace.format_trace_id(found.trace_id), "span_id": trace.format_span_id(found.span_id)}

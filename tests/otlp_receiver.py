"""A receiver of OTLP for tests, over HTTP and gRPC: it decodes what arrives with the protocol's own messages."""

import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse

from tests.waiting import wait_until

EXPORT = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
PATH = "/v1/traces"


class SpanSeen(NamedTuple):
    """Ids as hexadecimal digits. `parent`: empty for the first span of a trace. `service`: of its resource. Times are nanoseconds since the epoch.

    `links`: of trace and span.
    """

    name: str
    trace: str
    span: str
    parent: str
    kind: int
    is_error: bool
    start_ns: int
    end_ns: int
    attributes: dict[str, Any]
    service: str
    links: tuple[tuple[str, str], ...]


class OtlpReceiver:
    """`with OtlpReceiver() as receiver:` what is sent to `http_url` or `grpc_url` is in `spans`."""

    def __enter__(self) -> Self:
        self.spans: list[SpanSeen] = []
        self.is_refusing = False
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                is_good = self.path == PATH and not receiver.is_refusing
                if is_good:
                    receiver.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200 if is_good else 400)
                self.send_header("Content-Type", "application/x-protobuf")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, name="OTLP over HTTP", daemon=True)
        self._thread.start()
        self._grpc = grpc.server(ThreadPoolExecutor(2))
        self._grpc.add_generic_rpc_handlers((_Service(self),))
        self._grpc_port = self._grpc.add_insecure_port("127.0.0.1:0")
        self._grpc.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._grpc.stop(0).wait(10)
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(10)

    @property
    def http_url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_port}"

    @property
    def grpc_url(self) -> str:
        return f"http://127.0.0.1:{self._grpc_port}"

    def take(self, request: Any) -> None:
        for resource in request.resource_spans:
            service = {each.key: each.value.string_value for each in resource.resource.attributes}["service.name"]
            for scope in resource.scope_spans:
                self.spans += [_seen(span, service) for span in scope.spans]

    def named(self, name: str) -> list[SpanSeen]:
        return [span for span in self.spans if span.name == name]

    def wait_for(self, name: str, count: int = 1) -> list[SpanSeen]:
        """Wait until so many spans of this name have arrived."""
        wait_until(lambda: len(self.named(name)) >= count, 20, lambda: f"{count} of {name} among {[span.name for span in self.spans]}")
        return self.named(name)


class _Service(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    def __init__(self, receiver: OtlpReceiver) -> None:
        self._receiver = receiver

    def service(self, details: Any) -> Any:
        if details.method != EXPORT:
            return None

        def export(request: Any, _: Any) -> Any:
            self._receiver.take(request)
            return ExportTraceServiceResponse()

        return grpc.unary_unary_rpc_method_handler(
            export, request_deserializer=ExportTraceServiceRequest.FromString, response_serializer=ExportTraceServiceResponse.SerializeToString
        )


def _seen(span: Any, service: str) -> SpanSeen:
    values = {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes}
    ids = (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex())
    links = tuple((link.trace_id.hex(), link.span_id.hex()) for link in span.links)
    return SpanSeen(span.name, *ids, span.kind, span.status.code == 2, span.start_time_unix_nano, span.end_time_unix_nano, values, service, links)

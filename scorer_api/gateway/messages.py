"""The messages of Envoy's ext_proc protocol, as far as an endpoint picker reads and writes them.

`envoy.service.ext_proc.v3.ExternalProcessor/Process`: the gateway sends ProcessingRequest messages, and gets ProcessingResponse messages. Numbers of
fields are those of envoy/service/ext_proc/v3/external_processor.proto. How a pick is told: the endpoint picker protocol of the Gateway API Inference
Extension, version 1.0.0.
"""

from collections.abc import Mapping, Sequence
from enum import IntEnum

from msgspec import Struct

from scorer_api.rpc.protobuf import MalformedError, bytes_field, bytes_key, read_fields, text_of, varint_field, varint_key

DESTINATION = "x-gateway-destination-endpoint"
SUBSET_NAMESPACE, SUBSET = "envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset"
BALANCER_NAMESPACE, SERVED = "envoy.lb", "x-gateway-destination-endpoint-served"

# What is no body is small: headers, and a list of endpoints.
HEAD_BYTES_MAX = 2**20


class BodyMode(IntEnum):
    """How a gateway sends a body."""

    NONE = 0
    STREAMED = 1
    BUFFERED = 2
    BUFFERED_PARTIAL = 3
    FULL_DUPLEX = 4


class BodyModes(Struct, frozen=True):
    """What the first message of a call says of both bodies."""

    request: int
    response: int


class RequestHeaders(Struct, frozen=True):
    """`headers`: those of REQUEST_HEADERS, with names in lower case. `subset`: endpoints to choose from, None for all."""

    headers: Mapping[str, str]
    is_end: bool
    modes: BodyModes | None = None
    subset: tuple[str, ...] | None = None


class RequestBody(Struct, frozen=True):
    """A piece of the body, or all of it. `opening`: what it tells of the request where a call begins with it, None for nothing."""

    body: memoryview
    is_end: bool
    opening: RequestHeaders | None = None


class RequestTrailers(Struct, frozen=True):
    """They end the request."""


class ResponseHeaders(Struct, frozen=True):
    """`headers`: those of RESPONSE_HEADERS. `served`: the endpoint that answered, None where the gateway does not say."""

    headers: Mapping[str, str]
    is_end: bool
    modes: BodyModes | None = None
    served: str | None = None


class ResponseBody(Struct, frozen=True):
    """A piece of the body, or all of it."""

    body: memoryview
    is_end: bool


class ResponseTrailers(Struct, frozen=True):
    """They end the response."""


Message = RequestHeaders | RequestBody | RequestTrailers | ResponseHeaders | ResponseBody | ResponseTrailers

MODEL_REWRITE = ("x-llm-d-model-name-rewrite", "x-gateway-model-name-rewrite")
"""The model that the request is for in place of its own, by either family of names, the newer one first."""
PREFILLER = "x-prefiller-host-port"
HOPS = (PREFILLER, "x-encoder-hosts-ports", "x-data-parallel-host-port", "x-kv-cache-source-host-port")
"""Headers by which a pod is told to call others. Only a picker may set them, never a client."""
REQUEST_HEADERS = frozenset(
    (
        *(":path", "content-length", "content-type", "content-encoding", "x-session-id", "anthropic-version", "x-gateway-model-name"),
        *("traceparent", "tracestate"),
        *MODEL_REWRITE,
        *HOPS,
    )
)
ATTRIBUTES = {"request.path": ":path"} | {f'request.headers["{name}"]': name for name in REQUEST_HEADERS if name[0] != ":"}
"""Envoy's names of these headers in `request_attributes`, for calls that do not begin with headers."""
RESPONSE_HEADERS = frozenset((":status", "content-encoding"))

# Keys of the fields of a ProcessingRequest.
_REQUEST_HEADERS, _RESPONSE_HEADERS, _REQUEST_BODY, _RESPONSE_BODY, _REQUEST_TRAILERS, _RESPONSE_TRAILERS = map(bytes_key, range(2, 8))
_METADATA, _ATTRIBUTES, _MODES = bytes_key(8), bytes_key(9), bytes_key(11)
_KINDS = frozenset((_REQUEST_HEADERS, _RESPONSE_HEADERS, _REQUEST_BODY, _RESPONSE_BODY, _REQUEST_TRAILERS, _RESPONSE_TRAILERS))
_BYTES_1, _BYTES_2, _BYTES_3, _BYTES_6 = map(bytes_key, (1, 2, 3, 6))
_VARINT_1, _VARINT_2, _VARINT_3 = map(varint_key, (1, 2, 3))
_WANTED = {of: {name.encode(): name for name in names} for of, names in ((_REQUEST_HEADERS, REQUEST_HEADERS), (_RESPONSE_HEADERS, RESPONSE_HEADERS))}


def read_message(data: bytes) -> Message | None:
    """What a ProcessingRequest holds; None for what the protocol may have besides. Raises MalformedError."""
    kind, content = 0, memoryview(b"")
    metadata = modes = attributes = None
    for key, value in read_fields(memoryview(data)):
        if key in _KINDS:
            kind, content = key, value
        elif key == _METADATA:
            metadata = value
        elif key == _MODES:
            modes = _read_modes(value)
        elif key == _ATTRIBUTES:
            attributes = value
    if kind == _REQUEST_BODY:
        if modes is None and attributes is None:
            return RequestBody(*_read_body(content))
        if len(data) - len(content) > HEAD_BYTES_MAX:
            raise MalformedError(f"attributes of more than {HEAD_BYTES_MAX} bytes")
        headers = {} if attributes is None else _read_attributes(attributes)
        return RequestBody(*_read_body(content), RequestHeaders(headers, False, modes, _subset_in(metadata)))
    if kind == _RESPONSE_BODY:
        return ResponseBody(*_read_body(content))
    if len(data) > HEAD_BYTES_MAX:
        raise MalformedError(f"headers of more than {HEAD_BYTES_MAX} bytes")
    if kind == _REQUEST_HEADERS:
        return RequestHeaders(*_read_headers(content, _WANTED[kind]), modes, _subset_in(metadata))
    if kind == _RESPONSE_HEADERS:
        served = None if metadata is None else _read_metadata(metadata, BALANCER_NAMESPACE, SERVED)
        return ResponseHeaders(*_read_headers(content, _WANTED[kind]), modes, served[0] if served else None)
    if kind == _REQUEST_TRAILERS:
        return RequestTrailers()
    return ResponseTrailers() if kind == _RESPONSE_TRAILERS else None


def _subset_in(metadata: memoryview | None) -> tuple[str, ...] | None:
    return None if metadata is None else _read_metadata(metadata, SUBSET_NAMESPACE, SUBSET)


def _read_attributes(data: memoryview) -> dict[str, str]:
    """The wanted headers in an entry of `attributes`, a filter's google.protobuf.Struct whose names are those of `request_attributes`."""
    found: dict[str, str] = {}
    for key, struct in read_fields(data):
        if key == _BYTES_2:
            _read_struct(struct, found)
    return found


def _read_struct(data: memoryview, found: dict[str, str]) -> None:
    """Adds the texts of a google.protobuf.Struct that are wanted headers."""
    for key, field in read_fields(data):
        if key != _BYTES_1:
            continue
        name, content = None, memoryview(b"")
        for field_key, value in read_fields(field):
            if field_key == _BYTES_1:
                name = ATTRIBUTES.get(text_of(value))
            elif field_key == _BYTES_2:
                content = value
        if name is not None:
            found.update((name, text_of(text)) for value_key, text in read_fields(content) if value_key == _BYTES_3)


def _read_modes(data: memoryview) -> BodyModes:
    request = response = 0
    for key, value in read_fields(data):
        if key == _VARINT_1:
            request = value
        elif key == _VARINT_2:
            response = value
    return BodyModes(request, response)


def _read_body(data: memoryview) -> tuple[memoryview, bool]:
    body, is_end = memoryview(b""), False
    for key, value in read_fields(data):
        if key == _BYTES_1:
            body = value
        elif key == _VARINT_2:
            is_end = bool(value)
    return body, is_end


def _read_headers(data: memoryview, wanted: Mapping[bytes, str]) -> tuple[dict[str, str], bool]:
    """The wanted headers, of a repeated one the last, and whether nothing follows them."""
    found: dict[str, str] = {}
    is_end = False
    for key, value in read_fields(data):
        if key == _BYTES_1:
            for map_key, header in read_fields(value):
                if map_key == _BYTES_1:
                    _read_header(header, wanted, found)
        elif key == _VARINT_3:
            is_end = bool(value)
    return found, is_end


def _read_header(data: memoryview, wanted: Mapping[bytes, str], found: dict[str, str]) -> None:
    """Gateways send a value under 2 or, as raw bytes, under 3; one of them is empty."""
    if _is_other(data, wanted):
        return
    name = None
    text = ""
    for key, value in read_fields(data):
        if key == _BYTES_1:
            if (name := wanted.get(bytes(value).lower())) is None:
                return
        elif key in (_BYTES_2, _BYTES_3) and value:
            text = text_of(value)
    if name is not None:
        found[name] = text


def _is_other(data: memoryview, wanted: Mapping[bytes, str]) -> bool:
    """Whether the header begins with a short name that is not wanted, as most do."""
    if len(data) < 2 or data[0] != _BYTES_1 or data[1] > 127:
        return False
    name = bytes(data[2 : 2 + data[1]])
    return len(name) == data[1] and name.lower() not in wanted


def _read_metadata(data: memoryview, namespace: str, name: str) -> tuple[str, ...] | None:
    """The texts under a name of a namespace in `filter_metadata`: a list, or one text with commas. None where there are none."""
    for key, entry in read_fields(data):
        if key == _BYTES_1 and (struct := _read_entry(entry, namespace)) is not None:
            for field_key, field in read_fields(struct):
                if field_key == _BYTES_1 and (value := _read_entry(field, name)) is not None:
                    return _read_texts(value)
    return None


def _read_entry(data: memoryview, name: str) -> memoryview | None:
    """The value of an entry of a map, if it is the one of this name."""
    is_named, found = False, memoryview(b"")
    for key, value in read_fields(data):
        if key == _BYTES_1:
            is_named = value == name.encode()
        elif key == _BYTES_2:
            found = value
    return found if is_named else None


def _read_texts(value: memoryview) -> tuple[str, ...] | None:
    """Of a google.protobuf.Value: a text (3), or the texts of a list (6)."""
    found: list[str] = []
    is_given = False
    for key, content in read_fields(value):
        if key == _BYTES_3:
            is_given = True
            found += text_of(content).split(",")
        elif key == _BYTES_6:
            is_given = True
            for item_key, item in read_fields(content):
                if item_key == _BYTES_1:
                    found += (text_of(text) for text_key, text in read_fields(item) if text_key == _BYTES_3)
    return tuple(text for word in found if (text := word.strip())) if is_given else None


# What is sent

HEADERS_DONE = bytes_field(1, bytes_field(1, b""))
"""Answers request headers: nothing is changed."""
RESPONSE_HEADERS_DONE = bytes_field(2, bytes_field(1, b""))
RESPONSE_BODY_DONE = bytes_field(4, bytes_field(1, b""))
TRAILERS_DONE = bytes_field(5, b"")
RESPONSE_TRAILERS_DONE = bytes_field(6, b"")
_OVERWRITE = varint_field(3, 2)
_CLEAR_ROUTE_CACHE = varint_field(5, 1)


class Mutation(Struct, frozen=True):
    """What a pick changes of a request. `destination`: `address:port`, and fallbacks behind commas. `headers`: more to set; `removed`: to remove."""

    destination: str
    headers: Sequence[tuple[str, str]] = ()
    removed: Sequence[str] = ()


def pick_in_headers(mutation: Mutation) -> bytes:
    """The pick as the answer to the request's headers."""
    return bytes_field(1, bytes_field(1, _common(mutation))) + _metadata(mutation.destination)


def pick_in_body(mutation: Mutation, body: bytes | None = None) -> bytes:
    """The pick as the answer to the request's body. `body`: in place of that which came, None to leave it."""
    common = _common(mutation) if body is None else _common(mutation) + _replacement(body)
    return bytes_field(3, bytes_field(1, common)) + _metadata(mutation.destination)


def pick_in_metadata(mutation: Mutation, body: bytes | None = None) -> bytes:
    """The pick as the answer to a body without headers, which a gateway then lets nobody change: what would be set of them is in the metadata."""
    common = b"" if body is None else _replacement(body)
    return bytes_field(3, bytes_field(1, common)) + _metadata(mutation.destination, mutation.headers)


def request_piece(body: bytes | memoryview, *, is_end: bool) -> bytes:
    """A piece of the request's body, for the pod. A gateway takes 64 kB at most."""
    return bytes_field(3, _streamed(body, is_end=is_end))


def response_piece(body: bytes | memoryview, *, is_end: bool) -> bytes:
    """A piece of the response's body, for the client."""
    return bytes_field(4, _streamed(body, is_end=is_end))


def immediate_response(status: int, body: bytes, headers: Sequence[tuple[str, str]], details: str) -> bytes:
    """The gateway answers its client with this, and the call is over. `details`: for the gateway's log."""
    content = bytes_field(1, varint_field(1, status)) + bytes_field(2, _header_mutation(headers))
    return bytes_field(7, content + bytes_field(3, body) + bytes_field(5, details.encode()))


def _common(mutation: Mutation) -> bytes:
    headers = _header_mutation(((DESTINATION, mutation.destination), *mutation.headers), mutation.removed)
    return bytes_field(2, headers) + _CLEAR_ROUTE_CACHE


def _header_mutation(headers: Sequence[tuple[str, str]], removed: Sequence[str] = ()) -> bytes:
    """Values go under `raw_value`, which all gateways read."""
    options = [bytes_field(1, bytes_field(1, bytes_field(1, name.encode()) + bytes_field(3, value.encode())) + _OVERWRITE) for name, value in headers]
    return b"".join([*options, *(bytes_field(2, name.encode()) for name in removed)])


def _replacement(body: bytes) -> bytes:
    return bytes_field(3, bytes_field(1, body))


def _metadata(destination: str, more: Sequence[tuple[str, str]] = ()) -> bytes:
    """`dynamic_metadata`, a google.protobuf.Struct: {"envoy.lb": {"x-gateway-destination-endpoint": …}}."""
    inner = b"".join(_struct_entry(name, bytes_field(3, value.encode())) for name, value in ((DESTINATION, destination), *more))
    return bytes_field(8, _struct_entry(BALANCER_NAMESPACE, bytes_field(5, inner)))


def _struct_entry(name: str, value: bytes) -> bytes:
    return bytes_field(1, bytes_field(1, name.encode()) + bytes_field(2, value))


def _streamed(body: bytes | memoryview, *, is_end: bool) -> bytes:
    piece = bytes_field(1, bytes(body)) if body else b""
    return bytes_field(1, bytes_field(3, bytes_field(3, piece + varint_field(2, 1) if is_end else piece)))

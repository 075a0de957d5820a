"""A gateway's end of Envoy's ext_proc protocol for tests: what it sends, and what it understands of the replies.

It shares no code with the product. Numbers are those of external_processor.proto.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

FULL_DUPLEX, BUFFERED, STREAMED, NONE = 4, 2, 1, 0
REQUEST_HEADERS, RESPONSE_HEADERS, REQUEST_BODY, RESPONSE_BODY, REQUEST_TRAILERS, RESPONSE_TRAILERS = range(2, 8)
DESTINATION = "x-gateway-destination-endpoint"
Value = bytes | str | int


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value % 128 + 128]) + varint(value // 128)


def message(*fields: tuple[int, Value]) -> bytes:
    """The fields in this order. Numbers are varints."""
    written = b""
    for number, value in fields:
        if isinstance(value, int):
            written += varint(number * 8) + varint(value)
        else:
            content = value.encode() if isinstance(value, str) else value
            written += varint(number * 8 + 2) + varint(len(content)) + content
    return written


def headers(kind: int, values: Mapping[str, str], *, is_end: bool = False, name: int = 3, more: bytes = b"") -> bytes:
    """Request or response headers. `name`: the number under which values are. `more`: fields of the message besides."""
    entries = [(1, message((1, key), (name, value))) for key, value in values.items()]
    return message((kind, message((1, message(*entries)), (3, int(is_end))))) + more


def modes(request: int, response: int = NONE) -> bytes:
    """The `protocol_config` of a first message."""
    return message((11, message(*((number, mode) for number, mode in ((1, request), (2, response)) if mode))))


def metadata(namespace: str, key: str, value: bytes) -> bytes:
    """`metadata_context` with one google.protobuf.Value."""
    struct = message((1, message((1, key), (2, value))))
    return message((8, message((1, message((1, namespace), (2, struct))))))


def attributes(values: Mapping[str, str]) -> bytes:
    """`attributes` of Envoy's filter: names of `request_attributes` → texts."""
    struct = message(*((1, message((1, name), (2, text_value(value)))) for name, value in values.items()))
    return message((9, message((1, "envoy.filters.http.ext_proc"), (2, struct))))


def text_value(text: str) -> bytes:
    return message((3, text))


def list_value(texts: Sequence[str]) -> bytes:
    return message((6, message(*((1, text_value(text)) for text in texts))))


def subset(value: bytes) -> bytes:
    return metadata("envoy.lb.subset_hint", "x-gateway-destination-endpoint-subset", value)


def served(endpoint: str) -> bytes:
    return metadata("envoy.lb", "x-gateway-destination-endpoint-served", text_value(endpoint))


def body(kind: int, content: bytes, *, is_end: bool = False, more: bytes = b"") -> bytes:
    """`more`: fields of the message besides."""
    return message((kind, message((1, content), (2, int(is_end))))) + more


def trailers(kind: int) -> bytes:
    return message((kind, b""))


def fields_of(data: bytes) -> dict[int, list[Any]]:
    """Number → values, bytes or int."""
    found: dict[int, list[Any]] = {}
    at = 0

    def number() -> int:
        nonlocal at
        result = shift = 0
        while True:
            byte = data[at]
            at += 1
            result |= byte % 128 << shift
            if byte < 128:
                return result
            shift += 7

    while at < len(data):
        key = number()
        if key % 8 == 2:
            size = number()
            assert at + size <= len(data), "a field fits into its message"
            found.setdefault(key // 8, []).append(data[at : at + size])
            at += size
        else:
            assert key % 8 == 0, "only bytes and varints are sent"
            found.setdefault(key // 8, []).append(number())
    return found


def inner(data: bytes, *path: int) -> bytes:
    """What is under these numbers, empty where there is nothing."""
    for number in path:
        data = fields_of(data).get(number, [b""])[0]
    return data


class Reply(Struct, frozen=True):
    """A ProcessingResponse. `kind`: which message it answers, 7 for an immediate response. `body`, `is_end`: a piece in full duplex.

    `set`, `removed`: of headers. `replaced`: a body in place of a buffered one. `told`: `dynamic_metadata`, namespace → name → text.
    """

    kind: int
    set: dict[str, str]
    removed: list[str]
    body: bytes
    is_end: bool
    replaced: bytes | None
    clears_route: bool
    told: dict[str, dict[str, str]]
    status: int = 0


def _set_headers(mutation: bytes) -> dict[str, str]:
    found = {}
    for option in fields_of(mutation).get(1, []):
        assert fields_of(option)[3] == [2], "OVERWRITE_IF_EXISTS_OR_ADD"
        header = fields_of(inner(option, 1))
        found[header[1][0].decode()] = header[3][0].decode()
    return found


def _told(struct: bytes) -> dict[str, dict[str, str]]:
    return {
        inner(entry, 1).decode(): {inner(field, 1).decode(): inner(field, 2, 3).decode() for field in fields_of(inner(entry, 2, 5)).get(1, [])}
        for entry in fields_of(struct).get(1, [])
    }


def read_reply(data: bytes) -> Reply:
    fields = fields_of(data)
    (kind,) = fields.keys() - {8}
    (content,) = fields[kind]
    told = _told(fields.get(8, [b""])[0])
    if kind == 7:
        (status,) = fields_of(inner(content, 1))[1]
        return Reply(kind, _set_headers(inner(content, 2)), [], inner(content, 3), True, None, False, told, status)
    common = fields_of(content).get(1, [b""])[0] if kind < 5 else b""
    mutation = inner(common, 2)
    piece = fields_of(inner(common, 3, 3))
    replaced = fields_of(inner(common, 3)).get(1, [None])[0]
    return Reply(
        kind,
        _set_headers(mutation),
        [name.decode() for name in fields_of(mutation).get(2, [])],
        piece.get(1, [b""])[0],
        bool(piece.get(2, [0])[0]),
        replaced,
        bool(fields_of(common).get(5, [0])[0]),
        told,
    )

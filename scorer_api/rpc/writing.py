"""From values to messages: each message of the schema is written from the attributes of its name, whatever the type that has them."""

import struct
from collections.abc import Callable, Mapping
from typing import Any

from msgspec import UNSET

from scorer_api.rpc.protobuf import bytes_field, bytes_key, varint
from scorer_api.rpc.schema import SCHEMA, Field

Write = Callable[[Any], bytes]
_pack_double = struct.Struct("<d").pack
_LENGTH, _FIXED_64 = 2, 1
# A message of the schema that is a tuple in Python: its fields are the items, in their order.
TUPLES = frozenset({"Run"})


def _text(value: str) -> bytes:
    content = value.encode()
    return varint(len(content)) + content


_SCALARS: Mapping[str, tuple[int, Write]] = {
    "string": (_LENGTH, _text),
    "uint32": (0, varint),
    "uint64": (0, varint),
    "bool": (0, lambda value: b"\x01" if value else b"\x00"),
    "double": (_FIXED_64, _pack_double),
}


class _Writers:
    """Made once for each message, when it is first written."""

    def __init__(self) -> None:
        self._made: dict[str, Write] = {}

    def of(self, name: str) -> Write:
        if (write := self._made.get(name)) is None:
            fields = SCHEMA.messages[name]
            write = self._made[name] = self._of_tuple(fields) if name in TUPLES else self._of_struct(fields)
        return write

    def _of_struct(self, fields: tuple[Field, ...]) -> Write:
        plan = [(field.name, self._content(field), field.label in ("", "repeated", "map")) for field in fields]

        def write(value: Any) -> bytes:
            written = b""
            for name, content, leaves_out_default in plan:
                item = getattr(value, name)
                if item is None or item is UNSET or (leaves_out_default and not item):
                    continue
                written += content(item)
            return written

        return write

    def _of_tuple(self, fields: tuple[Field, ...]) -> Write:
        contents = [self._content(field) for field in fields]
        return lambda value: b"".join([content(item) for content, item in zip(contents, value, strict=True) if item])

    def _content(self, field: Field) -> Write:
        """The whole field, with its key."""
        if field.label == "map":
            return self._map(field)
        if field.label == "repeated":
            return self._repeated(field)
        return self._single(field)

    def _single(self, field: Field) -> Write:
        if (scalar := _SCALARS.get(field.kind)) is not None:
            wire_type, content = scalar
            key = varint(field.number << 3 | wire_type)
            return lambda value: key + content(value)
        key = varint(bytes_key(field.number))
        kind = field.kind

        def write(value: Any) -> bytes:
            message = self.of(kind)(value)
            return key + varint(len(message)) + message

        return write

    def _repeated(self, field: Field) -> Write:
        single = self._single(field)
        if field.kind in ("uint32", "uint64"):
            return lambda values: bytes_field(field.number, b"".join(map(varint, values)))
        return lambda values: b"".join(map(single, values))

    def _map(self, field: Field) -> Write:
        key, of_value = varint(bytes_key(field.number)), self._single(Field("value", 2, field.kind, "optional"))

        def write(values: Mapping[str, Any]) -> bytes:
            written = b""
            for name, value in values.items():
                entry = b"\n" + _text(name) + of_value(value)
                written += key + varint(len(entry)) + entry
            return written

        return write


_writers = _Writers()


def encode(name: str, value: Any) -> bytes:
    """The message of this name."""
    return _writers.of(name)(value)

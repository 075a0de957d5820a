"""What `scorer.proto` says, read from the file itself: there is no generated code, and no second list of numbers that could differ from it.

Of the language (protobuf.dev/reference/protobuf/proto3-spec) it reads what the file uses.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from msgspec import Struct

PATH = Path(__file__).with_name("scorer.proto")
Label = Literal["", "optional", "repeated", "oneof", "map"]

_LABELS: Mapping[str | None, Label] = {None: "", "optional": "optional", "repeated": "repeated"}
_COMMENT = re.compile(r"//[^\n]*")
_PACKAGE = re.compile(r"\bpackage\s+([\w.]+)\s*;")
_SERVICE = re.compile(r"\bservice\s+(\w+)\s*\{")
_BLOCK = re.compile(r"\bmessage\s+(\w+)\s*\{((?:[^{}]|\{[^{}]*\})*)\}")
_METHOD = re.compile(r"\brpc\s+(\w+)\s*\(\s*(\w+)\s*\)\s*returns\s*\(\s*(?:stream\s+)?(\w+)\s*\)\s*;")
_ONE_OF = re.compile(r"\boneof\s+\w+\s*\{([^{}]*)\}")
_FIELD = re.compile(r"\s*(?:(optional|repeated)\s+)?(?:map\s*<\s*string\s*,\s*(\w+)\s*>|(\w+))\s+(\w+)\s*=\s*(\d+)\s*")


class Field(Struct, frozen=True):
    """`kind`: a scalar type or the name of a message; of a map, whose keys are texts, that of its values."""

    name: str
    number: int
    kind: str
    label: Label


class Method(Struct, frozen=True):
    """`request`, `answer`: names of messages."""

    request: str
    answer: str


class Schema(Struct, frozen=True):
    """`service`: its full name. `messages`: name → fields, in the order of the file."""

    package: str
    service: str
    methods: Mapping[str, Method]
    messages: Mapping[str, tuple[Field, ...]]

    def path(self, method: str) -> str:
        """What a call of this method names."""
        return f"/{self.service}/{method}"


def read_schema(text: str) -> Schema:
    """Raises ValueError for what this module does not read."""
    text = _COMMENT.sub("", text)
    package, service = _PACKAGE.search(text), _SERVICE.search(text)
    if package is None or service is None:
        raise ValueError("there should be a package and a service")
    methods = {name: Method(request, answer) for name, request, answer in _METHOD.findall(text)}
    messages = {name: _fields(name, body) for name, body in _BLOCK.findall(text)}
    return Schema(package[1], f"{package[1]}.{service[1]}", methods, messages)


def _fields(message: str, body: str) -> tuple[Field, ...]:
    alone, chosen = _ONE_OF.sub("", body), ";".join(_ONE_OF.findall(body))
    found = [_field(message, line) for line in alone.split(";") if line.strip()]
    found += [Field(field.name, field.number, field.kind, "oneof") for line in chosen.split(";") if line.strip() for field in [_field(message, line)]]
    return tuple(found)


def _field(message: str, line: str) -> Field:
    if (match := _FIELD.fullmatch(line)) is None:
        raise ValueError(f"{message}: {line.strip()!r} is no field")
    label, of_map, kind, name, number = match.groups()
    return Field(name, int(number), of_map or kind, "map" if of_map else _LABELS[label])


SCHEMA = read_schema(PATH.read_text(encoding="utf-8"))

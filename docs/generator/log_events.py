"""The log events of the service, from the calls of `log` in the sources."""

import ast
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from docs.generator.markdown import code, table

ROOT = Path(__file__).parents[2]
PACKAGES = ("indexer", "scorer_api")
LEVELS = {"debug": "debug", "info": "info", "warning": "warning", "error": "error", "exception": "error"}


class LogEvent(NamedTuple):
    """One message. `fields`: what stands beside it, in the order of the sources."""

    message: str
    level: str
    fields: tuple[str, ...]


def log_events() -> list[LogEvent]:
    """Every message, in alphabetical order; one that is logged in several places has the fields of all."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for call in _calls():
        level = LEVELS[call.func.attr]  # type: ignore[attr-defined]  # _calls yields no others
        for message in _messages(call):
            found.setdefault((message, level), {}).update(dict.fromkeys(_fields(call)))
    return [LogEvent(message, level, tuple(fields)) for (message, level), fields in sorted(found.items())]


def log_events_table() -> str:
    """Every message with its level and fields."""
    return table(["Message", "Level", "Fields"], ([code(event.message), event.level, ", ".join(map(code, event.fields))] for event in log_events()))


@cache
def _trees() -> list[ast.Module]:
    """The sources of both packages."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return [ast.parse(path.read_text(encoding="utf-8")) for path in paths]


def _calls() -> Iterator[ast.Call]:
    """`log.LEVEL(…)` in either package."""
    for node in chain.from_iterable(map(ast.walk, _trees())):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level)) if level in LEVELS:
                yield node


@cache
def _shared_fields() -> dict[str, list[str]]:
    """Properties that return a dict literal, by name: `extra={**self.log_names, …}` has its fields too."""
    found = {}
    for node in chain.from_iterable(map(ast.walk, _trees())):
        match node:
            case ast.FunctionDef(name=name, body=[*_, ast.Return(value=ast.Dict() as literal)], decorator_list=[ast.Name(id="property")]):
                found[name] = list(_keys(literal))
    return found


def _messages(call: ast.Call) -> list[str]:
    """The message, where the call itself names it."""
    match call.args:
        case [ast.Constant(value=str(message)), *_]:
            return [message]
    return []


def _fields(call: ast.Call) -> Iterator[str]:
    for keyword in call.keywords:
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
            for key, value in zip(keyword.value.keys, keyword.value.values, strict=True):
                if key is None:
                    assert isinstance(value, ast.Attribute), f"line {value.lineno}: fields that are not in the call cannot be listed"
                    yield from _shared_fields()[value.attr]
            yield from _keys(keyword.value)


def _keys(literal: ast.Dict) -> Iterator[str]:
    yield from (key.value for key in literal.keys if isinstance(key, ast.Constant) and isinstance(key.value, str))

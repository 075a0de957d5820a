"""Every command with its flags, as the parser has them when it is asked for help."""

import argparse
import re
import runpy
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import Any

import pytest

from tests.contract.snapshots import check
from tests.running import ROOT

DEFAULT = re.compile(r"\(default: (.*)\)$", re.DOTALL)


class Shown(Exception):
    """Help was asked of this parser."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        self.parser = parser


def kv_indexer() -> None:
    """The command as it is installed."""
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    resolve_name(scripts["kv-indexer"])()


def package(name: str) -> Callable[[], Any]:
    """`python -m NAME`."""
    return partial(runpy.run_module, name, run_name="__main__")


def parser_of(monkeypatch: pytest.MonkeyPatch, command: Callable[[], Any], *words: str) -> argparse.ArgumentParser:
    """The parser that answers `COMMAND … --help`, complete by then."""

    def show(parser: argparse.ArgumentParser, file: Any = None) -> None:
        raise Shown(parser)

    monkeypatch.setattr(argparse.ArgumentParser, "print_help", show)
    monkeypatch.setattr(sys, "argv", ["kv-indexer", *words, "--help"])
    with pytest.raises(Shown) as shown:
        command()
    return shown.value.parser


def arguments(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Flags and positional arguments by name, with what they take. Help texts may change, all but the default that they tell of."""
    found: dict[str, Any] = {name_of(action): described(action) for action in parser._actions if not isinstance(action, argparse._SubParsersAction)}
    for number, group in enumerate(parser._mutually_exclusive_groups):
        found[f"group {number}"] = {"one of": [name_of(action) for action in group._group_actions], "required": group.required}
    return found


def name_of(action: argparse.Action) -> str:
    return " ".join(action.option_strings) or action.dest


def described(action: argparse.Action) -> dict[str, Any]:
    told = DEFAULT.search((action.help or "").replace("%%", "%"))
    found = {
        "action": type(action).__name__.strip("_").removesuffix("Action").lower(),
        "nargs": action.nargs,
        "const": action.const,
        "choices": None if action.choices is None else sorted(action.choices),
        "required": action.required or None,
        "metavar": action.metavar,
        "default": None if action.default in (argparse.SUPPRESS, None) else repr(action.default),
        "default in help": told[1] if told and told[1] != "%(default)s" else None,
    }
    return {key: value for key, value in found.items() if value is not None}


def test_the_commands_and_their_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    root = parser_of(monkeypatch, kv_indexer)
    (commands,) = (action for action in root._actions if isinstance(action, argparse._SubParsersAction))
    found = {"kv-indexer": arguments(root)}
    for name in commands.choices:
        parser = parser_of(monkeypatch, kv_indexer, name)
        assert parser.prog.endswith(name)
        found[f"kv-indexer {name}"] = arguments(parser)
    check("command-line", found)


def test_the_package_that_indexes_is_a_command_with_the_flags_of_ingest(monkeypatch: pytest.MonkeyPatch) -> None:
    ingest = arguments(parser_of(monkeypatch, kv_indexer, "ingest"))
    found = arguments(parser_of(monkeypatch, package("indexer")))
    assert found.pop("--version")
    assert found == ingest


def test_the_package_that_scores_is_a_command_with_the_flags_of_api(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments(parser_of(monkeypatch, package("scorer_api"))) == arguments(parser_of(monkeypatch, kv_indexer, "api"))

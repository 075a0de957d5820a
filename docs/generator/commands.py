"""The commands and their flags, from the parser of `kv-indexer`."""

import argparse
from collections.abc import Iterator

from docs.generator.markdown import cell, code, sections, table
from indexer.config.settings import fields
from scorer_api.cli.main import make_parser


def commands() -> dict[str, tuple[str, argparse.ArgumentParser]]:
    """Name → its purpose and its parser."""
    (choices,) = (action for action in make_parser()._actions if isinstance(action, argparse._SubParsersAction))
    purposes = {choice.dest: choice.help or "" for choice in choices._choices_actions}
    for parser in choices.choices.values():
        parser.declare_arguments()
    return {name: (purposes[name], parser) for name, parser in choices.choices.items()}


def commands_section() -> str:
    """A section for each command: its purpose, and a table of its flags."""
    return sections(3, ((code(f"kv-indexer {name}"), _described(purpose, parser)) for name, (purpose, parser) in commands().items()))


def _described(purpose: str, parser: argparse.ArgumentParser) -> str:
    settings = {field.flag for field in fields()}
    takes_settings = settings <= {flag for action in parser._actions for flag in action.option_strings}
    own = [action for action in parser._actions if action.dest != "help" and not (takes_settings and settings & set(action.option_strings))]
    text = f"{purpose[:1].upper()}{cell(purpose[1:])}."
    if takes_settings:
        text += " It takes every [setting](settings.md) as a flag" + (", and:" if own else ".")
    if own:
        text += "\n\n" + table(["Argument", "Default", "Meaning"], map(_row, own))
    return text


def _row(action: argparse.Action) -> list[str]:
    return [_shown(action), code(_default(action)), cell("; ".join(_meaning(action)))]


def _shown(action: argparse.Action) -> str:
    """The flag with the name of its value, or the name of a positional argument."""
    if not action.option_strings:
        return code(str(action.metavar or action.dest))
    return code(f"{action.option_strings[0]} {_value_name(action)}".strip())


def _value_name(action: argparse.Action) -> str:
    if action.nargs == 0:
        return ""
    return str(action.metavar or (action.choices and "|".join(map(str, action.choices))) or action.dest.upper())


def _default(action: argparse.Action) -> str:
    return "" if action.default in (None, False, [], argparse.SUPPRESS) else str(action.default)


def _meaning(action: argparse.Action) -> Iterator[str]:
    """The help without the default, which has a column of its own."""
    if action.required:
        yield "required"
    if action.help:
        yield action.help.replace(" (default: %(default)s)", "").replace("%%", "%")

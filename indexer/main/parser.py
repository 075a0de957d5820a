"""The parser of a command line, and the flags of the commands that serve."""

import argparse
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from itertools import groupby, takewhile
from typing import Any, NoReturn

from indexer.config.settings import Field, fields, limit_fields, moved
from indexer.masking import masked

USAGE_ERROR = 2
# As wide as the longest flag with its value, so that each flag and its help share a line.
HELP_COLUMN = 36
# How similar a flag is to the one that was probably meant: two letters that are swapped, or one that is wrong.
CLOSE = 0.8


class Parser(argparse.ArgumentParser):
    """Reports a mistake on the command line in one line, without repeating what may be secret in it.

    `declare`: adds the arguments; called when the command is chosen, not before.
    """

    def __init__(self, *args: Any, declare: Callable[["Parser"], None] | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **{"formatter_class": _HelpFormatter, **kwargs})
        self._declare = declare

    def declare_arguments(self) -> None:
        """Add the arguments, unless that was done before."""
        if self._declare is not None:
            declare, self._declare = self._declare, None
            declare(self)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        """argparse calls it for a command when that is the chosen one."""
        self.declare_arguments()
        words = list(sys.argv[1:] if args is None else args)
        self._check_flags(words)
        return super().parse_known_args(words, namespace)

    def _check_flags(self, words: Sequence[str]) -> None:
        """An unknown flag is reported first: argparse would say what is missing instead, and repeat the values of unknown flags."""
        if self._subparsers is not None:
            words = list(takewhile(lambda word: word.startswith("-"), words))  # the others are the command's
        flags = [word.partition("=")[0] for word in takewhile(lambda word: word != "--", words) if word.startswith("--") and " " not in word]
        unknown = [flag for flag in flags if not self._is_known(flag)]
        limits = {field.flag: field.name for field in limit_fields()}
        for flag in unknown:
            if flag in limits:
                self.error(f"{flag} {moved(limits[flag])}")
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(map(self._with_closest, unknown))}")

    def _is_known(self, flag: str) -> bool:
        known = self._option_string_actions
        return flag in known or (self.allow_abbrev and any(each.startswith(flag) for each in known))

    def _with_closest(self, flag: str) -> str:
        """An unknown flag, with the one that was probably meant, or those that it begins."""
        known = self._option_string_actions
        meant = [each for each in known if each.startswith(f"{flag}-")] or get_close_matches(flag, known, n=1, cutoff=CLOSE)
        return f"{flag} (did you mean {' or '.join(meant)}?)" if meant else flag

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> argparse.Namespace:  # type: ignore[override]
        """argparse would repeat the values of unknown flags."""
        parsed: argparse.Namespace
        parsed, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [word.partition("=")[0] for word in unknown if word.startswith("-")]
            self.error(f"unrecognized arguments: {' '.join(flags) or f'{len(unknown)} words that belong to no flag'}")
        return parsed

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: {masked(message)}; see {self.prog} --help\n")


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=HELP_COLUMN)


def add_config(parser: argparse.ArgumentParser, *, with_engines: bool = True) -> None:
    """What a command that serves takes: engines, a file, and a flag for each setting."""
    parser.set_defaults(engine=[])
    if with_engines:
        parser.add_argument("--engine", action="append", metavar="SPEC", help="pod=…,model=…,events=tcp://…[,replay=tcp://…]; may be repeated")
    parser.add_argument("--config", metavar="FILE", help="TOML file with settings, engines and limits; read again when it changes and on SIGHUP")
    parser.usage = f"%(prog)s {'[--engine SPEC …] ' if with_engines else ''}[--config FILE] [--SETTING VALUE …]"
    add_settings(parser)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """A flag for each setting, grouped as in the documentation."""
    for group, members in groupby(fields(), lambda field: field.group):
        heading = parser.add_argument_group(group)
        for field in members:
            more: dict[str, Any] = {"action": "append"} if field.is_list else {"nargs": "?", "const": "true"} if field.is_switch else {}
            heading.add_argument(field.flag, dest=field.name, default=argparse.SUPPRESS, metavar=_value_name(field), help=_help(field), **more)


def _value_name(field: Field) -> str:
    if field.name.endswith("_s"):
        return "SECONDS"
    if field.name.endswith("_bytes_max"):
        return "BYTES"
    return "FILE" if field.name.endswith(("_file", "tls_cert", "tls_key")) else "VALUE"


def _shown(default: Any) -> str:
    return str(default).lower() if isinstance(default, bool) else str(default)


def _help(field: Field) -> str:
    default = "" if field.default in (None, "", ()) else f" (default: {_shown(field.default)})"
    return f"{field.description.removesuffix('.')}{default}".replace("%", "%%")

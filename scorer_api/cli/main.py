"""The `kv-indexer` command: its parser, with a module of this package for each command."""

import argparse
from collections.abc import Sequence
from functools import partial
from importlib import import_module

from indexer import __version__
from indexer.compiled import ACTIVE
from indexer.main.command import run_command
from indexer.main.parser import Parser

COMMANDS = {
    "serve": "follow engines and answer scores over HTTP",
    "ingest": "follow engines, alone or with others, and write what they cache to Redis",
    "api": "answer scores over HTTP from what indexers write to Redis",
    "score": "ask a running service for the scores of a prompt",
    "route": "ask a running service which pod a prompt should go to",
    "explain": "ask a running service why each pod's match of a prompt ends where it does",
    "doctor": "find out why scores are zero, or what else is wrong, and how to fix it",
    "pods": "list the pods of a running service and their streams",
    "hot": "list the prefixes that are asked for most, and the pods that hold them",
    "top": "show a live view of a running service in the terminal",
    "record": "write what engines publish to files",
    "replay": "play such a file as the engines would; prints their specs",
    "simulate": "compare routing policies on a simulated fleet, with your own prompt log if you like",
    "demo": "serve two demo engines, so that there is something to see",
    "demo-engine": "run an engine without a model that speaks the wire protocol; prints its spec",
}
"""Name → purpose. The module of the same name, with `_` for `-`, has `add_arguments`, which also sets what runs the command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, 1 for a failure, 2 for a mistake on the command line."""
    return run_command(make_parser(), arguments)


def make_parser() -> argparse.ArgumentParser:
    """The parser of `kv-indexer` with all its commands."""
    parser = Parser(prog="kv-indexer", description="Tells any LLM router which pod already holds the longest prefix of a prompt.")
    parser.add_argument("--version", action="version", version=f"kv-indexer {__version__} ({ACTIVE} core)")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, purpose in COMMANDS.items():
        commands.add_parser(name, help=purpose, allow_abbrev=False, declare=partial(_declare, name))
    return parser


def _declare(name: str, parser: argparse.ArgumentParser) -> None:
    """Only the chosen command is imported: importing all of them takes a fifth of a second."""
    import_module(f"scorer_api.cli.{name.replace('-', '_')}").add_arguments(parser)

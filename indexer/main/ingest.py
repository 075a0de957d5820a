"""`kv-indexer ingest`, which is `python -m indexer` too."""

import argparse
from collections.abc import Sequence

from indexer import __version__
from indexer.compiled import ACTIVE
from indexer.config.settings import Settings
from indexer.main.app import make_ingest
from indexer.main.command import run_command
from indexer.main.parser import Parser, add_config
from indexer.main.serving import serve_until_stopped

DESCRIPTION = (
    "Follow engines, alone or with others, and write what they cache to Redis. Pods, health and metrics are served over HTTP at --host and --port, "
    f"which are {Settings().host}:{Settings().port} unless others are given, as those of serve and api are."
)


def add_ingest(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `ingest`."""
    parser.description = DESCRIPTION
    add_config(parser)
    parser.set_defaults(command=lambda parsed: serve_until_stopped(parsed, make_ingest, needs_redis=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """`python -m indexer`."""
    parser = Parser(prog="python -m indexer")
    parser.add_argument("--version", action="version", version=f"kv-indexer {__version__} ({ACTIVE} core)")
    add_ingest(parser)
    return run_command(parser, arguments)

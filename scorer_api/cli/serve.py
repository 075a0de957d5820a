"""`kv-indexer serve`: follow engines and answer scores over HTTP, in one process."""

import argparse

from indexer.main.parser import add_config
from indexer.main.serving import serve_until_stopped
from scorer_api.app import make_serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_config(parser)
    parser.set_defaults(command=lambda parsed: serve_until_stopped(parsed, make_serve))

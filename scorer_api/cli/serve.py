"""`kv-indexer serve`: follow engines and answer scores over HTTP, in one process or in several that share the port."""

import argparse

from indexer.main.parser import add_config
from indexer.main.workers import serve_with_workers
from scorer_api.app import make_serve


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_config(parser)
    parser.set_defaults(command=lambda parsed: serve_with_workers(parsed, make_serve, follows_engines=True))

"""`kv-indexer api`: answer scores over HTTP from what indexers write to Redis."""

import argparse

from indexer.main.parser import add_config
from indexer.main.workers import serve_with_workers
from scorer_api.app import make_api


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_config(parser, with_engines=False)
    parser.set_defaults(command=lambda parsed: serve_with_workers(parsed, make_api))

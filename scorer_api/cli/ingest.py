"""`kv-indexer ingest`: follow engines and write what they cache to Redis. It is `python -m indexer`."""

import argparse

from indexer.main.ingest import add_ingest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_ingest(parser)

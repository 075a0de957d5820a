"""`kv-indexer pods`: the pods of a running service and the state of their streams, as a table."""

import argparse

from scorer_api.cli.service_connection import add_service, ask
from scorer_api.cli.text_table import table
from scorer_api.client import PodStatus

HEADS = ("POD", "MODEL", "RANK", "TRUST", "BLOCKS", "BATCHES", "GAPS", "RESTARTS", "LAST BATCH", "LAST ERROR")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    add_service(parser)
    parser.add_argument("--model", help="list the pods of this model only")
    parser.set_defaults(command=run)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code. Raises SettingError for a file that cannot be used."""
    return ask(parsed, lambda client: as_text([pod for pod in client.pods() if parsed.model in (None, pod.model)]))


def as_text(pods: list[PodStatus]) -> str:
    """The pods as text."""
    rows = [
        (
            pod.pod,
            pod.model,
            str(stream.rank),
            stream.trust if pod.ready else f"{stream.trust}, not ready",
            " ".join(f"{tier}:{count}" for tier, count in stream.blocks.items()) or "-",
            str(stream.batches),
            str(stream.gaps),
            str(stream.restarts),
            "-" if stream.last_batch_age_s is None else f"{stream.last_batch_age_s:.1f} s ago",
            stream.last_error or "-",
        )
        for pod in pods
        for stream in pod.streams
    ]
    return table(HEADS, rows)

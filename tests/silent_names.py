"""`python -m tests.silent_names COMMAND …`: the kv-indexer command where nobody answers for names that end with `.silent`."""

import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

from scorer_api.cli.main import main as kv_indexer

SILENT_S = 600.0
_look_up = socket.getaddrinfo


def _look_up_or_wait(host: Any, *arguments: Any, **named: Any) -> Any:
    if str(host).endswith(".silent"):
        time.sleep(SILENT_S)
    return _look_up(host, *arguments, **named)


def main(words: Sequence[str]) -> int:
    """`words`: the command. Returns the exit code."""
    socket.getaddrinfo = _look_up_or_wait
    return kv_indexer(list(words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

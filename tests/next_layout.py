"""`python -m tests.next_layout COMMAND …`: the kv-indexer command as a version would be whose keys in Redis have another layout."""

import sys
from collections.abc import Sequence

from indexer.store import keyspace
from scorer_api.cli.main import main as kv_indexer

NEXT = keyspace.LAYOUT + 1


def main(words: Sequence[str]) -> int:
    """Returns the exit code."""
    keyspace.LAYOUT = NEXT
    return kv_indexer(words)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

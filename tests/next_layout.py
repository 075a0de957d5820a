"""`python -m tests.next_layout COMMAND …`: the kv-indexer command as a version would be whose keys in Redis have another layout."""

import sys

from indexer.store import keyspace
from scorer_api.cli.main import main

NEXT = keyspace.LAYOUT + 1

if __name__ == "__main__":
    keyspace.LAYOUT = NEXT
    sys.exit(main(sys.argv[1:]))

"""`python -m scorer_api`, which is `kv-indexer api`."""

import sys

from scorer_api.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["api", *sys.argv[1:]]))

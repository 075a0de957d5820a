"""`python -m indexer`: see `ingest`."""

import sys

from indexer.main.ingest import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m indexer`: see `command`."""

import sys

from indexer.command import main

if __name__ == "__main__":
    sys.exit(main())

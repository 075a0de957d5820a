"""`python -m indexer`: see `command`."""

import sys

from indexer.main.command import main

if __name__ == "__main__":
    sys.exit(main())

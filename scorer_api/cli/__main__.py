"""`python -m scorer_api.cli`, which is `kv-indexer`."""

import sys

from scorer_api.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.patched MECHANISM COMMAND …`: the kv-indexer command without one of its mechanisms, see tests/scenarios/mechanisms.py."""

import sys

import pytest

from scorer_api.cli import main
from tests.scenarios.mechanisms import MECHANISMS

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        MECHANISMS[sys.argv[1]](patch)
        sys.exit(main(sys.argv[2:]))

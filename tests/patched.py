"""`python -m tests.patched MECHANISM COMMAND …`: the kv-indexer command without one of its mechanisms, see the mechanisms.py of the scenarios."""

import sys

import pytest

from scorer_api.cli.main import main
from tests.scenarios.mechanisms import MECHANISMS
from tests.scenarios.redis.mechanisms import REDIS_MECHANISMS

if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        (MECHANISMS | REDIS_MECHANISMS)[sys.argv[1]](patch)
        sys.exit(main(sys.argv[2:]))

"""`python -m tests.patched MECHANISM COMMAND …`: the kv-indexer command without one of its mechanisms, see the mechanisms.py of the scenarios."""

import sys
from collections.abc import Sequence

import pytest

from scorer_api.cli.main import main as kv_indexer
from tests.scenarios.mechanisms import MECHANISMS
from tests.scenarios.redis.mechanisms import REDIS_MECHANISMS


def main(words: Sequence[str]) -> int:
    """`words`: the mechanism, then the command. Returns the exit code."""
    mechanism, *command = words
    with pytest.MonkeyPatch.context() as patch:
        (MECHANISMS | REDIS_MECHANISMS)[mechanism](patch)
        return kv_indexer(command)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

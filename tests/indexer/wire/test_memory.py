"""What decoding one message costs in memory, however it is made."""

import json
import subprocess
import sys

import pytest

from indexer.config.settings import Settings
from tests.hostile_payloads import PAYLOADS, SIZE
from tests.running import ROOT

# docs/explanation/performance.md says so.
GROWTH_MAX = 128 * 2**20


def test_the_payloads_are_as_large_as_a_message_may_be() -> None:
    assert Settings().limits.receive.frame_bytes_max == SIZE


@pytest.mark.parametrize("name", PAYLOADS)
def test_a_hostile_payload_is_decoded_within_the_limit_and_its_good_events_count(name: str) -> None:
    _, reason, good = PAYLOADS[name]
    done = subprocess.run([sys.executable, "-m", "tests.hostile_payloads", name], cwd=ROOT, capture_output=True, check=True, timeout=100)
    seen = json.loads(done.stdout)
    assert (set(seen["refused"]), seen["good"]) == (set() if reason is None else {reason}, good)
    assert seen["growth"] < GROWTH_MAX

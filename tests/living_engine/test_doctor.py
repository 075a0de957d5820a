"""The doctor and a real vLLM: nothing to complain about, and a probe whose blocks appear as the engine counts them."""

from random import Random

import pytest

from tests.living_engine.comparison import Comparison, random_tokens
from tests.living_engine.vllm_server import MODEL
from tests.scorer_api.doctor.examined import Examined

pytestmark = [pytest.mark.engine, pytest.mark.timeout(900)]


def test_a_living_fleet_and_a_probe(comparison: Comparison) -> None:
    """One engine over TCP, one over ipc; both have served a prompt."""
    for pod in "AB":
        comparison.send_only(pod, random_tokens(Random(20), 40))
    found = Examined(comparison.service.url, model=MODEL, prompt="The service tells any router which pod holds a prompt", probes=True, listen_s=1.0)
    assert {each.severity for each in found.findings if each.code in ("engine_well", "replay_well", "probe_well")} == {"ok"}
    assert [found.codes.count(code) for code in ("engine_well", "replay_well", "probe_well")] == [2, 2, 2]
    assert found.bad() <= {"prompt_unmatched", "hint"}
    details = [each.detail for each in found.findings if each.code == "engine_well"]
    assert "version 0.28" in details[0]
    assert all(detail.endswith("with adapters 'lora1', 'lora2'") for detail in details)

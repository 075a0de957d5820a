"""The simulation finds it if a mechanism of the product is switched off.

The gate carries out schedules that are known to find it. If these find nothing any more since schedules are made otherwise, others do:
`TEST_MECHANISMS_OFF=1`, as in `make test-mechanisms`, looks for them among the first ones.
"""

import os

import pytest
from msgspec import structs

from tests.simulation.dialects import dialect
from tests.simulation.mechanisms import SIMULATED, no_generation_check, no_last_look_at_what_was_loaded
from tests.simulation.schedule import EngineKind, Kind, Schedule, Step
from tests.simulation.simulation import simulate

LOOKS_FOR_OTHERS = os.environ.get("TEST_MECHANISMS_OFF") == "1"
SEEDS_MAX = 2000

FOUND_BY = {
    "no_fence": 1328,
    "no_numbers": 1373,
    "no_catching_up": 25,
    "no_comparing_by_owners": 27,
    "no_notice_of_hang_ups": 346,
    "no_claim_by_dialling": 199,
    "no_new_epoch": 46,
    "no_replay_of_gaps": 47,
    "no_first_replay": 4,
    "no_contiguity_check": 1360,
    "no_purge_of_lost_history": 313,
    "no_probe_of_silence": 32,
    "no_fingerprint": 46,
    "no_regress": 52,
    "no_doubt_of_reconnects": 46,
    "no_parking": 6,
    "no_forgetting": 46,
    "no_clearing": 32,
    "no_recorded_sequence": 0,
    "no_buffering": 92,
    "no_full_write": 25,
    "one_removal_is_enough": 6,
    "trusted_for_ever": 526,
}
"""Mechanism → a seed whose schedule shows that it is missing."""


def finds(seed: int) -> bool:
    try:
        return simulate(Schedule.of(seed)).failure is not None
    except Exception:  # noqa: BLE001 - a product that fails without the mechanism is found out too
        return True


@pytest.mark.parametrize("name", SIMULATED)
def test_a_missing_mechanism_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    SIMULATED[name](monkeypatch)
    seeds = range(SEEDS_MAX) if LOOKS_FOR_OTHERS else (FOUND_BY[name],)
    found = next((seed for seed in seeds if finds(seed)), None)
    assert found is not None, f"{name} is not found"
    print(f'"{name}": {found},')  # noqa: T201 - to be written above


@pytest.mark.parametrize("seed", sorted(set(FOUND_BY.values())))
def test_these_schedules_find_nothing_otherwise(seed: int) -> None:
    assert simulate(Schedule.of(seed)).failure is None


@pytest.mark.parametrize("seed", [0, 1, 2, 4])
def test_a_missing_check_of_generations_is_found(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scorer that was frozen while an engine restarted finds changes of another generation in a log that was trimmed."""
    steps = (
        Step(Kind.PUBLISH, 0.3, 0, 4),
        Step(Kind.FREEZE_SCORER, 0.1, 0, 1, 0.9),
        Step(Kind.RESTART_ENGINE, 0.01, 0, 1, 0.01),
        Step(Kind.PUBLISH, 0.1, 0, 4),
        Step(Kind.TRIM_LOG, 0.1, 0, 1),
        Step(Kind.PUBLISH, 0.1, 0, 2),
    )
    engines = (EngineKind(dialect("vLLM 0.26, maps"), True, 100),)
    schedule = structs.replace(Schedule.of(seed), engines=engines, indexers=1, slowness=1, steps=steps, shards=1, is_thorough=True)
    assert simulate(schedule).failure is None
    no_generation_check(monkeypatch)
    assert simulate(schedule).failure is not None


def test_a_load_from_two_servers_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Redis is what it was a while ago, since when a scorer had read half of a stream: so it comes in some of these runs."""
    steps = (
        Step(Kind.ADD_SCORER, 0.002),
        Step(Kind.FAIL_OVER, 0.3, length_s=1.4),
        Step(Kind.PUBLISH, 0.03, 1, 4),
        Step(Kind.PUBLISH, 0.03, 0),
        Step(Kind.FAIL_OVER, 0.1, length_s=0.05),
        Step(Kind.PUBLISH, 0.01, 1, 4),
        Step(Kind.PUBLISH, 0.1, 1, 2),
        Step(Kind.JUMP_CLOCK, 0.03),
    )
    engines = (EngineKind(dialect("vLLM 0.9"), True, 100), EngineKind(dialect("vLLM 0.26, maps"), True, 3))
    schedules = [
        structs.replace(
            Schedule.of(seed), engines=engines, indexers=2, slowness=1, steps=steps, in_steps=False, shards=1, is_thorough=True, rest_s=0.0
        )
        for seed in range(25)
    ]
    assert all(simulate(schedule).failure is None for schedule in schedules)
    no_last_look_at_what_was_loaded(monkeypatch)
    assert any(simulate(schedule).failure is not None for schedule in schedules)


def test_each_mechanism_has_its_schedule() -> None:
    assert FOUND_BY.keys() == SIMULATED.keys()

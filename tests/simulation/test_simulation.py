"""Whatever happens, no answer marked live is of a state older than a second, and once nothing happens any more every scorer is right."""

import os
import subprocess
import sys
from itertools import product

import pytest
from msgspec import structs

from tests.simulation.__main__ import failures
from tests.simulation.dialects import DIALECTS, dialect
from tests.simulation.schedule import EngineKind, Kind, Schedule, Step
from tests.simulation.shrink import shrink
from tests.simulation.simulation import simulate

# In pieces, so that several workers share them.
SEEDS, PIECE = 10_000, 500
# So many show what kinds of schedules there are.
SHOWN = 500


@pytest.mark.parametrize("first", range(0, SEEDS, PIECE))
def test_schedules_from_seeds(first: int) -> None:
    assert failures(range(first, first + PIECE)) == [], "python -m tests.simulation --seed N shows more"


def failure_of(schedule: Schedule, *steps: Step, engine: EngineKind) -> str | None:
    """What is not right after these steps."""
    return simulate(structs.replace(schedule, engines=(engine,), steps=steps, is_thorough=True)).failure


# What the simulation found, shrunk


@pytest.mark.parametrize("seed", range(20))
def test_a_clear_does_not_show_what_is_below_the_gpu(seed: int) -> None:
    """After lost batches, a clear makes the gpu's content known, and not that of lower tiers, which survive it."""
    engine = EngineKind(dialect("vLLM 0.26, maps"), False, 100)
    schedule = structs.replace(Schedule.of(seed), indexers=1, scorers=1)
    assert failure_of(schedule, Step(Kind.PUBLISH, 0.1, 0, 4), Step(Kind.LOSE, 0.0, 0, 2), engine=engine) is None


@pytest.mark.parametrize("seed", range(4))
def test_what_owners_wrote_again_is_loaded_though_the_clock_was_set_back(seed: int) -> None:
    """The log ends before what was read, and is newer all the same. The engine is idle, so nothing else shows it."""
    schedule = structs.replace(Schedule.of(seed), indexers=1, scorers=1, slowness=1)
    steps = (Step(Kind.PUBLISH, 0.3), Step(Kind.EMPTY_REDIS), Step(Kind.JUMP_CLOCK))
    assert failure_of(schedule, *steps, engine=EngineKind(dialect("vLLM 0.26, arrays"), True, 100)) is None


@pytest.mark.parametrize("seed", range(4))
def test_a_dead_owner_is_followed_and_not_trusted_though_the_clock_was_set_back(seed: int) -> None:
    """Its lease, its membership and its confirmation would last for an hour."""
    schedule = structs.replace(Schedule.of(seed), indexers=1, scorers=1, slowness=1)
    steps = (Step(Kind.PUBLISH, 0.3), Step(Kind.JUMP_CLOCK), Step(Kind.KILL_INDEXER, length_s=1.4))
    assert failure_of(schedule, *steps, engine=EngineKind(dialect("vLLM 0.26, arrays"), True, 100)) is None


@pytest.mark.parametrize("seed", range(6))
def test_an_indexer_that_stops_while_it_writes_all_of_a_stream_waits_without_a_busy_loop(seed: int) -> None:
    """It was frozen while Redis went back, and has to write everything again as it is told to stop."""
    schedule = structs.replace(Schedule.of(seed), indexers=1, scorers=1, slowness=1)
    steps = (Step(Kind.FAIL_OVER, length_s=0.9), Step(Kind.FREEZE_INDEXER, 0.03, length_s=0.9), Step(Kind.RESTART_INDEXER, 0.03, length_s=0.2))
    assert failure_of(schedule, *steps, engine=EngineKind(dialect("vLLM 0.26, arrays"), False, 100)) is None


@pytest.mark.parametrize("seed", range(4))
def test_an_engine_that_went_away_while_redis_did_is_not_trusted_longer_than_what_redis_knew(seed: int) -> None:
    """Its owner could not write that it is gone. What the owner renews first afterwards must not vouch for the time since."""
    engine = EngineKind(dialect("vLLM 0.26, maps"), True, 100)
    steps = (Step(Kind.PUBLISH, 0.002), Step(Kind.CUT_REDIS, 0.3, length_s=0.9), Step(Kind.RESTART_ENGINE, 0.03, length_s=0.5))
    schedule = structs.replace(Schedule.of(seed), indexers=1, scorers=1, slowness=4, shards=1, in_steps=False, rest_s=1.2)
    assert failure_of(schedule, *steps, engine=engine) is None


@pytest.mark.parametrize("seed", [1022099, *range(4)])
def test_what_an_owner_renews_first_after_the_clock_was_set_back_does_not_count_for_an_hour(seed: int) -> None:
    """Redis is away meanwhile, and what changed is written later than it is renewed."""
    steps = (Step(Kind.PUBLISH, 0.1, 8, 1), Step(Kind.STOP_REDIS, 0.01, 1, 1, 0.9), Step(Kind.PUBLISH, 0.0, 7, 2), Step(Kind.JUMP_CLOCK, which=6))
    schedule = structs.replace(Schedule.of(seed), indexers=2, scorers=1)
    assert failure_of(schedule, *steps, engine=EngineKind(dialect("vLLM 0.26, maps"), True, 100)) is None


@pytest.mark.parametrize(("seed", "name", "pause_s"), [(319226, "vLLM 0.17, sha256", 0.002), (333692, "vLLM 0.26, maps", 0.0)])
def test_without_replay_a_restart_that_seems_to_go_on_is_partial(seed: int, name: str, pause_s: float) -> None:
    """The new process's first batch is lost, and its second has the number that was expected of the former: nothing tells them apart."""
    schedule = structs.replace(Schedule.of(seed), indexers=1, scorers=1)
    steps = (Step(Kind.PUBLISH, 0.3), Step(Kind.RESTART_ENGINE, pause_s))
    assert failure_of(schedule, *steps, engine=EngineKind(dialect(name), False, 100)) is None


def test_a_block_that_waits_for_its_parent_is_below_the_gpu_once_however_often_it_is_announced_there() -> None:
    """Two copies on the gpu go at once, and their placeholder names the block twice. One removal ends it."""
    schedule = structs.replace(Schedule.of(1050307), indexers=1, scorers=1)
    assert failure_of(schedule, Step(Kind.PUBLISH), Step(Kind.PUBLISH, count=3), engine=EngineKind(dialect("vLLM 0.26, arrays"), True, 100)) is None


# The simulation itself


def test_a_schedule_follows_from_its_seed() -> None:
    """In another process too, whose hashes of text differ."""
    program = "from tests.simulation.simulation import simulate; from tests.simulation.schedule import Schedule\n"
    program += "for seed in range(6): outcome = simulate(Schedule.of(seed)); print(outcome.virtual_s, outcome.compared, outcome.failure)"
    shown = set()
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        shown.add(done.stdout)
    assert len(shown) == 1


def test_every_kind_of_step_and_engine_is_played() -> None:
    schedules = [Schedule.of(seed) for seed in range(SHOWN)]
    assert {step.kind for schedule in schedules for step in schedule.steps} == set(Kind)
    assert {engine.dialect for schedule in schedules for engine in schedule.engines} == set(DIALECTS)
    assert {schedule.in_steps for schedule in schedules} == {schedule.is_thorough for schedule in schedules} == {True, False}
    assert {(engine.dials, engine.has_replay) for schedule in schedules for engine in schedule.engines} == set(product((False, True), repeat=2))
    assert len({schedule.rest_s for schedule in schedules}) == 2


def test_many_live_answers_are_compared() -> None:
    assert sum(simulate(Schedule.of(seed)).compared for seed in range(50)) > 500


@pytest.mark.parametrize("has_replay", [False, True])
def test_engines_that_dial_are_followed(has_replay: bool) -> None:
    engine = EngineKind(dialect("vLLM 0.26, maps"), has_replay, 100, dials=True)
    schedule = structs.replace(Schedule.of(0), engines=(engine, engine), steps=(Step(Kind.PUBLISH, 0.3, 0, 3), Step(Kind.PUBLISH, 0.3, 1, 3)))
    outcome = simulate(schedule)
    assert outcome.failure is None
    assert outcome.compared > 2 * len(schedule.texts)


def test_a_failing_schedule_is_shrunk_to_what_makes_it_fail() -> None:
    def fails(schedule: Schedule) -> bool:
        return [step.kind for step in schedule.steps].count(Kind.PUBLISH) >= 2

    schedule = next(found for seed in range(100) if len((found := Schedule.of(seed)).steps) > 8 and fails(found))
    smallest = shrink(schedule, fails)
    assert [step.kind for step in smallest.steps] == [Kind.PUBLISH, Kind.PUBLISH]
    assert (len(smallest.engines), smallest.indexers, smallest.scorers) == (1, 1, 1)

"""Runs of the simulation, on all cores, with a progress bar. A run that two tables need is played once."""

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Self

from msgspec import Struct
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.fleet.scenarios import PODS, Scenario
from scorer_api.fleet.fleet import Conditions, Fleet
from scorer_api.fleet.policies import ROUTERS
from scorer_api.fleet.results import RunResult, result_of

# Apart from those that chose the policy's weights. One pick that differs changes all that follow: policies are compared over several seeds.
SEEDS = (101, 102, 103)
SEED = SEEDS[0]


class Case(Struct, frozen=True):
    """One run. `routers`: so many, which know nothing of each other."""

    scenario: Scenario
    policy: str
    seed: int = SEED
    routers: int = 1
    conditions: Conditions = Conditions()
    pods: int = PODS


def play(case: Case) -> RunResult:
    """Play it, from its first request to the last answer."""
    model = case.scenario.model
    routers = [ROUTERS[case.policy](case.pods, model, case.seed + number) for number in range(case.routers)]
    workload = case.scenario.workload(seed=case.seed)
    return result_of(Fleet(case.pods, model, routers, workload, case.conditions, case.seed).run(), case.pods, workload.until_s)


class Player:
    """`with Player(processes) as play: play("title", cases)`."""

    def __init__(self, processes: int) -> None:
        self._pool = ProcessPoolExecutor(processes)
        self._played: dict[Case, RunResult] = {}
        columns = (TextColumn("{task.description:<12}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        self._progress = Progress(*columns, console=Console(stderr=True))

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._pool.shutdown(cancel_futures=True)

    def __call__(self, title: str, cases: Sequence[Case]) -> list[RunResult]:
        """The results of these cases, in their order."""
        missing = [case for case in dict.fromkeys(cases) if case not in self._played]
        bar = self._progress.add_task(title, total=len(missing))
        futures = {self._pool.submit(play, case): case for case in missing}
        for future in as_completed(futures):
            self._played[futures[future]] = future.result()
            self._progress.advance(bar)
        return [self._played[case] for case in cases]

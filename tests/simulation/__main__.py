"""`python -m tests.simulation --seed N` carries out one schedule again and shrinks it; `--seeds FIRST-LAST` a range of them.

A range goes to several processes. What is done is recorded in a file, by pieces of the range: the same command goes on where it was stopped.
"""

import argparse
import gc
import logging
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.simulation.schedule import Schedule
from tests.simulation.shrink import shrink
from tests.simulation.simulation import simulate
from tests.simulation.surroundings import no_log

PIECE = 500
GARBAGE_EVERY = 100
RECORD = Path("build/simulation.txt")


def main() -> int:
    """Returns how many schedules failed, at most 1."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("--seed", type=int, help="carry out this schedule, show its steps and the product's log, and shrink it if it fails")
    parser.add_argument("--seeds", default="0-1000000", help="carry out all of FIRST to LAST - 1; by default %(default)s")
    parser.add_argument("--processes", type=int, default=2, help="number of processes; by default %(default)s")
    parser.add_argument("--record", type=Path, default=RECORD, help="which pieces are done; by default %(default)s")
    given = parser.parse_args()
    if given.seed is not None:
        return _show(Schedule.of(given.seed))
    first, last = map(int, given.seeds.split("-"))
    return _run(range(first, last), given.processes, given.record)


def _show(schedule: Schedule) -> int:
    logging.basicConfig(level=logging.DEBUG, format="%(name)s %(message)s", stream=sys.stdout)
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    failure = simulate(schedule).failure
    logging.disable(logging.CRITICAL)
    if failure is None:
        print("nothing is wrong")  # noqa: T201 - a command's output
        return 0
    smallest = shrink(schedule, lambda candidate: simulate(candidate).failure is not None)
    print(f"\n{failure}\n\n{describe(smallest)}\n{simulate(smallest).failure}")  # noqa: T201
    return 1


def describe(schedule: Schedule) -> str:
    """A schedule, as it can be written into a test."""
    engines = "".join(
        f"    EngineKind({engine.dialect.name!r}, {engine.has_replay}, {engine.history_max}, {engine.layers}, {engine.dials}),\n"
        for engine in schedule.engines
    )
    steps = "".join(f"    Step({step.kind}, {step.pause_s}, {step.which}, {step.count}, {step.length_s}),\n" for step in schedule.steps)
    return f"seed {schedule.seed}, {schedule.indexers} indexers, {schedule.scorers} scorers\n{engines}{steps}"


def _run(seeds: range, processes: int, record: Path) -> int:
    record.parent.mkdir(parents=True, exist_ok=True)
    done = set(record.read_text().splitlines()) if record.exists() else set()
    began_s, failed, finished = time.monotonic(), 0, 0
    with ProcessPoolExecutor(processes) as pool, record.open("a") as file:
        futures = {pool.submit(failures, piece): piece for piece in _pieces(seeds) if f"{piece.start}-{piece.stop}" not in done}
        for future in as_completed(futures):
            piece, found = futures[future], future.result()
            for seed, failure in found:
                print(f"seed {seed}: {failure}", flush=True)  # noqa: T201
            failed += len(found)
            finished += len(piece)
            if not found:
                print(f"{piece.start}-{piece.stop}", file=file, flush=True)
            print(f"{finished} schedules in {time.monotonic() - began_s:.0f} s, {failed} failed", flush=True)  # noqa: T201
    return min(failed, 1)


def _pieces(seeds: range) -> Iterator[range]:
    return (range(start, min(start + PIECE, seeds.stop)) for start in range(seeds.start, seeds.stop, PIECE))


def failures(seeds: range) -> list[tuple[int, str]]:
    """Seeds whose schedules fail, and how."""
    found = []
    with _garbage_in_pieces() as look_for_garbage, no_log():
        for seed in seeds:
            if (failure := simulate(Schedule.of(seed)).failure) is not None:
                found.append((seed, failure))
            if seed % GARBAGE_EVERY == 0:
                look_for_garbage()
    return found


@contextmanager
def _garbage_in_pieces() -> Iterator[Callable[[], object]]:
    """Look for garbage where asked, in what is new. Each schedule leaves cycles, and else all that the process has is searched for them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield partial(gc.collect, 1)
    finally:
        if was_enabled:
            gc.enable()


if __name__ == "__main__":
    sys.exit(main())

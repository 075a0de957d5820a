"""The smallest part of a schedule that still fails: steps are left out, and processes and engines, as long as it does."""

from collections.abc import Callable, Iterator

from msgspec import structs

from tests.simulation.schedule import Schedule

RUNS_MAX = 400


def shrink(schedule: Schedule, fails: Callable[[Schedule], bool]) -> Schedule:
    """`fails`: whether a schedule does, whatever the reason."""
    runs = 0
    smaller: Schedule | None = schedule
    while smaller is not None:
        schedule, smaller = smaller, None
        for candidate in _smaller(schedule):
            runs += 1
            if runs > RUNS_MAX:
                return schedule
            if fails(candidate):
                smaller = candidate
                break
    return schedule


def _smaller(schedule: Schedule) -> Iterator[Schedule]:
    """Schedules with less in them, those with much less first."""
    steps, size = schedule.steps, len(schedule.steps) // 2
    while size:
        for start in range(0, len(steps), size):
            yield structs.replace(schedule, steps=steps[:start] + steps[start + size :])
        size //= 2
    if len(schedule.engines) > 1:
        yield from (structs.replace(schedule, engines=(engine,)) for engine in schedule.engines)
    for name in ("indexers", "scorers"):
        if getattr(schedule, name) > 1:
            yield structs.replace(schedule, **{name: 1})
    for number, step in enumerate(steps):
        for simpler in (structs.replace(step, count=1), structs.replace(step, pause_s=0.0)):
            if simpler != step:
                yield structs.replace(schedule, steps=(*steps[:number], simpler, *steps[number + 1 :]))

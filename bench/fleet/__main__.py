"""`python -m bench.fleet`: routing policies on a simulated fleet, as tables on the terminal and as a page."""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from bench.fleet import adversity, calibration, comparison, load, report, traces, users
from bench.fleet.report import Section
from bench.fleet.runs import SEEDS, Player
from bench.fleet.scenarios import SCENARIOS, Scenario, of_trace

TRACE_CACHES = (300_000, 3_000_000)
SECTIONS = ("policies", "load", "users", "calibration", "adversity", "traces")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.fleet", description=__doc__)
    parser.add_argument("--only", action="append", choices=SECTIONS, help="only this section; may be repeated")
    parser.add_argument("--trace", type=Path, action="append", default=[], help="a trace in Mooncake's format; may be given several times")
    parser.add_argument("--requests", type=int, default=1_200, help="of a trace (default: %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path("build/fleet"), help="where the page goes (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="at once (default: %(default)s)")
    parsed = parser.parse_args()
    recorded = [of_trace(path, tokens, parsed.requests) for path in parsed.trace for tokens in TRACE_CACHES]
    with Player(parsed.processes) as play:
        made = [make(play) for name, make in sections(recorded).items() if name in (parsed.only or SECTIONS)]
    for section in made:
        sys.stdout.write(report.markdown(section) + "\n")
    page = report.write(parsed.folder, made, f"python -m bench.fleet, seeds {', '.join(map(str, SEEDS))}")
    sys.stdout.write(f"written to {page.resolve()}\n")


def sections(recorded: list[Scenario]) -> dict[str, Callable[[Player], Section]]:
    """By name, in the order of the page."""
    found: dict[str, Callable[[Player], Section]] = {
        "policies": lambda play: comparison.measure(play, (*SCENARIOS, *recorded)),
        "load": load.measure,
        "users": users.measure,
        "calibration": calibration.measure,
        "adversity": adversity.measure,
    }
    return {**found, "traces": lambda play: traces.measure(play, recorded)} if recorded else found


if __name__ == "__main__":
    main()

"""`python -m bench.peers [--only NAME] [--json FILE] [--busy]`: this service beside Dynamo's stand-alone indexer, each measured by the CPU time of
its process.

Both get the same events from the same engines, and both answers to every question are compared with what was published before anything is timed.
Rounds of the two alternate.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from msgspec import Struct

from bench import provenance, report
from bench.peers import events, isolation, late_join, questions, sides

MEASUREMENTS: dict[str, tuple[str, Callable[[], Sequence[Struct]]]] = {
    "questions": ("CPU of a question, 8 engines, 1,000,000 block copies, 8 connections", lambda: questions.measure(8)),
    "questions-64": ("The same with 64 engines, all of them in each answer", lambda: questions.measure(64)),
    "events": ("CPU of a block, and memory", events.measure),
    "visible": ("From publishing to an answer, one client asking all the time", events.measure_visible),
    "late-join": ("Late join by replay, from telling of the engine to an answer that shows all", late_join.measure),
    "beside": ("Questions of 512 blocks beside 20,000 blocks a second, 8 connections", questions.measure_beside),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description="Measure this service beside Dynamo's stand-alone indexer.")
    parser.add_argument("--only", action="append", choices=MEASUREMENTS, help="only this measurement; may be repeated")
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench-peers.json"), metavar="FILE", help="where the figures go (default: %(default)s)"
    )
    parser.add_argument("--busy", action="store_true", help="measure although the machine is busy: the figures are no good for documents")
    asked = parser.parse_args()
    version = sides.version_of_peer()
    isolation.enter()
    busy = isolation.busy_share()
    if busy > isolation.BUSY_SHARE_MAX and not asked.busy:
        report.say(f"others use {busy:.0%} of this machine: figures would say nothing. --busy measures all the same.")
        return 1
    source = provenance.take()
    report.say_provenance(source)
    report.say(f"dynamo {version}; others used {busy:.0%} of the machine before the first measurement")
    results: dict[str, Sequence[Struct]] = {}
    for name in asked.only or MEASUREMENTS:
        title, measure = MEASUREMENTS[name]
        results[name] = measure()
        report.say_table(title, results[name])
    report.write(asked.json, source, results)
    report.say(f"\nwritten to {asked.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

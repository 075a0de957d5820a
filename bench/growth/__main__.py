"""`python -m bench.growth [--only NAME] [--copies-min N] [--copies-max N] [--json FILE] [--charts FOLDER]`."""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct

from bench import provenance, report
from bench.fleet.charts import Chart, svg
from bench.growth import charts, measurements
from bench.growth.measurements import COPIES_MAX


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.growth", description="Measure how costs grow.")
    parser.add_argument("--only", action="append", choices=charts.CHARTS, help="only this axis; may be repeated")
    parser.add_argument(
        "--copies-max", type=int, default=COPIES_MAX, help="largest index (default: %(default)s); 30000000 takes 20 GB of memory and ten minutes"
    )
    parser.add_argument("--copies-min", type=int, default=0, help="smallest index, to measure them one after the other (default: %(default)s)")
    parser.add_argument(
        "--json", type=Path, default=Path("build/bench-growth.json"), metavar="FILE", help="where the figures go (default: %(default)s)"
    )
    parser.add_argument("--charts", type=Path, default=Path("build"), metavar="FOLDER", help="where the charts go (default: %(default)s)")
    asked = parser.parse_args()
    measures: dict[str, tuple[str, Callable[[], Sequence[Struct]]]] = {
        "length": ("Queries by the length of the prompt, 8 pods that hold all of it", measurements.by_length),
        "pods": ("Queries of 512 blocks by the number of pods", measurements.by_pods),
        "event": ("Ingest by the size of events", measurements.by_event),
        "copies": (
            "By block copies: a query of 512 blocks in JSON, memory, load and lag",
            partial(measurements.by_copies, asked.copies_max, asked.copies_min),
        ),
    }
    source = provenance.take()
    report.say_provenance(source)
    results: dict[str, Sequence[Struct]] = {}
    asked.charts.mkdir(parents=True, exist_ok=True)
    for name in asked.only or measures:
        title, measure = measures[name]
        results[f"growth-{name}"] = rows = measure()
        report.say_table(title, rows)
        chart: Chart = charts.CHARTS[name](rows)
        (asked.charts / f"{chart.name}.svg").write_text(svg(chart), encoding="utf-8")
    report.write(asked.json, source, results)
    report.say(f"\nwritten to {asked.json}, charts to {asked.charts}")


if __name__ == "__main__":
    main()

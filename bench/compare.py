"""`python -m bench.compare --a FILE … --b FILE …`: what `make bench` wrote before and after a change, row by row.

Each side is one run or several. A difference counts where it is larger than what the figure varies by anyway, and than the spread of the runs of
either side. The exit code is 0 where nothing is worse, 1 where something is, and 2 where the runs cannot be compared.
"""

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import msgspec
from msgspec import Struct

from bench import report
from bench.provenance import Provenance

LESS, MORE = "less", "more"
CPU, RATE, TIME, TAIL, SIZE, TOTAL = 0.1, 0.15, 0.15, 0.4, 0.05, 0.0
"""By how much a figure varies from run to run on a machine that does nothing else, as a part of it."""
FIGURES: dict[str, tuple[str, float]] = {
    **dict.fromkeys(("blocks_per_s", "requests_per_s", "loaded_blocks_per_s"), (MORE, RATE)),
    **dict.fromkeys(("cpu_us", "cpu_us_per_block", "cpu_us_per_request", "cpu_us_per_kb", "score_cpu_us", "route_cpu_us"), (LESS, CPU)),
    **dict.fromkeys(("plain_us", "hybrid_us", "indexer_us_per_block", "redis_us_per_block", "script_us_per_append"), (LESS, CPU)),
    **dict.fromkeys(("metrics_cpu_ms", "pods_cpu_ms", "page_cpu_ms", "readyz_cpu_ms"), (LESS, CPU)),
    **dict.fromkeys(("p50_ms", "start_s", "load_s"), (LESS, TIME)),
    **dict.fromkeys(("p99_ms", "lag_ms"), (LESS, TAIL)),
    **dict.fromkeys(("bytes_per_copy", "log_bytes_per_copy", "bytes_per_block", "memory_mib", "mib"), (LESS, SIZE)),
    **dict.fromkeys(("descriptors", "threads", "redis_keys"), (LESS, TOTAL)),
}
"""Field → whether less or more of it is better, and by how much it varies. Other numbers say what was measured or follow from these."""
PARAMETERS = ("blocks", "connections", "engines", "pods", "copies", "workers")
# What is judged by itself, and what the other side of `against-llmd` takes.
LEFT_OUT = ("floors",)
PER_S = "/s"
SAME_MACHINE = ("cpu", "cpus", "core", "python")

Key = tuple[str, str, str]


class Run(Struct, frozen=True):
    """One file."""

    version: int
    provenance: Provenance
    results: dict[str, list[dict[str, Any]]]


class Compared(Struct, frozen=True):
    """One figure. `ratio`: B's to A's. `noise`: what it may differ by, as a part. `verdict`: equal, better or worse."""

    measurement: str
    row: str
    figure: str
    a: float
    b: float
    ratio: float
    noise: float
    verdict: str


class CannotCompareError(Exception):
    """The files are of different versions, or of different machines."""


def read(path: Path) -> Run:
    """Raises CannotCompareError."""
    try:
        document = msgspec.json.decode(path.read_bytes())
        version = document.get("version") if isinstance(document, dict) else None
        if version != report.VERSION:
            raise CannotCompareError(f"{path} is version {version} of the file, this command reads {report.VERSION}")
        return msgspec.convert(document, Run)
    except OSError as error:
        raise CannotCompareError(f"{path} cannot be read: {error.strerror or error}") from None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise CannotCompareError(f"{path} is not what make bench writes: {error}") from None


def check_machines(runs: Sequence[Run]) -> None:
    """Raises CannotCompareError where not all are of the same machine, Python and core."""
    for name in SAME_MACHINE:
        values = {str(getattr(run.provenance, name)) for run in runs}
        if len(values) > 1:
            raise CannotCompareError(f"the runs have different {name}: {', '.join(sorted(values))}; --anyway compares them all the same")


def compare(before: Sequence[Run], after: Sequence[Run]) -> list[Compared]:
    """Every figure that both sides have, in the order of the first."""
    a, b = _figures(before), _figures(after)
    return [_compared(key, a[key], b[key]) for key in a if key in b]


def only_in_one(before: Sequence[Run], after: Sequence[Run]) -> list[str]:
    """Rows that one side lacks, in words."""
    a, b = ({f"{name}, {row}" for name, row, _ in _figures(runs)} for runs in (before, after))
    return [*(f"only in A: {row}" for row in sorted(a - b)), *(f"only in B: {row}" for row in sorted(b - a))]


def _figures(runs: Iterable[Run]) -> dict[Key, list[tuple[float, str, float]]]:
    """(measurement, row, figure) → value, direction and noise in each run."""
    found: dict[Key, list[tuple[float, str, float]]] = {}
    for run in runs:
        for name, rows in run.results.items():
            for row in rows if name not in LEFT_OUT else ():
                for figure, value, better, noise in _of_row(row):
                    found.setdefault((name, _shown(row), figure), []).append((value, better, noise))
    return found


def _of_row(row: Mapping[str, Any]) -> Iterable[tuple[str, float, str, float]]:
    if "llmd" in row:
        yield "here", float(row["here"]), MORE if row["unit"].endswith(PER_S) else LESS, RATE
        return
    for field, value in row.items():
        if field in FIGURES and field not in PARAMETERS and value is not None:
            yield field, float(value), *FIGURES[field]


def _shown(row: Mapping[str, Any]) -> str:
    """What tells a row from the others of its measurement."""
    return " ".join(str(value) if isinstance(value, str) else f"{field}={value}" for field, value in row.items() if _tells(field, value))


def _tells(field: str, value: object) -> bool:
    return isinstance(value, str) or field in PARAMETERS


def _compared(key: Key, a: list[tuple[float, str, float]], b: list[tuple[float, str, float]]) -> Compared:
    _, better, usual = a[0]
    before, after = ([value for value, *_ in side] for side in (a, b))
    middle, other = median(before), median(after)
    noise = max(usual, *((max(side) - min(side)) / median(side) if median(side) else 0.0 for side in (before, after)))
    ratio = other / middle if middle else 1.0 if not other else float("inf")
    # As far from 1 upwards as downwards.
    is_outside = max(ratio, 1 / ratio if ratio else float("inf")) > 1 + noise
    verdict = "equal" if not is_outside else "better" if (ratio > 1) == (better == MORE) else "worse"
    return Compared(*key, middle, other, round(ratio, 3), round(noise, 3), verdict)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.compare", description="Compare what make bench wrote before and after a change.")
    parser.add_argument("--a", type=Path, nargs="+", required=True, metavar="FILE", help="runs before")
    parser.add_argument("--b", type=Path, nargs="+", required=True, metavar="FILE", help="runs after")
    parser.add_argument("--anyway", action="store_true", help="compare although machines differ")
    parser.add_argument("--all", action="store_true", help="show what is equal, too")
    asked = parser.parse_args(arguments)
    try:
        before, after = ([read(path) for path in paths] for paths in (asked.a, asked.b))
        if not asked.anyway:
            check_machines([*before, *after])
        rows = compare(before, after)
        if not rows:
            raise CannotCompareError("the runs have no figure in common")
    except CannotCompareError as error:
        print(f"bench-compare: {error}", file=sys.stderr)  # noqa: T201 - the one line that says why there is no comparison
        return 2
    for name, runs in (("A", before), ("B", after)):
        for run in runs:
            source = run.provenance
            report.say(f"{name}: {source.date}, commit {source.commit}, load average {source.load_average[0]:.2f}, {source.cpus} CPUs {source.cpu}")
    shown = [row for row in rows if asked.all or row.verdict != "equal"]
    report.say_table("B beside A; ratio is B's figure to A's", shown)
    for line in only_in_one(before, after):
        report.say(line)
    counts = {verdict: sum(row.verdict == verdict for row in rows) for verdict in ("worse", "better", "equal")}
    report.say("\n" + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    return int(counts["worse"] > 0)


if __name__ == "__main__":
    sys.exit(main())

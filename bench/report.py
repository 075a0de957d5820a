"""Figures as tables on stdout, and as JSON with where they come from."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from bench.provenance import Provenance

# Of the file. Another one where what a measurement or a field means has changed: runs of different versions are not compared.
VERSION = 1


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - the command's output


def say_provenance(provenance: Provenance) -> None:
    load = ", ".join(f"{average:.2f}" for average in provenance.load_average)
    machine = f"{provenance.cpus} CPUs {provenance.cpu}, load average {load}"
    say(f"{provenance.date}, commit {provenance.commit}, Python {provenance.python}, {provenance.core} core, {machine}")
    say(f"{provenance.platform}; {', '.join(f'{name} {number}' for name, number in provenance.packages.items())}")


def say_table(title: str, rows: Sequence[Struct]) -> None:
    """One line per row, its fields' names on top."""
    say(f"\n{title}")
    if not rows:
        return
    heads = [field.replace("_", " ") for field in rows[0].__struct_fields__]
    lines = [heads, *([_shown(getattr(row, field)) for field in row.__struct_fields__] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    is_text = [isinstance(getattr(rows[0], field), str) for field in rows[0].__struct_fields__]
    for line in lines:
        cells = [cell.ljust(width) if text else cell.rjust(width) for cell, width, text in zip(line, widths, is_text, strict=True)]
        say("  ".join(cells).rstrip())


def write(path: Path, provenance: Provenance, results: Mapping[str, Sequence[Struct]]) -> None:
    """All of it, for machines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"version": VERSION, "provenance": provenance, "results": results}
    path.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=2) + b"\n")


def _shown(value: object) -> str:
    return f"{value:,}" if isinstance(value, int | float) else str(value)

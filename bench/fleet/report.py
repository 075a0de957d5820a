"""What the runs gave: sections of tables and charts, in Markdown on the terminal and as one page that needs nothing else."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

from msgspec import Struct

from bench.fleet.charts import Chart, svg

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #111827; max-width: 1100px; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-size: 13px; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #e5e7eb; padding: 4px 10px; text-align: right; white-space: nowrap }
th:first-child, td:first-child { text-align: left }
th { border-bottom: 2px solid #9ca3af }
caption { text-align: left; font-weight: 600; padding: 4px 0 }
tr.ours { background: #fef3c7 }
figure { display: inline-block; width: 520px; max-width: 100%; margin: 0 12px 12px 0 }
"""


class Table(Struct, frozen=True):
    """`rows`: a name and figures each, as texts."""

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[str]]


class Section(Struct, frozen=True):
    """`about`: what was run, and what to look at."""

    title: str
    about: str
    tables: Sequence[Table]
    charts: Sequence[Chart] = ()


def markdown(section: Section) -> str:
    """The section without its charts."""
    return f"## {section.title}\n\n{section.about}\n\n" + "\n\n".join(map(_markdown, section.tables)) + "\n"


def write(folder: Path, sections: Sequence[Section], source: str) -> Path:
    """Write the charts, one file each, the tables, and a page with everything. Returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    for section in sections:
        for chart in section.charts:
            (folder / f"{chart.name}.svg").write_text(svg(chart), encoding="utf-8")
    (folder / "tables.md").write_text(f"{source}\n\n" + "\n".join(map(markdown, sections)), encoding="utf-8")
    page = folder / "index.html"
    page.write_text(_page(sections, source), encoding="utf-8")
    return page


def _markdown(table: Table) -> str:
    lines = (table.head, ["---", *["---:"] * (len(table.head) - 1)], *table.rows)
    return f"{table.title}\n\n" + "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _page(sections: Sequence[Section], source: str) -> str:
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Routing policies on a simulated fleet</title><style>{STYLE}</style>',
        f"<h1>Routing policies on a simulated fleet</h1><p>{escape(source)}</p>",
    ]
    for section in sections:
        parts.append(f"<h2>{escape(section.title)}</h2><p>{escape(section.about)}</p>")
        parts += [f"<figure>{svg(chart)}</figure>" for chart in section.charts]
        parts += map(_html, section.tables)
    return "\n".join(parts) + "</html>\n"


def _html(table: Table) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in table.head)
    rows = "".join(_row(cells) for cells in table.rows)
    return f"<table><caption>{escape(table.title)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _row(cells: Sequence[str]) -> str:
    ours = ' class="ours"' if cells[0].strip("`") == "cost" else ""
    return f"<tr{ours}>" + "".join(f"<td>{escape(cell.strip('`'))}</td>" for cell in cells) + "</tr>"

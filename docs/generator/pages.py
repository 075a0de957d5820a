"""Pages as readers see them: hand-written Markdown in which `<!-- generated: NAME -->` stands for a generated part."""

import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from docs.generator.commands import commands_section
from docs.generator.compatibility import compatibility_table
from docs.generator.findings import findings_section
from docs.generator.imports import imports_table
from docs.generator.log_events import log_events_table
from docs.generator.metrics import metrics_section
from docs.generator.refusals import refusals_table
from docs.generator.routes import routes_table
from docs.generator.settings import limits_table, settings_table

DOCS = Path(__file__).parents[1]
MARKER = re.compile(r"^<!-- generated: (.+) -->$", re.MULTILINE)
PARTS: Mapping[str, Callable[[], str]] = {
    "commands": commands_section,
    "compatibility": compatibility_table,
    "findings": findings_section,
    "imports": imports_table,
    "log events": log_events_table,
    "metrics": metrics_section,
    "refusals": refusals_table,
    "routes": routes_table,
    "settings": settings_table,
    "limits": limits_table,
}


class UnknownPart(ValueError):
    """A page asks for a part that is not in PARTS."""


def expand(markdown: str) -> str:
    """Put the generated parts in the place of their markers. Raises UnknownPart."""
    return MARKER.sub(lambda found: _part(found[1]), markdown)


@cache
def _part(name: str) -> str:
    if name not in PARTS:
        raise UnknownPart(f"nothing generates {name!r}; known are {', '.join(PARTS)}")
    return PARTS[name]()


def read_page(name: str) -> str:
    """The Markdown of `docs/NAME`, with its generated parts."""
    return expand((DOCS / name).read_text(encoding="utf-8"))


def read_pages() -> dict[str, str]:
    """Name → Markdown of every page."""
    return {name: read_page(name) for name in sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))}

"""The report: as text for people, or as JSON for scripts."""

import textwrap
from collections import Counter
from collections.abc import Sequence

import msgspec
from msgspec import Struct

from scorer_api.doctor.checks.findings import Finding, worst
from scorer_api.doctor.checks.kinds import Severity

WIDTH = 120
INDENT = 9


class Report(Struct, frozen=True):
    """`worst`: the highest severity; `findings`: the most severe first."""

    worst: Severity
    findings: list[Finding]


def in_order(findings: Sequence[Finding]) -> list[Finding]:
    """The most severe first, without duplicates, otherwise in the given order."""
    once = list(dict.fromkeys(findings))
    return sorted(once, key=lambda found: -found.severity.rank)


def as_json(findings: Sequence[Finding]) -> str:
    """One JSON object on several lines."""
    ordered = in_order(findings)
    return msgspec.json.format(msgspec.json.encode(Report(worst(ordered), ordered)), indent=2).decode()


def as_text(findings: Sequence[Finding]) -> str:
    """A paragraph for each finding, and at the end the number of findings of each severity."""
    ordered = in_order(findings)
    counts = Counter(found.severity for found in ordered)
    said = [f"{counts[severity]} {_plural(severity, counts[severity])}" for severity in reversed(Severity) if counts[severity]]
    return "\n".join([*(_paragraph(found) for found in ordered), "", ", ".join(said)])


def _plural(severity: Severity, count: int) -> str:
    return f"{severity}" if severity is Severity.OK or count == 1 else f"{severity}s"


def _paragraph(found: Finding) -> str:
    lines = [f"{found.severity.upper():<{INDENT - 1}} {found.subject}: {found.code}", *_filled(found.detail, "")]
    if found.mend and found.severity is not Severity.OK:
        lines += _filled(found.mend, "mend: ")
    return "\n".join(lines)


def _filled(text: str, begin: str) -> list[str]:
    margin = " " * INDENT
    return textwrap.wrap(
        text, WIDTH, initial_indent=margin + begin, subsequent_indent=margin + " " * len(begin), break_long_words=False, break_on_hyphens=False
    )

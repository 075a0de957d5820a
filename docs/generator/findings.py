"""The doctor's findings, from `scorer_api.doctor.checks.kinds`."""

from docs.generator.markdown import cell, code, sections, table
from scorer_api.doctor.checks.kinds import GROUPS, Kind


def findings_section() -> str:
    """A table for each group of findings."""
    return sections(3, ((heading, _table(kinds)) for heading, kinds in GROUPS.items()))


def _table(kinds: dict[str, Kind]) -> str:
    rows = ([code(name), str(kind.severity), cell(kind.meaning), cell(kind.mend)] for name, kind in kinds.items())
    return table(["Code", "Severity", "Meaning", "What to do"], rows)

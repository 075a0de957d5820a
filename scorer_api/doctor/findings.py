"""Findings: what the doctor found, and where."""

from msgspec import Struct

from scorer_api.doctor.kinds import KINDS, Severity

TEXT_LENGTH_MAX = 400

EXIT_CODES = {Severity.OK: 0, Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 3}
"""2 is for wrong words, as everywhere."""


class Finding(Struct, frozen=True):
    """One thing that was found about `subject`: the service, a pod, Redis."""

    code: str
    severity: Severity
    subject: str
    detail: str
    mend: str = ""


def finding(code: str, subject: str, detail: str, severity: Severity | None = None, mend: str | None = None) -> Finding:
    """`severity`, `mend`: where they are other than usual for this code."""
    kind = KINDS[code]
    return Finding(code, severity or kind.severity, shown(subject), shown(detail), kind.mend if mend is None else shown(mend))


def shown(text: str) -> str:
    """As it can go to a terminal, whatever others put into it: one line, nothing that steers it, not too long."""
    plain = "".join(character if character.isprintable() else "�" for character in text)
    return plain if len(plain) <= TEXT_LENGTH_MAX else plain[: TEXT_LENGTH_MAX - 1] + "…"


def worst(findings: list[Finding]) -> Severity:
    """The gravest severity among them."""
    return max((found.severity for found in findings), key=lambda severity: severity.rank, default=Severity.OK)

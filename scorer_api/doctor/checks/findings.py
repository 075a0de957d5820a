"""A finding of the doctor: what is wrong, and where."""

from msgspec import Struct

from scorer_api.doctor.checks.kinds import KINDS, Severity

TEXT_LENGTH_MAX = 400

EXIT_CODES = {Severity.OK: 0, Severity.NOTE: 0, Severity.WARNING: 1, Severity.ERROR: 3}
"""2 is for a wrong command line, as in all commands."""


class Finding(Struct, frozen=True):
    """`subject`: the service, a pod, Redis. `mend`: what to do about it."""

    code: str
    severity: Severity
    subject: str
    detail: str
    mend: str = ""


def finding(code: str, subject: str, detail: str, severity: Severity | None = None, mend: str | None = None) -> Finding:
    """`severity`, `mend`: instead of the usual ones of this code."""
    kind = KINDS[code]
    return Finding(code, severity or kind.severity, printable(subject), printable(detail), kind.mend if mend is None else printable(mend))


def printable(text: str) -> str:
    """The text in one line without control characters, cut to a maximum: it may contain anything, and goes to a terminal."""
    plain = "".join(character if character.isprintable() else "�" for character in text)
    return plain if len(plain) <= TEXT_LENGTH_MAX else plain[: TEXT_LENGTH_MAX - 1] + "…"


def worst(findings: list[Finding]) -> Severity:
    """The most severe of their severities."""
    return max((found.severity for found in findings), key=lambda severity: severity.rank, default=Severity.OK)

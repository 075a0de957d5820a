"""Running the doctor in a test, and what it found."""

import asyncio
from typing import Any

from indexer.store.keyspace import check_namespace
from scorer_api.doctor.checks.findings import EXIT_CODES, Finding, worst
from scorer_api.doctor.examination import ExaminationRequest, examine


class Examined:
    """What the doctor found with these wishes, see `ExaminationRequest`. `exit_code`: what the command would end with."""

    def __init__(self, url: str, **request: Any) -> None:
        check_namespace(request.get("namespace", "kvi"), "namespace")
        self.findings: list[Finding] = asyncio.run(examine(ExaminationRequest(url, **{"listen_s": 0.3, **request})))
        self.exit_code = EXIT_CODES[worst(self.findings)]

    @property
    def codes(self) -> list[str]:
        return [found.code for found in self.findings]

    def bad(self) -> set[str]:
        """The codes of warnings and errors."""
        return {found.code for found in self.findings if found.severity in ("warning", "error")}

    def the(self, code: str) -> Finding:
        """The only finding of this code."""
        same = [found for found in self.findings if found.code == code]
        assert len(same) == 1, f"{code} was found {len(same)} times among {self.codes}: {self.findings}"
        return same[0]

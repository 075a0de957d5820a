"""The notes of a release, and the trees that are not ready for one."""

import pytest

from release.changelog import notes, sections
from release.errors import ReleaseError

TEXT = "# Changelog\n\n## Unreleased\n\n## 1.1.0\n\n- New.\n\n## 1.0.0\n\nFirst.\n"


def test_sections_are_told_apart() -> None:
    assert sections(TEXT) == {"Unreleased": "", "1.1.0": "- New.", "1.0.0": "First."}


def test_the_newest_release_s_notes() -> None:
    assert notes(TEXT, "1.1.0") == "- New."


@pytest.mark.parametrize(
    ("text", "version", "reason"),
    [
        (TEXT, "1.2.0", "no notes under '## 1.2.0'"),
        (TEXT, "1.0.0", "begins with 1.1.0"),
        (TEXT.replace("- New.", ""), "1.1.0", "no notes under '## 1.1.0'"),
        (TEXT.replace("Unreleased\n", "Unreleased\n\n- More.\n"), "1.1.0", "move them to '## 1.1.0'"),
    ],
)
def test_what_is_not_ready_is_said(text: str, version: str, reason: str) -> None:
    with pytest.raises(ReleaseError, match=reason):
        notes(text, version)

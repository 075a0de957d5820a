"""CHANGELOG.md: a section for each release, and one for what is not released yet."""

import re

from release.errors import ReleaseError

HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
UNRELEASED = "Unreleased"


def sections(text: str) -> dict[str, str]:
    """Heading → what stands under it, in the order of the file."""
    parts = HEADING.split(text)
    return {heading: body.strip() for heading, body in zip(parts[1::2], parts[2::2], strict=True)}


def notes(text: str, version: str) -> str:
    """What changed with this release. Raises ReleaseError unless it is the newest one, with notes, and nothing is left as unreleased."""
    found = sections(text)
    if not found.get(version):
        raise ReleaseError(f"CHANGELOG.md has no notes under '## {version}'")
    if found.get(UNRELEASED):
        raise ReleaseError(f"CHANGELOG.md has changes under '## {UNRELEASED}': move them to '## {version}', or raise the version")
    released = [heading for heading in found if heading != UNRELEASED]
    if released[0] != version:
        raise ReleaseError(f"CHANGELOG.md begins with {released[0]}, which is not {version}")
    return found[version]

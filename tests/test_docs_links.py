"""Every relative link in the documentation leads somewhere, on the pages that are no part of the site too; and the README is short."""

import re
from pathlib import Path

import pytest

from docs.generator.pages import expand

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("**/*.md")) if path.exists())
# [text](target) and ![text](target); a target in angle brackets or with a title is not used here.
LINK = re.compile(r"!?\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^()\s]+)\)")
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^#+ +(.+?) *#*$", re.MULTILINE)


README_LINES_MAX, README_BYTES_MAX = 200, 12_000


def prose(page: Path) -> str:
    """A page with its generated parts and without its code blocks."""
    return FENCE.sub("", expand(page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    found: set[str] = set()
    for heading in HEADING.findall(prose(page)):
        text = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower())
        slug = text.strip().replace(" ", "-")
        found |= {slug, re.sub(r"-{2,}", "-", slug)}
    return found


def targets(page: Path) -> list[str]:
    """The targets of the links that stay inside the repository."""
    return [target for target in LINK.findall(prose(page)) if not re.match(r"[a-z][a-z+.-]*:", target)]


def test_links_are_found() -> None:
    assert LINK.findall("See [a `b`](x.md#c), ![picture](images/d.svg) and [e](https://f).") == ["x.md#c", "images/d.svg", "https://f"]
    assert "what-a-subscriber-survives" in anchors(ROOT / "docs/explanation/wire-format.md")
    assert targets(ROOT / "docs/explanation/wire-format.md")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_relative_link_resolves(page: Path) -> None:
    broken = []
    for target in targets(page):
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (anchor and path.suffix == ".md" and anchor not in anchors(path)):
            broken.append(target)
    assert broken == []


def test_the_readme_is_short() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= README_LINES_MAX
    assert len(text.encode()) <= README_BYTES_MAX

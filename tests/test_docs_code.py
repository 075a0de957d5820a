"""What the documentation says of the code is so: the paths that it names, the types, the scripts, the tasks and the packages."""

import re
from pathlib import Path

import pytest

from tests.test_docs_links import PAGES
from tests.test_imports import MAY_IMPORT

ROOT = Path(__file__).parent.parent
ARCHITECTURE = ROOT / "docs/explanation/architecture.md"
NAMED = re.compile(r"`((?:indexer|scorer_api|tests|docs|deploy|bench|\.ci)/[\w./*-]*)`")
PACKAGE = re.compile(r"^\| `((?:indexer|scorer_api)[\w.]*)` \| .+ \|$", re.MULTILINE)


def missing(text: str) -> list[str]:
    """The paths that a text names and that there are not. `*` stands for anything."""
    return [path for path in NAMED.findall(text) if not any(ROOT.glob(path.rstrip("/")))]


def test_a_path_that_is_not_there_is_found() -> None:
    assert missing("`indexer/errors.py`, `indexer/store/lua/`, `tests/data/*.jsonl`, `tests/nowhere.py`") == ["tests/nowhere.py"]
    assert len(NAMED.findall((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"))) > 40


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_path_that_is_named_is_there(page: Path) -> None:
    assert missing(page.read_text(encoding="utf-8")) == []


def test_every_script_that_the_architecture_names_is_there() -> None:
    named = set(re.findall(r"`(\w+\.lua)`", ARCHITECTURE.read_text(encoding="utf-8")))
    assert named
    assert named - {path.name for path in (ROOT / "indexer/store/lua").iterdir()} == set()


def test_every_package_is_described_in_the_order_of_the_imports() -> None:
    assert PACKAGE.findall(ARCHITECTURE.read_text(encoding="utf-8")) == list(MAY_IMPORT)


def test_every_task_and_thread_of_the_architecture_has_its_name_in_the_code() -> None:
    (section,) = re.findall(r"^## Threads and tasks\n(.*?)(?=^## )", ARCHITECTURE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    cells = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    names = {name.removesuffix(" …") for cell in cells for name in re.findall(r"`([a-z][a-z ]*…?)`", cell)}
    assert len(names) > 10
    sources = "\n".join(path.read_text(encoding="utf-8") for folder in ("indexer", "scorer_api") for path in (ROOT / folder).rglob("*.py"))
    assert {name for name in names if not re.search(rf'f"{name} |"{name}"', sources)} == set()


def test_every_type_of_the_glossary_is_where_it_says() -> None:
    rows = re.findall(
        r"^\| [^|]+ \| (`[A-Z][^|]+) \| (`(?:indexer|scorer_api)/[^|]+) \|$", (ROOT / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(rows) > 15
    wrong = []
    for types, paths in rows:
        sources = "\n".join((ROOT / path).read_text(encoding="utf-8") for path in re.findall(r"`([^`]+)`", paths))
        wrong += [name for name in re.findall(r"`(\w+)`", types) if not re.search(rf"^class {name}\b", sources, re.MULTILINE)]
    assert wrong == []

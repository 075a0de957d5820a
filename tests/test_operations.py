"""docs/operations.md speaks of what there is: alerts, fields, log messages, files, and the version of the layout."""

import re

import pytest

from indexer.store.keyspace import LAYOUT
from indexer.streams.status import StreamStatus
from tests.deploy.manifests import DEPLOY, ROOT, load

PATH = ROOT / "docs/operations.md"


def section(title: str) -> str:
    """What stands under this heading."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", PATH.read_text(), re.MULTILINE | re.DOTALL)
    assert found, title
    return found[1]


def first_cells(text: str) -> list[str]:
    """The words in backquotes in the first column of its tables."""
    return [word for cell in re.findall(r"^\| (`.+?`) \|", text, re.MULTILINE) for word in re.findall(r"`(.+?)`", cell)]


def test_every_alert_is_there_with_what_to_do_and_no_other() -> None:
    rules = load(DEPLOY / "prometheus/kv-indexer-rules.yml")
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert len(alerts) > 8
    assert sorted(first_cells(section("Alerts"))) == sorted(alerts)


def test_every_field_of_a_stream_is_there_and_no_other() -> None:
    assert first_cells(section("Reading `GET /v1/pods`")) == list(StreamStatus.__struct_fields__)


def test_every_log_message_that_is_named_is_one() -> None:
    sources = "\n".join(path.read_text() for folder in ("indexer", "scorer_api") for path in (ROOT / folder).rglob("*.py"))
    logged = set(re.findall(r'log\.\w+\(\s*"([^"]+)"', sources))
    named = set(first_cells(section("The log")))
    assert len(named) > 10
    assert named - logged == set()


def test_the_layout_s_version_is_that_of_the_keys() -> None:
    assert set(re.findall(r"`kvi:(\d+):", section("Upgrade and roll-back"))) == {str(LAYOUT)}


def test_every_file_that_is_named_is_there() -> None:
    text = PATH.read_text()
    named = set(re.findall(r"`((?:deploy|docs)/[\w./-]*)`", text)) | {
        f"deploy/{name}" for name in re.findall(r"`((?:kubernetes|helm)/[\w/-]*)`", text)
    }
    assert len(named) > 4
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize(
    ("what", "bytes_per_copy", "base_mb", "shown_mb"),
    [("memory of a scorer", 330, 65, 400), ("memory of an indexer", 320, 65, 390), ("memory of Redis, index", 86, 0, 86)],
)
def test_the_example_follows_from_its_formula(what: str, bytes_per_copy: int, base_mb: int, shown_mb: int) -> None:
    """1,000,000 copies, to the next 10 MB."""
    (line,) = [line for line in section("Sizing").splitlines() if line.startswith(f"| {what} |")]
    assert f"{bytes_per_copy} B \N{MULTIPLICATION SIGN} copies" in line
    assert f"{shown_mb} MB" in line
    assert abs(base_mb + bytes_per_copy * 1_000_000 / 1_000_000 - shown_mb) <= 5

"""The comparison with snapshots notices every difference, and shows it."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.snapshots import FOLDER, UPDATE, check, render

VALUE = {"a": [1, 2.0, None, "ä"], "b": {"long": ["x" * 60] * 3, "empty": {}}}


@pytest.fixture(autouse=True)
def _compares(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(UPDATE, raising=False)


def test_what_is_rendered_is_json_of_the_same_value() -> None:
    assert json.loads(render(VALUE)) == VALUE


@pytest.mark.parametrize(
    "changed",
    [
        {**VALUE, "c": 1},
        {"a": VALUE["a"]},
        {"b": VALUE["b"], "a": VALUE["a"]},
        {**VALUE, "a": [1, 2, None, "ä"]},
        {**VALUE, "a": [1.0, 2.0, None, "ä"]},
        {**VALUE, "a": [2.0, 1, None, "ä"]},
    ],
)
def test_a_difference_fails_and_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]) -> None:
    monkeypatch.setenv(UPDATE, "1")
    check("value", VALUE, tmp_path)
    monkeypatch.delenv(UPDATE)
    check("value", VALUE, tmp_path)
    with pytest.raises(AssertionError, match=r"(?m)^[+-] ") as failure:
        check("value", changed, tmp_path)
    assert UPDATE in str(failure.value)


def test_a_snapshot_that_is_missing_fails(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="there is no snapshot"):
        check("value", VALUE, tmp_path)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_committed_snapshots_are_written_as_they_are_rendered(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert render(json.loads(text)) + "\n" == text

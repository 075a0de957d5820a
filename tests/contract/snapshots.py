"""Comparing a value with its committed snapshot."""

import difflib
import json
import os
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "data" / "contract"
UPDATE = "UPDATE_CONTRACT"
COMMAND = f"{UPDATE}=1 .venv/bin/python -m pytest tests/contract"
LINE_LENGTH_MAX = 150
DIFF_LINES_MAX = 400


def check(name: str, found: Any, folder: Path = FOLDER) -> None:
    """Fails with a diff unless `found`, a JSON value, is what the snapshot says. With UPDATE_CONTRACT=1 the snapshot is written instead."""
    path = folder / f"{name}.json"
    text = render(found) + "\n"
    if os.environ.get(UPDATE) == "1":
        path.write_text(text, encoding="utf-8")
        return
    assert path.exists(), f"there is no snapshot {path}; to write it: {COMMAND}"
    expected = path.read_text(encoding="utf-8")
    if text == expected:
        return
    lines = list(difflib.unified_diff(expected.splitlines(), text.splitlines(), f"{path.name}, committed", f"{path.name}, found", lineterm="", n=4))
    left = len(lines) - DIFF_LINES_MAX
    shown = "\n".join(lines[:DIFF_LINES_MAX]) + (f"\n… and {left} more lines" if left > 0 else "")
    raise AssertionError(f"the contract changed; where that is meant: {COMMAND}\n{shown}")


def render(value: Any, indent: str = "") -> str:
    """JSON with each object and list on one line where it fits, else one entry a line. Keeps the order of keys, and tells 1 from 1.0."""
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or not value or len(indent) + len(line) <= LINE_LENGTH_MAX:
        return line
    deeper = indent + "  "
    if isinstance(value, dict):
        entries = [f"{json.dumps(key, ensure_ascii=False)}: {render(entry, deeper)}" for key, entry in value.items()]
    else:
        entries = [render(entry, deeper) for entry in value]
    begin, end = "{}" if isinstance(value, dict) else "[]"
    return f"{begin}\n{deeper}" + f",\n{deeper}".join(entries) + f"\n{indent}{end}"

"""Which core a process uses is decided once, when it starts."""

import os
import subprocess
import sys
import tomllib

import pytest

from indexer import compiled
from tests.running import ROOT


def chosen(choice: str | None, *more: str) -> list[str]:
    """What a new process says: the core that is in use, whether it is there, and why not."""
    env = {key: value for key, value in os.environ.items() if key != compiled.VARIABLE}
    words = "import sys; from indexer import compiled; print(compiled.ACTIVE, compiled.core is not None, compiled.WHY_NOT, sep='\\n')"
    command = [sys.executable, "-c", "\n".join([*more, words])]
    ran = subprocess.run(
        command, cwd=ROOT, env={**env, **({} if choice is None else {compiled.VARIABLE: choice})}, capture_output=True, text=True, check=True
    )
    return ran.stdout.splitlines()


def test_the_variable_forces_the_python() -> None:
    assert chosen("python") == ["python", "False", "KV_INDEXER_CORE says so"]


def test_without_a_build_the_python_is_used_and_says_why() -> None:
    found = chosen(None, "import sys; sys.modules['indexer.compiled._core'] = None")
    assert found[:2] == ["python", "False"]
    assert "_core" in found[2]


def test_what_was_built_is_used() -> None:
    pytest.importorskip("indexer.compiled._core")
    for choice in (None, "auto", "compiled"):
        assert chosen(choice) == ["compiled", "True", "None"]


def test_a_source_distribution_has_every_file_that_the_core_is_compiled_from() -> None:
    """Setuptools takes only those that `depends` names along; without one of them a wheel that is built from it has no core."""
    (extension,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["ext-modules"]
    files = (ROOT / "indexer/compiled").iterdir()
    assert extension["depends"] == sorted(str(file.relative_to(ROOT)) for file in files if file.suffix in (".pxi", ".h"))

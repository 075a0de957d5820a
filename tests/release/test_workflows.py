""".github/workflows: they run what people run, and only actions of one commit."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.manifests import tool
from tests.running import ROOT

WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def jobs(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())["jobs"]
    return found


def commands(path: Path) -> list[str]:
    return [line.strip() for job in jobs(path).values() for step in job.get("steps", []) for line in step.get("run", "").splitlines()]


def targets(path: Path) -> list[str]:
    """What `make` is told to make."""
    told = [command.split() for command in commands(path) if command.startswith("make ")]
    return [word for words in told for word in words[1:] if re.fullmatch(r"[a-z-]+", word)]


def test_there_is_one_for_the_gate_the_docs_and_the_release() -> None:
    assert [path.stem for path in WORKFLOWS] == ["docs", "gate", "release"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_target_is_one_of_the_makefile(path: Path) -> None:
    assert targets(path)
    assert set(targets(path)) - TARGETS == set()


def test_the_gate_is_what_a_change_has_to_pass() -> None:
    (gate,) = re.findall(r"^make PYTHON=\S+ (.+)$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    (path,) = (path for path in WORKFLOWS if path.stem == "gate")
    assert f"make {gate}" in commands(path)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_action_is_pinned_to_a_commit(path: Path) -> None:
    used = re.findall(r"uses: (\S+)(.*)$", path.read_text(), re.MULTILINE)
    assert used
    assert [name for name, _ in used if not name.startswith("./") and not re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", name)] == []
    assert [name for name, comment in used if "@" in name and not re.fullmatch(r" # v\d+\.\d+\.\d+", comment)] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_every_job_says_what_it_may_and_how_long(path: Path) -> None:
    assert yaml.safe_load(path.read_text())["permissions"] == {}
    assert [name for name, job in jobs(path).items() if "permissions" not in job] == []
    assert [name for name, job in jobs(path).items() if "timeout-minutes" not in job and "uses" not in job] == []


def test_every_file_of_a_release_that_is_named_is_made_before() -> None:
    (path,) = (path for path in WORKFLOWS if path.stem == "release")
    assert targets(path)[:3] == ["release-check", "release", "release-notes"]
    assert {"release-wheels", "release-dockerfile"} <= set(targets(path))


@pytest.mark.deploy
def test_they_fit_the_schema_of_workflows() -> None:
    words = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS)]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


@pytest.mark.deploy
def test_zizmor_finds_nothing_to_object_to() -> None:
    tool("zizmor", "--offline", "--no-progress", "--quiet", *map(str, WORKFLOWS))

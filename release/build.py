"""Source distribution, wheel, list of components, chart and checksums, in one folder."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

from release import changelog, chart, versions
from release.errors import ReleaseError

BUILD_S = 600
CORE = re.compile(r"indexer/compiled/_core\.abi3\.so")
SUMS = "SHA256SUMS"


def build(root: Path, folder: Path) -> list[Path]:
    """Everything that can be made on this machine. Raises ReleaseError for a build that failed."""
    version = versions.current(root)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    at_s = commit_time_s(root)
    # Without isolation: the setuptools and the Cython of the dev extra, which are pinned. The wheel is made from the source distribution.
    _run([sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(root)], at_s)
    (wheel,) = folder.glob("*.whl")
    check_core(wheel)
    made = [
        *folder.glob("*.tar.gz"),
        wheel,
        components(root, folder / f"kv-event-indexer-{version}.cdx.json", at_s),
        chart.package(root, version, folder, at_s),
    ]
    (folder / SUMS).write_text("".join(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.name}\n" for path in sorted(made)))
    return [*made, folder / SUMS]


def check_tree(root: Path) -> None:
    """Raises ReleaseError."""
    different = versions.differing(root)
    if different:
        raise ReleaseError(f"{different[0]}; `make version VERSION=…` writes it everywhere")
    changelog.notes((root / "CHANGELOG.md").read_text(), versions.current(root))


def check_core(wheel: Path) -> None:
    """A build without a C compiler makes a wheel too. Raises ReleaseError for one."""
    with zipfile.ZipFile(wheel) as archive:
        if not any(CORE.fullmatch(name) for name in archive.namelist()):
            raise ReleaseError(f"{wheel.name} has no compiled core: is there a C compiler?")


def components(root: Path, target: Path, at_s: int) -> Path:
    """The packages that the image installs, with versions and hashes, as CycloneDX."""
    words = ["requirements", "--pyproject", str(root / "pyproject.toml"), "--output-reproducible", "--output-format", "JSON"]
    _run([sys.executable, "-m", "cyclonedx_py", *words, "--output-file", str(target), str(root / "deploy/requirements.txt")], at_s)
    return target


def commit_time_s(root: Path) -> int:
    """What time stamps in archives say: when the last change was committed, else $SOURCE_DATE_EPOCH."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    words = ["git", "-C", str(root), "log", "-1", "--format=%ct"]
    ran = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603 - our own words
    if ran.returncode != 0:
        raise ReleaseError("no git repository tells the time of the last change: set SOURCE_DATE_EPOCH")
    return int(ran.stdout)


def _run(words: Sequence[str], at_s: int) -> None:
    environ = {**os.environ, "SOURCE_DATE_EPOCH": str(at_s)}
    ran = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=BUILD_S, check=False)  # noqa: S603 - our own words
    if ran.returncode != 0:
        raise ReleaseError(f"{' '.join(words[1:4])} failed:\n{ran.stdout}{ran.stderr}")

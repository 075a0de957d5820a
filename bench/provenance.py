"""Where figures come from: without this they cannot be compared."""

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from msgspec import Struct

from indexer.compiled import ACTIVE

ROOT = Path(__file__).parent.parent
PACKAGES = ("kv-event-indexer", "fastapi", "httptools", "msgspec", "prometheus-client", "pyzmq", "uvicorn", "uvloop", "xxhash")


class Provenance(Struct, frozen=True):
    """`commit`: with `-dirty` where files differ from it. `load_average`: over 1, 5 and 15 minutes, before the first measurement.
    `core`: compiled or python."""

    date: str
    commit: str
    python: str
    platform: str
    cpu: str
    cpus: int
    load_average: tuple[float, float, float]
    core: str
    packages: dict[str, str]


def take() -> Provenance:
    """Of this moment."""
    return Provenance(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=_commit(),
        python=platform.python_version(),
        platform=platform.platform(),
        cpu=_cpu(),
        cpus=len(os.sched_getaffinity(0)),
        load_average=os.getloadavg(),
        core=ACTIVE,
        packages={package: version(package) for package in PACKAGES},
    )


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True).stdout.strip()  # noqa: S603 - a constant command
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _cpu() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

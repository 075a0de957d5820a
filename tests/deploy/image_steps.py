"""The steps of a Dockerfile, carried out in a directory instead of a container: what its COPY, RUN and ENV say, with the paths of the image
moved under that directory, and with nothing on the PATH but Python, pip and a few commands, as in a slim image; with a C compiler in a stage that
begins with another one.

What it cannot show: that the base image is there, and what is in it.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from msgspec import Struct

STEP_S = 240.0
# Of the commands in a slim image, those that steps here need.
COMMANDS = ("sh", "env", "uname")
# Of those in one that is not slim.
COMPILER = ("cc", "gcc", "as", "ld", "ar")
# The paths of the image that are its own. /src is where it builds.
OWN = re.compile(r"(?<![\w.])/(?=(?:opt/kv-indexer|src|wheels)\b)")
UNSHARE = ["unshare", "--map-root-user", "--mount"]
# Makes all that could be written to read-only, sees that it is, and goes on with the words it was given.
READ_ONLY = """
for at in / /tmp /var/tmp /dev/shm "$TMPDIR"; do
  if mountpoint -q "$at"; then mount -o remount,bind,ro "$at" || exit 1; fi
done
for at in "$0" /tmp /var/tmp /dev/shm; do
  if touch "$at/probe" 2>/dev/null; then exit 1; fi
done
exec "$@"
"""


def instructions(dockerfile: Path) -> Iterator[tuple[str, str]]:
    """Name and words of each instruction, with ARG's defaults put in."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    arguments: dict[str, str] = {}
    for line in filter(None, text.splitlines()):
        name, _, words = line.partition(" ")
        for key, value in arguments.items():
            words = words.replace(f"${{{key}}}", value)
        if name == "ARG":
            key, _, arguments[key] = words.partition("=")
        yield name, words.strip()


class Image(Struct, frozen=True):
    """What the steps made: files under `folder`, and what the last stage says of its processes."""

    folder: Path
    binaries: Path
    environ: dict[str, str]
    entrypoint: list[str]
    healthcheck: list[str]

    def _words(self, words: Sequence[str]) -> list[str]:
        found = shutil.which(words[0], path=self.environ["PATH"])
        assert found, f"{words[0]} is not in the image"
        return [found, *(OWN.sub(f"{self.folder}/", word) for word in words[1:])]

    def run(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """The entry point with these words. Fails where it does."""
        return subprocess.run(
            self._words([*self.entrypoint, *words]), env={**self.environ, **variables}, capture_output=True, text=True, timeout=60, check=True
        )

    def check(self, **variables: str) -> int:
        """The exit code of the health check."""
        words = self._words(self.healthcheck)
        return subprocess.run(words, env={**self.environ, **variables}, capture_output=True, timeout=60, check=False).returncode

    @contextmanager
    def started(self, *words: str, confined: bool = False, **variables: str) -> Iterator[subprocess.Popen[str]]:
        """The entry point with these words, as a process. `confined`: with nothing that it could write to. Tests listen on loopback only."""
        command = self._words([*self.entrypoint, *words])
        if confined:
            command = [*UNSHARE, "sh", "-c", READ_ONLY, "sh", *command]
        environ = {**self.environ, "KV_INDEXER_HOST": "127.0.0.1", **variables}
        with subprocess.Popen(
            command, env={**environ, "PATH": f"{environ['PATH']}:{os.environ['PATH']}"}, stdout=subprocess.PIPE, text=True
        ) as process:
            try:
                yield process
            finally:
                process.kill()

    def can_be_confined(self) -> bool:
        """Whether this user may, on this machine."""
        words = self._confined(["true"])
        return shutil.which("unshare") is not None and subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == 0

    def _confined(self, words: list[str]) -> list[str]:
        return [*UNSHARE, "sh", "-c", READ_ONLY, str(self.folder), *words]


def built(dockerfile: Path, context: Path, folder: Path) -> Image:
    """Carry out every step. Fails with what a step says."""
    binaries = _base(folder / "base")
    environ = {"PATH": str(binaries), "HOME": str(folder), **{key: value for key, value in os.environ.items() if key.startswith("PIP_")}}
    base_environ = dict(environ)
    where = folder
    said: dict[str, list[str]] = {}
    for name, words in instructions(dockerfile):
        moved = OWN.sub(f"{folder}/", words)
        match name:
            case "FROM":
                environ, where = dict(base_environ), folder
                if "-slim" not in words:
                    environ["PATH"] += f":{_linked(COMPILER, folder / 'compiler')}"
            case "WORKDIR":
                where = Path(moved)
                where.mkdir(parents=True, exist_ok=True)
            case "ENV":
                for key, value in re.findall(r"(\w+)=(\S+)", moved):
                    environ[key] = value.replace("$PATH", environ["PATH"])
            case "COPY" if "--from" not in words:
                _copy(context, moved.split(), where)
            case "RUN":
                ran = subprocess.run(["sh", "-c", moved], cwd=where, env=environ, capture_output=True, text=True, timeout=STEP_S, check=False)  # noqa: S607
                assert ran.returncode == 0, f"RUN {words}\n{ran.stdout}{ran.stderr}"
            case "ENTRYPOINT":
                said[name] = json.loads(words)
            case "HEALTHCHECK":
                said[name] = json.loads(words.partition("CMD ")[2])
            case "COPY" | "ARG" | "LABEL" | "USER" | "EXPOSE" | "CMD":
                pass  # between stages the paths are the same; the others are words about the image
            case _:
                raise AssertionError(f"{name} is not known here")
    return Image(folder, binaries, environ, said["ENTRYPOINT"], said["HEALTHCHECK"])


def _base(folder: Path) -> Path:
    """What stands for the base image: a Python with pip, and a few commands. Returns its bin."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, timeout=STEP_S)
    return _linked(COMMANDS, folder / "bin")


def _linked(commands: Sequence[str], folder: Path) -> Path:
    """A folder with links to these."""
    folder.mkdir(exist_ok=True)
    for command in commands:
        found = shutil.which(command)
        assert found, command
        (folder / command).symlink_to(found)
    return folder


def _copy(context: Path, words: list[str], where: Path) -> None:
    *sources, target = words
    for source in sources:
        to = where / target
        if (context / source).is_dir():
            shutil.copytree(context / source, to, ignore=shutil.ignore_patterns("__pycache__", "*.so", "_core.c"))
        else:
            is_folder = target.endswith("/") or len(sources) > 1
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(context / source, to / Path(source).name if is_folder else to)

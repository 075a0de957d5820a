"""A gateway for tests: a program with its files of deploy/examples, whose addresses are those of the test."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.demo_fleet import DemoFleet, client_of, wait_for_http
from tests.ports import free_port
from tests.running import ROOT

EXAMPLES = ROOT / "deploy/examples"


class Gateway:
    """`with Gateway(fleet, words, files) as gateway:` a process of its own. `http`: a client of it.

    `words`: the command; `{folder}` is where the files are, `{port}` where it is to listen. `changes`: to the text of the files, old → new.
    """

    def __init__(
        self,
        fleet: DemoFleet,
        words: Sequence[str],
        files: Sequence[str],
        changes: Mapping[str, str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory()
        folder = Path(self._folder.name)
        one, two = (address.rpartition(":")[2] for address in fleet.addresses.values())
        ports = {"8000": str(self.port), "8001": one, "8002": two, "8080": fleet.service.url.rpartition(":")[2], "9901": str(free_port())}
        for name in files:
            text = (EXAMPLES / name).read_text()
            for old, new in {**(changes or {})}.items():
                assert old in text or len(files) > 1, f"{old!r} is not in {name}"
                text = text.replace(old, new.replace("{folder}", str(folder)))
            for old, new in ports.items():
                for before in ("127.0.0.1:", "port_value: "):
                    text = text.replace(f"{before}{old}", f"{before}{new}")
            (folder / name).write_text(text)
        self._words = [word.format(folder=folder, port=self.port) for word in words]
        self._env = {**os.environ, **(env or {})}
        self.http = client_of(f"http://127.0.0.1:{self.port}")

    def __enter__(self) -> Self:
        log = Path(self._folder.name) / "log"
        with log.open("w") as output:
            self.process = subprocess.Popen(self._words, cwd=self._folder.name, env=self._env, stdout=output, stderr=output, text=True)
        try:
            wait_for_http(self.http, self.process)
        except BaseException:
            print(log.read_text())  # noqa: T201 - pytest shows it with the failure
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()
        self.process.terminate()
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._folder.cleanup()


def needs(program: str, package: str) -> str:
    """A program of this machine. Skips the test where it is not installed."""
    path = shutil.which(program, path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if path is None:
        pytest.skip(f"{program} is not installed: apt-get install {package}")
    return path

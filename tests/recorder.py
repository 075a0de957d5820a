"""`kv-indexer record` and `kv-indexer replay` in processes of their own."""

import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from tests.command import start
from tests.waiting import wait_until


class Process:
    """`with Process("record", …) as recorder:` one of the two, told to end at the end of the block."""

    def __init__(self, *words: str | Path) -> None:
        self._words = words

    def __enter__(self) -> Self:
        self.process = start(*self._words)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()

    def stop(self) -> int:
        """SIGTERM. Returns the exit code. Idempotent."""
        self.process.terminate()
        try:
            return self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def line(self) -> str:
        """The next line that it prints."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"it ended: {self.process.stderr.read() if self.process.stderr else ''}"
        return line.rstrip("\n")

    def step(self, line: str) -> None:
        """Give it a line, and wait until that is done."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        assert self.line() == line

    def wait_whole(self, file: Path, count: int) -> None:
        """Wait until so many entries are in a file that it writes."""
        wait_until(lambda: file.exists() and count_of(file) >= count)


def count_of(file: Path) -> int:
    """How many entries the header of a file says it has."""
    return int.from_bytes(file.read_bytes()[1:5], "big")


def frames_of(file: Path) -> Sequence[tuple[str, list[bytes]]]:
    """Engine and frames of each message, read by the decoder alone: a file that is not whole is an error."""
    return [(engine, frames) for _, engine, frames in msgspec.msgpack.decode(file.read_bytes())]

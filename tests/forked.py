"""Processes of the kv-indexer command that are forked from one parent, which has imported everything.

A fresh interpreter takes the better part of a second of CPU to import the service, and a test run starts hundreds of them. Here each test process has
one parent that imports it once. It forks twice, and the process in between ends at once: the test process, as the nearest subreaper, becomes the
parent of what is left, so that waiting for it and signalling it are as safe as with `subprocess`. Linux only: elsewhere `IS_AVAILABLE` is False.
"""

import atexit
import ctypes
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TextIO

import coverage

from indexer.engines.http_client import trusted_authorities

ROOT = Path(__file__).parent.parent
IS_AVAILABLE = sys.platform == "linux"
PR_SET_CHILD_SUBREAPER = 36
REQUEST_BYTES_MAX = 2**20
POLL_S = 0.005
# Has a process measured from its start, by the settings that it holds.
COVERAGE_VARIABLE = "COVERAGE_PROCESS_CONFIG"
# What the service imports late, or only in one of its roles.
IMPORTED = (
    *("scorer_api.cli.__main__", "scorer_api.cli.serve", "scorer_api.cli.api", "scorer_api.cli.ingest"),
    *("scorer_api.tokens.local_tokenizer", "tests.patched", "tests.next_layout"),
    *("anyio._backends._asyncio", "httpcore", "pydantic.v1"),
)


class ForkedProcess:
    """A process with the part of `subprocess.Popen` that tests use. `stderr`, `stdin`, `stdout`: its standard streams, as text."""

    def __init__(self, pid: int, stderr: TextIO, stdin: TextIO | None = None, stdout: TextIO | None = None) -> None:
        self.pid = pid
        self.stderr = stderr
        self.stdin = stdin
        self.stdout = stdout
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        deadline_s = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline_s is not None and time.monotonic() >= deadline_s:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            time.sleep(POLL_S)
        return code

    def communicate(self, text: str = "", timeout: float | None = None) -> tuple[str, str]:
        """Give it this text, wait for its end. Returns what it wrote to its standard output and error. Raises subprocess.TimeoutExpired."""
        assert self.stdin is not None
        assert self.stdout is not None
        with ThreadPoolExecutor(2) as pool, self.stdin, self.stdout, self.stderr:
            out, err = pool.submit(self.stdout.read), pool.submit(self.stderr.read)
            with suppress(BrokenPipeError):
                self.stdin.write(text)
                self.stdin.close()
            try:
                self.wait(timeout)
            except subprocess.TimeoutExpired:
                self.kill()
                raise
            return out.result(), err.result()

    def send_signal(self, number: int) -> None:
        """Does nothing once it has ended: its number may be another's then."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class _Parent:
    """The process that forks. It ends with this one: its socket is closed then."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "this process cannot become a subreaper")
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            words = [sys.executable, "-m", "tests.forked", str(its.fileno())]
            env = {name: value for name, value in os.environ.items() if name != COVERAGE_VARIABLE}
            self._process = subprocess.Popen(words, cwd=ROOT, env=env, pass_fds=[its.fileno()])
        self._socket = ours
        atexit.register(self._end)

    def fork(self, module: str, words: Sequence[str], env: Mapping[str, str], *, with_streams: bool) -> ForkedProcess:
        """`with_streams`: also with a standard input and output of its own."""
        stderr, its_stderr = os.pipe()
        ours, its = [stderr], {2: its_stderr}
        if with_streams:
            its_stdin, stdin = os.pipe()
            stdout, its_stdout = os.pipe()
            ours, its = [*ours, stdin, stdout], {**its, 0: its_stdin, 1: its_stdout}
        try:
            request = json.dumps({"module": module, "words": list(words), "env": dict(env), "streams": list(its)}).encode()
            socket.send_fds(self._socket, [request], list(its.values()))
        finally:
            for fd in its.values():
                os.close(fd)
        answer = self._socket.recv(64)
        assert answer, "the parent of forked processes has ended, see its standard error"
        modes = ("r", "w", "r")
        files = [os.fdopen(fd, mode, buffering=1, encoding="utf-8", errors="replace") for fd, mode in zip(ours, modes, strict=False)]
        return ForkedProcess(int(answer), *files)

    def _end(self) -> None:
        self._socket.close()
        self._process.wait()


@cache
def _parent(pid: int) -> _Parent:
    return _Parent()


def fork_module(module: str, words: Sequence[str], env: Mapping[str, str], *, with_streams: bool = False) -> ForkedProcess:
    """What `python -m MODULE WORDS` does with this environment. The module has a `main` that takes the words and returns the exit code."""
    return _parent(os.getpid()).fork(module, words, env, with_streams=with_streams)


def _serve(listening: socket.socket) -> None:
    """Fork what is asked for until nobody can ask any more."""
    for name in IMPORTED:
        import_module(name)
    trusted_authorities()
    gc.collect()
    gc.freeze()
    while True:
        request, fds, _, _ = socket.recv_fds(listening, REQUEST_BYTES_MAX, 3)
        if not request:
            return
        reading, writing = os.pipe()
        first = os.fork()
        if not first:
            second = os.fork()
            if second:
                os.write(writing, str(second).encode())
                os._exit(0)
            os.close(writing)
            os.close(reading)
            listening.close()
            _run(fds=fds, **json.loads(request))
        for fd in (writing, *fds):
            os.close(fd)
        os.waitpid(first, 0)
        listening.send(os.read(reading, 64))
        os.close(reading)


def _run(module: str, words: list[str], env: dict[str, str], streams: list[int], fds: list[int]) -> None:
    """In the forked process, to its end. `streams`: which of its standard streams `fds` are."""
    code: int | str | None = 1
    measured: coverage.Coverage | None = None
    try:
        for stream, fd in zip(streams, fds, strict=True):
            os.dup2(fd, stream)
            os.close(fd)
        os.environ.clear()
        os.environ.update(env)
        sys.argv = [module, *words]
        measured = coverage.process_startup() if COVERAGE_VARIABLE in env else None
        code = import_module(module).main(words)
    except SystemExit as ended:
        code = ended.code
    except BaseException:  # noqa: BLE001 - as the interpreter does at its end
        sys.excepthook(*sys.exc_info())
    finally:
        if measured is not None:
            measured.stop()
            measured.save()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))

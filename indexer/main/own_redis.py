"""A redis-server of this service's own, where several processes share what they know and no Redis was named.

It listens at a Unix socket in a folder that only this user can enter, and keeps nothing: the processes write anew what is lost with it.
"""

import ctypes
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from indexer.errors import SettingError

log = logging.getLogger(__name__)

PROGRAMS = ("redis-server", "valkey-server")
OPTIONS = {
    "port": "0",
    "save": "",
    "appendonly": "no",
    "daemonize": "no",
    "maxmemory-policy": "noeviction",
    "lazyfree-lazy-expire": "yes",
    "lazyfree-lazy-server-del": "yes",
    "lazyfree-lazy-user-del": "yes",
    "client-output-buffer-limit": "normal 128mb 32mb 30",
    "loglevel": "warning",
    "logfile": "",
}
START_TIMEOUT_S = 10.0
STOP_TIMEOUT_S = 5.0
POLL_S = 0.01
# One that ends sooner after its start is started again after a pause.
SHORT_LIFE_S = 5.0
PAUSE_S = 1.0
PR_SET_PDEATHSIG = 1


class OwnRedis:
    """`with OwnRedis(workers) as redis:` it answers at `redis.url`. Made, checked and ended by one process; the workers, that it forks, use the URL.

    Raises SettingError where there is no program for it, or it does not start.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        program = next(filter(None, map(shutil.which, PROGRAMS)), None)
        if program is None:
            raise SettingError("--workers", workers, "needs a Redis that the workers share: give --redis, or install redis-server or valkey-server")
        self._pid = os.getpid()
        self._folder = Path(tempfile.mkdtemp(prefix="kv-indexer-"))
        self._socket = self._folder / "redis.sock"
        words = [word for name, value in OPTIONS.items() for word in (f"--{name}", *(value.split() or [""]))]
        self._command = [program, *words, "--dir", str(self._folder), "--unixsocket", str(self._socket), "--unixsocketperm", "700"]
        self.url = f"unix://{self._socket}"
        self._process: subprocess.Popen[bytes] | None = None
        self._started_s = 0.0

    def __enter__(self) -> Self:
        try:
            self._start()
            self._wait_up()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End it. In processes that were forked this does nothing."""
        if os.getpid() != self._pid:
            return
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def check(self) -> None:
        """Start it again where it has ended."""
        process = self._process
        if process is None or process.poll() is None:
            return
        log.error("own redis-server ended", extra={"exit_code": process.returncode})
        if time.monotonic() - self._started_s < SHORT_LIFE_S:
            time.sleep(PAUSE_S)
        self._start()

    def _start(self) -> None:
        self._started_s = time.monotonic()
        # A session of its own: what a terminal sends to all of its processes is not for it, since others end first.
        self._process = subprocess.Popen(self._command, stdout=sys.stderr, start_new_session=True, preexec_fn=_end_with_parent)  # noqa: S603
        log.info("own redis-server started", extra={"pid": self._process.pid})

    def _wait_up(self) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline_s and self._process is not None and self._process.poll() is None:
            with suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self._socket))
                return
            time.sleep(POLL_S)
        raise SettingError("--workers", self._workers, f"{self._command[0]} does not start; its log is above")


def _end_with_parent() -> None:
    """In the new process: end when the parent does, however it ends. Where the system cannot do that, nothing happens."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

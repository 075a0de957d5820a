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
# One that answers no PING for so long is ended and started again. Between two looks no more time counts than this: all may have stood still.
HANG_S = 10.0
PASSED_MAX_S = 2.0
PING = b"PING\r\n"
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
        self._started_s = self._looked_s = self._still_s = 0.0
        self._probe: socket.socket | None = None
        """Over which it is asked whether it answers, without waiting."""

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
        self._close_probe()
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
        """Start it again where it has ended or hangs. To be called every second or so, and where a process has ended."""
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            if not self._hangs():
                return
            log.error("own redis-server hangs", extra={"pid": process.pid, "still_s": round(self._still_s, 1)})
            process.kill()
            process.wait()
        log.error("own redis-server ended", extra={"exit_code": process.returncode})
        if time.monotonic() - self._started_s < SHORT_LIFE_S:
            time.sleep(PAUSE_S)
        self._start()

    def _hangs(self) -> bool:
        now_s = time.monotonic()
        passed_s, self._looked_s = min(now_s - self._looked_s, PASSED_MAX_S), now_s
        self._still_s = 0.0 if self._has_answered() else self._still_s + passed_s
        return self._still_s > HANG_S

    def _has_answered(self) -> bool:
        """Whether it has since it was asked; then it is asked again."""
        try:
            if self._probe is None:
                self._probe = socket.socket(socket.AF_UNIX)
                self._probe.setblocking(False)
                self._probe.connect(str(self._socket))
                self._probe.send(PING)
            elif self._probe.recv(4_096):
                self._probe.send(PING)
                return True
            else:
                self._close_probe()
        except BlockingIOError:
            pass  # no answer yet
        except OSError:
            self._close_probe()
        return False

    def _close_probe(self) -> None:
        if self._probe is not None:
            self._probe.close()
            self._probe = None

    def _start(self) -> None:
        self._close_probe()
        self._started_s = self._looked_s = time.monotonic()
        self._still_s = 0.0
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

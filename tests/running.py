"""The service for tests: in this process, or in one of its own. Both are asked over real HTTP."""

import asyncio
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

import httpx

from indexer.http.server import serve
from scorer_api.app import make_serve
from tests.command import environment
from tests.forked import IS_AVAILABLE, ROOT, ForkedProcess, fork_module
from tests.settings import QUICK, settings_of
from tests.waiting import wait_until

# Reading the authorities of the machine takes longer than most tests; who needs TLS brings its own.
NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


class Client:
    """Asks a service."""

    url: str

    def __init__(self) -> None:
        self.http = httpx.Client(timeout=30, verify=NO_AUTHORITIES)

    def score(self, tokens: Sequence[int], model: str = "m", **more: Any) -> dict[str, Any]:
        response = self.http.post(f"{self.url}/v1/score", json={"model": model, "token_ids": list(tokens), **more})
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def matched(self, tokens: Sequence[int], pod: str = "pod", model: str = "m", **more: Any) -> int:
        """The matched tokens of one pod."""
        (figure,) = (p["matched_tokens"] for p in self.score(tokens, model, **more)["pods"] if p["pod"] == pod)
        return int(figure)

    def stream(self, pod: str = "pod", rank: int = 0) -> dict[str, Any]:
        """One stream's status."""
        pods = self.http.get(f"{self.url}/v1/pods").json()["pods"]
        (found,) = (s for p in pods if p["pod"] == pod for s in p["streams"] if s["rank"] == rank)
        status: dict[str, Any] = found
        return status

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the series with this name and these labels."""
        text = self.http.get(f"{self.url}/metrics").text
        total = 0.0
        for line in text.splitlines():
            found = re.fullmatch(rf"{re.escape(name)}(?:{{(.*)}})? (\S+)", line)
            if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
                total += float(found[2])
        return total

    def late(self, *, seconds: float) -> float:
        """How often the event loop was late by more: `seconds` is a bucket's bound."""
        lag = "kv_indexer_event_loop_lag_seconds"
        return self.metric(f"{lag}_count") - self.metric(f"{lag}_bucket", le=str(seconds))

    def assert_loop_in_time(self) -> None:
        """Nothing keeps the event loop busy: most of its turns are in time, also where tests share their machine."""
        lag = "kv_indexer_event_loop_lag_seconds"
        assert self.metric(f"{lag}_bucket", le="1.0") >= 0.75 * self.metric(f"{lag}_count") > 0

    def wait_for(self, timeout_s: float = 30.0, pod: str = "pod", rank: int = 0, **expected: Any) -> dict[str, Any]:
        """Wait until a stream's status shows these values. Returns it."""
        seen: dict[str, Any] = {}

        def shows() -> bool:
            try:
                seen.update(self.stream(pod, rank))
            except (httpx.ReadError, httpx.RemoteProtocolError):
                return False  # a busy service closed an idle connection at the moment at which it was used
            return all(seen[key] == value for key, value in expected.items())

        try:
            wait_until(shows, timeout_s)
        except AssertionError:
            raise AssertionError(f"the stream does not show {expected}; it shows {seen}") from None
        return seen


class Running(Client):
    """`with Running(spec, …) as service:` the service in a thread of this process."""

    def __init__(self, *engines: str, **flags: str) -> None:
        super().__init__()
        self._settings = settings_of({**QUICK, "port": "0", **flags}, engines)

    def __enter__(self) -> Self:
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="service", daemon=True)
        self._thread.start()
        assert self._ready.wait(30), "the service did not start"
        if self._failure is not None:
            raise self._failure
        wait_until(lambda: self.http.get(f"{self.url}/healthz").status_code == 200)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()
        self.begin_to_stop()
        self._thread.join(30)
        assert not self._thread.is_alive(), "the service did not stop"
        if self._failure is not None:
            raise self._failure

    def begin_to_stop(self) -> None:
        """As a signal does. Idempotent."""
        with suppress(RuntimeError):  # the loop is closed: it has stopped
            self.loop.call_soon_threadsafe(self._stop.set)

    def _run(self) -> None:
        async def run() -> None:
            self.loop = asyncio.get_running_loop()
            self._stop = asyncio.Event()
            listening: asyncio.Future[str] = self.loop.create_future()
            listening.add_done_callback(self._note_url)
            await serve(self._settings, lambda: make_serve(self._settings), self._stop, listening)

        try:
            asyncio.run(run())
        except BaseException as error:  # noqa: BLE001 - handed to the test's thread
            self._failure = error
        finally:
            self._ready.set()

    def _note_url(self, listening: "asyncio.Future[str]") -> None:
        if not listening.cancelled():
            self.url = listening.result()
            self._ready.set()


MECHANISM_OFF = "TEST_MECHANISM_OFF"
"""Names the mechanism without which the processes of a test run."""


def _entry() -> list[str]:
    """The module that processes run, and its first words."""
    mechanism = os.environ.get(MECHANISM_OFF)
    return ["scorer_api.cli.__main__"] if mechanism is None else ["tests.patched", mechanism]


class Command(Client):
    """`with Command("serve", …) as service:` the kv-indexer command in a process of its own."""

    process: "subprocess.Popen[str] | ForkedProcess"

    def __init__(self, *words: str, env: dict[str, str] | None = None, is_fresh: bool = False) -> None:
        """`is_fresh`: an interpreter of its own, with the command line that a user would see; otherwise it is forked where that can be."""
        super().__init__()
        self.words = words
        self._is_fresh = is_fresh or not IS_AVAILABLE
        self._env = environment(**(env or {}))
        self.lines: list[str] = []

    def __enter__(self) -> Self:
        self.process = self._start()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(10)
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _start(self) -> "subprocess.Popen[str] | ForkedProcess":
        module, *before = _entry()
        if not self._is_fresh:
            return fork_module(module, [*before, *self.words], self._env)
        words = [sys.executable, "-m", module, *before, *self.words]
        return subprocess.Popen(words, cwd=ROOT, env=self._env, stderr=subprocess.PIPE, text=True)

    def kill(self) -> None:
        """SIGKILL: it has no time for anything. Idempotent."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        """SIGTERM: it ends in order. Returns its exit code."""
        self.process.terminate()
        return self.process.wait(30)

    def freeze(self) -> None:
        """SIGSTOP: it does nothing, and others cannot tell it from a slow one."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        return self.process.poll() is None

    def wait_url(self) -> Self:
        """Wait until it listens."""
        wait_until(lambda: any("listening" in line for line in self.lines) or self.process.poll() is not None)
        found = re.search(r'url=(\S+)|"url":"([^"]+)"', "\n".join(line for line in self.lines if "listening" in line))
        assert found, f"it did not start: {self.lines}"
        self.url = found[1] or found[2]
        return self

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

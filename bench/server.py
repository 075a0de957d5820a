"""The service that is measured: the real command in a process of its own, and what the system says of it."""

import http.client
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import msgspec

from bench import process
from bench.publisher import Published
from indexer.compiled import VARIABLE

ROOT = Path(__file__).parent.parent
START_TIMEOUT_S = 30.0
APPLIED_TIMEOUT_S = 90.0
# Asking costs the service something too: at this pace 1 % of its time.
POLL_S = 0.02


class Server:
    """`with Server(specs) as server:` it listens. Raises RuntimeError where it does not."""

    def __init__(
        self,
        engines: list[str],
        role: str = "serve",
        redis_url: str | None = None,
        start_timeout_s: float = START_TIMEOUT_S,
        env: Mapping[str, str] = MappingProxyType({}),
        flags: Sequence[str] = (),
    ) -> None:
        words = [word for engine in engines for word in ("--engine", engine)]
        env = {key: value for key, value in os.environ.items() if not key.startswith("KV_INDEXER_") or key == VARIABLE} | dict(env)
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the server
        words += [] if redis_url is None else ["--redis", redis_url]
        command = [sys.executable, "-m", "scorer_api.cli", role, "--port", "0", *words, *flags]
        self._start_timeout_s = start_timeout_s
        self._process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=self._log)  # noqa: S603 - our own command, no input from outside

    def __enter__(self) -> Self:
        deadline_s = time.monotonic() + self._start_timeout_s
        while not (found := re.search(r"listening (?:worker=0 )?url=http://([\d.]+):(\d+)", self.log())):
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                process.stop(self._process)
                raise RuntimeError(f"the service did not start: {self.log()}")
            time.sleep(POLL_S)
        self.host, self.port = found[1], int(found[2])
        self._http = http.client.HTTPConnection(self.host, self.port, timeout=START_TIMEOUT_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._http.close()
        process.stop(self._process)
        self._log.close()

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def log(self) -> str:
        """What it has logged."""
        self._log.seek(0)
        return self._log.read()

    def cpu_s(self) -> float:
        """The CPU time of all its threads so far, user and system."""
        return process.cpu_s(self._process.pid)

    def cpu_ns(self) -> int:
        """The same as `cpu_s`, by the nanosecond, of the threads that there are now."""
        return process.cpu_ns(self._process.pid)

    def kernel_s(self) -> float:
        """How much of `cpu_s` the kernel has used."""
        return process.kernel_s(self._process.pid)

    def rss_bytes(self) -> int:
        """Its resident memory."""
        return process.rss_bytes(self._process.pid)

    def is_ready(self) -> bool:
        """What /readyz says."""
        return self._get("/readyz")[0] == http.client.OK

    def asked(self, path: str) -> bytes:
        """The answer to GET."""
        return self._get(path)[1]

    def _get(self, path: str) -> tuple[int, bytes]:
        """Status and body, over a new connection where the service has closed this one as idle."""
        try:
            self._http.request("GET", path)
            answer = self._http.getresponse()
        except http.client.RemoteDisconnected:
            self._http.close()
            self._http.request("GET", path)
            answer = self._http.getresponse()
        return answer.status, answer.read()

    def models(self) -> Any:
        """The known models."""
        return msgspec.json.decode(self.asked("/v1/models"))

    def blocks(self) -> int:
        """How many blocks its index has."""
        return int(self.series("kv_indexer_index_blocks"))

    def held(self) -> int:
        """How many holders of blocks its index has; of all workers, where there are several."""
        found = re.findall(rb"^kv_indexer_index_holders(?:{.*})? (\S+)$", self.asked("/metrics"), re.MULTILINE)
        return int(sum(map(float, found)))

    def series(self, name: str, **labels: str) -> float:
        """The value of a series with these labels, 0 where there is none."""
        shown = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        line = name + (f"{{{shown}}}" if shown else "")
        found = re.search(rf"^{re.escape(line)} (\S+)$".encode(), self.asked("/metrics"), re.MULTILINE)
        return float(found[1]) if found else 0.0

    def lags(self) -> dict[float, float]:
        """How often the event loop was no later than so many seconds, since the start."""
        found = re.findall(rb'^kv_indexer_event_loop_lag_seconds_bucket{le="(\S+)"} (\S+)$', self.asked("/metrics"), re.MULTILINE)
        return {float(bound): float(count) for bound, count in found}

    def threads(self) -> int:
        """How many it has."""
        return len(list(Path(f"/proc/{self._process.pid}/task").iterdir()))

    def descriptors(self) -> int:
        """How many are open."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def stream(self, pod: str) -> dict[str, Any]:
        """The status of a pod's only stream."""
        pods = msgspec.json.decode(self.asked("/v1/pods"))["pods"]
        status: dict[str, Any] = next(shown["streams"][0] for shown in pods if shown["pod"] == pod)
        return status

    def wait_held(self, holders: int) -> None:
        """Wait until it is ready, and its index has so many holders of blocks. Raises RuntimeError where it does not get them."""
        deadline_s = time.monotonic() + APPLIED_TIMEOUT_S
        while not self.is_ready() or self.held() < holders:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the index holds {self.held()} of {holders} copies")
            time.sleep(POLL_S)

    def wait_applied(self, pod: str, published: Published) -> float:
        """Wait until all that was published is held, and nothing was missed. Returns when that was seen, by time.monotonic.

        Raises RuntimeError where anything differs.
        """
        deadline_s = time.monotonic() + APPLIED_TIMEOUT_S
        while (status := self.stream(pod))["sequence"] != published.sequence:
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"{published} was not applied: {status}")
            time.sleep(POLL_S)
        seen_s = time.monotonic()
        if status["blocks"] != {"gpu": published.held} or status["gaps"] or status["last_error"] or status["trust"] != "live":
            raise RuntimeError(f"{published} was not applied as published: {status}")
        return seen_s

"""Both services: how each is started, told of engines, asked, and read."""

import http.client
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec

from bench import process
from bench.connection import prepare
from bench.publisher import spec
from bench.server import ROOT, START_TIMEOUT_S, Server
from bench.workload import BLOCK_SIZE, MODEL
from tests.ports import free_port
from tests.redis_server import find_server

PEER_PYTHON = ROOT / ".venv-peers" / "bin" / "python"
POLL_S = 0.02
WORKERS = 2


class Side(Protocol):
    """One of the services, while it runs. `bodies`: the ways in which it takes tokens."""

    host: str
    port: int

    @property
    def bodies(self) -> Sequence[str]: ...

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...

    def request(self, body: str, tokens: list[int]) -> bytes:
        """A question as it goes over the wire."""

    def matched(self, body: str, answer: bytes) -> dict[int, int]:
        """Engine → blocks of it that match, without those that match nothing."""

    def join(self, number: int, port: int, replay_port: int) -> None:
        """Tell it of one more engine, which answers replays."""

    def cpu_ns(self) -> int:
        """The CPU time of all its threads so far."""

    def rss_bytes(self) -> int:
        """Its resident memory."""


class Ours:
    """The service with these engines, given by their ports."""

    bodies = ("json", "msgpack")

    def __init__(self, ports: Sequence[int]) -> None:
        self._server = Server([spec(str(number), port) for number, port in enumerate(ports)])

    def __enter__(self) -> Self:
        self._server.__enter__()
        self.host, self.port = self._server.host, self._server.port
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._server.__exit__(kind, error, trace)

    def request(self, body: str, tokens: list[int]) -> bytes:
        return prepare(body, tokens)

    def matched(self, body: str, answer: bytes) -> dict[int, int]:
        pods = (msgspec.json.decode if body == "json" else msgspec.msgpack.decode)(answer)["pods"]
        return {int(pod["pod"]): pod["matched_tokens"] // BLOCK_SIZE for pod in pods if pod["matched_tokens"]}

    def join(self, number: int, port: int, replay_port: int) -> None:
        told = {"model": MODEL, "events": f"tcp://127.0.0.1:{port}", "replay": f"tcp://127.0.0.1:{replay_port}"}
        if (status := _send(self, "PUT", f"/v1/pods/{number}", told)) != http.client.CREATED:
            raise RuntimeError(f"this service refuses an engine: {status}")

    def cpu_ns(self) -> int:
        return self._server.cpu_ns()

    def rss_bytes(self) -> int:
        return self._server.rss_bytes()


class OursWithWorkers(Ours):
    """The service in two processes that share a redis-server of their own."""

    def __init__(self, ports: Sequence[int]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        (Path(self._folder.name) / "redis-server").symlink_to(find_server())
        path = f"{self._folder.name}:{os.environ['PATH']}"
        engines = [spec(str(number), port) for number, port in enumerate(ports)]
        self._server = Server(engines, env={"PATH": path}, flags=("--workers", str(WORKERS)))

    def __enter__(self) -> Self:
        super().__enter__()
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not (self._server.is_ready() and self._is_spread()):
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the service with workers does not become ready: {self._server.log()}")
            time.sleep(POLL_S)
        return self

    def _is_spread(self) -> bool:
        """Whether the workers have shared the engines. One that moves while it says nothing is stale until it says something."""
        pods = msgspec.json.decode(self._server.asked("/v1/pods"))["pods"]
        owners = {stream["owner"] if stream["connected"] else None for pod in pods for stream in pod["streams"]}
        return len(owners) == WORKERS and None not in owners

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        super().__exit__(kind, error, trace)
        self._folder.cleanup()


class Dynamo:
    """Dynamo's stand-alone indexer with these engines, given by their ports. Raises RuntimeError where it does not start."""

    bodies = ("json",)

    def __init__(self, ports: Sequence[int]) -> None:
        self._ports = ports
        self.host, self.port = "127.0.0.1", free_port()
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        command = [str(PEER_PYTHON), "-m", "dynamo.indexer", "--port", str(self.port)]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)  # noqa: S603 - a constant command

    def __enter__(self) -> Self:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._is_up():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self._log.seek(0)
                raise RuntimeError(f"dynamo's indexer did not start: {self._log.read()}")
            time.sleep(POLL_S)
        for number, port in enumerate(self._ports):
            self._register(number, port)
        return self

    def join(self, number: int, port: int, replay_port: int) -> None:
        self._register(number, port, replay_endpoint=f"tcp://127.0.0.1:{replay_port}")

    def _register(self, number: int, port: int, **more: str) -> None:
        endpoint = f"tcp://127.0.0.1:{port}"
        told = {"instance_id": number, "dp_rank": 0, "endpoint": endpoint, "model_name": MODEL, "block_size": BLOCK_SIZE, **more}
        if (status := _send(self, "POST", "/register", told)) != http.client.CREATED:
            raise RuntimeError(f"dynamo's indexer refuses an engine: {status}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        process.stop(self._process)
        self._log.close()

    def _is_up(self) -> bool:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=START_TIMEOUT_S)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/health")
            return connection.getresponse().status == http.client.OK
        return False

    def request(self, body: str, tokens: list[int]) -> bytes:
        content = msgspec.json.encode({"model_name": MODEL, "token_ids": tokens})
        head = "POST /query HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content

    def matched(self, body: str, answer: bytes) -> dict[int, int]:
        scores = msgspec.json.decode(answer)["scores"]
        return {int(instance): tokens // BLOCK_SIZE for instance, ranks in scores.items() if (tokens := ranks.get("0", 0))}

    def cpu_ns(self) -> int:
        return process.cpu_ns(self._process.pid)

    def rss_bytes(self) -> int:
        return process.rss_bytes(self._process.pid)


def _send(side: Side, method: str, path: str, body: Any) -> int:
    """Returns the status."""
    connection = http.client.HTTPConnection(side.host, side.port, timeout=START_TIMEOUT_S)
    connection.request(method, path, msgspec.json.encode(body), {"Content-Type": "application/json"})
    with closing(connection):
        return connection.getresponse().status


SIDES: dict[str, Callable[[Sequence[int]], Side]] = {"dynamo": Dynamo, "this service": Ours}


SIDES_BESIDE = {**SIDES, "this service, 2 workers": OursWithWorkers}
"""Those of which requests a second are counted, and not CPU of one process."""


def version_of_peer() -> str:
    """Raises RuntimeError where it is not installed."""
    if not PEER_PYTHON.exists():
        raise RuntimeError("Dynamo's indexer is not installed: make bench-peers does that")
    program = "from importlib.metadata import version; print(version('ai-dynamo-runtime'))"
    return subprocess.run([PEER_PYTHON, "-c", program], capture_output=True, check=True, text=True, env=dict(os.environ)).stdout.strip()  # noqa: S603 - a constant command

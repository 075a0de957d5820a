"""A real Envoy in measurements, with a configuration of deploy/envoy: one worker, which uses one core."""

import json
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from bench.process import STOP_TIMEOUT_S
from bench.server import POLL_S, ROOT, START_TIMEOUT_S
from tests.ports import free_port

CONFIGS = ROOT / "deploy/envoy"
COMMAND = Path(sys.executable).parent / "envoy"


class Envoy:
    """`with Envoy("buffered", pods, picker) as envoy:` it takes requests at `envoy.port`. `picker`: the port that it asks, None for Envoy alone.

    Raises RuntimeError where it does not start, or the picker does not answer.
    """

    def __init__(self, name: str, pods: Sequence[int], picker: int | None) -> None:
        self.port, self._admin = free_port(), free_port()
        self._picker = picker
        self._config = _config(name, self.port, self._admin, pods, picker)

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        file = Path(self._folder.name) / "envoy.json"
        file.write_text(json.dumps(self._config))
        words = [str(COMMAND), "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"]
        self._process = subprocess.Popen(words)  # noqa: S603 - the Envoy of the extra, no input from outside
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline_s:
                self._stop()
                raise RuntimeError("Envoy did not start, or does not reach the picker")
            time.sleep(POLL_S)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop()

    def _stop(self) -> None:
        self._process.kill()
        self._process.wait(STOP_TIMEOUT_S)
        self._folder.cleanup()

    def _is_ready(self) -> bool:
        try:
            if self._asked("/ready").strip() != "LIVE":
                return False
            healthy = self._asked("/stats?filter=^cluster.picker.membership_healthy$").rpartition(": ")[2].strip()
        except (OSError, urllib.error.URLError):
            return False
        return self._picker is None or healthy == "1"

    def _asked(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self._admin}{path}", timeout=START_TIMEOUT_S) as response:
            text: str = response.read().decode()
            return text


def _config(name: str, port: int, admin: int, pods: Sequence[int], picker: int | None) -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    config["admin"]["address"]["socket_address"]["port_value"] = admin
    resources = config["static_resources"]
    resources["listeners"][0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": port}
    filters = resources["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]["http_filters"]
    if picker is None:
        del filters[0]
    for cluster, ports in zip(resources["clusters"], (pods, [picker or 1]), strict=True):
        cluster["type"] = "STATIC"
        endpoints = [{"endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": each}}}} for each in ports]
        cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": endpoints}]
    return config

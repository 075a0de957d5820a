"""A real Envoy for tests, with a configuration of deploy/envoy whose addresses are those of the test."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import yaml

from tests.ports import free_port
from tests.running import NO_AUTHORITIES, ROOT
from tests.waiting import wait_until

COMMAND = Path(sys.executable).parent / "envoy"
Config = dict[str, Any]
Change = Callable[[Config], None]
ATTEMPTS_MAX = 10
IN_USE = "Address already in use"


def read_config(name: str) -> Config:
    """A file of deploy/envoy."""
    config: Config = yaml.safe_load((ROOT / f"deploy/envoy/{name}.yaml").read_text())
    return config


def cluster(config: Config, name: str) -> Config:
    (found,) = (each for each in config["static_resources"]["clusters"] if each["name"] == name)
    settings: Config = found
    return settings


def connection_manager(config: Config) -> Config:
    manager: Config = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    return manager


def processor(config: Config) -> Config:
    """The configuration of the filter that asks the picker."""
    (found,) = (each for each in connection_manager(config)["http_filters"] if each["name"] == "envoy.filters.http.ext_proc")
    settings: Config = found["typed_config"]
    return settings


def _set_endpoints(found: Config, endpoints: Sequence[str]) -> None:
    addresses = [endpoint.rpartition(":") for endpoint in endpoints]
    found["type"] = "STATIC"
    found["load_assignment"]["endpoints"] = [
        {"lb_endpoints": [{"endpoint": {"address": {"socket_address": {"address": host, "port_value": int(port)}}}} for host, _, port in addresses]}
    ]


class Envoy:
    """`with Envoy("override-host", picker_port, pods) as envoy:` a process of its own. `changes` are made to its configuration."""

    def __init__(self, name: str, picker_port: int, pods: Sequence[str], *changes: Change) -> None:
        config = read_config(name)
        _set_endpoints(cluster(config, "picker"), [f"127.0.0.1:{picker_port}"])
        if "load_assignment" in (pool := cluster(config, "pool")):
            _set_endpoints(pool, pods)
        for change in changes:
            change(config)
        self._config = config

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        for _ in range(ATTEMPTS_MAX):
            if self._launch():
                self.url = f"http://127.0.0.1:{self.port}"
                # Threads share it: a connection that the pool closes as one too many may be the one that another thread is about to use.
                limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
                self.http = httpx.Client(base_url=self.url, timeout=30, verify=NO_AUTHORITIES, limits=limits)
                return self
            assert IN_USE in self.log, self.log
            self._log.close()
        raise AssertionError("every port was taken")

    def _launch(self) -> bool:
        """Start it at ports that are free now. False where it ended, perhaps since somebody else took one of them."""
        self.port, self.admin_port = free_port(), free_port()
        self._config["admin"]["address"]["socket_address"]["port_value"] = self.admin_port
        self._config["static_resources"]["listeners"][0]["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": self.port}
        file = Path(self._folder.name) / "envoy.json"
        file.write_text(json.dumps(self._config))
        self._log = (Path(self._folder.name) / "log").open("w+")
        words = [str(COMMAND), "-c", str(file), "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning", "--drain-time-s", "1"]
        self.process = subprocess.Popen(words, stdout=self._log, stderr=self._log)
        wait_until(lambda: self._is_ready() or self.process.poll() is not None)
        return self.process.poll() is None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()
        self._log.close()
        self._folder.cleanup()

    @property
    def log(self) -> str:
        self._log.flush()
        return Path(self._log.name).read_text()

    def admin(self, path: str) -> str:
        return httpx.get(f"http://127.0.0.1:{self.admin_port}{path}", verify=NO_AUTHORITIES).text

    def stat(self, name: str) -> int:
        """A counter or gauge of Envoy's own."""
        found = [line.rpartition(": ")[2] for line in self.admin(f"/stats?filter=^{name}$").splitlines()]
        return int(found[0]) if found else 0

    def wait_for_picker(self, *, is_healthy: bool = True) -> None:
        """Wait until its health check has seen this."""
        wait_until(lambda: self.stat("cluster.picker.membership_healthy") == is_healthy)

    def _is_ready(self) -> bool:
        try:
            return self.admin("/ready").strip() == "LIVE"
        except httpx.TransportError:
            return False

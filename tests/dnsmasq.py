"""A real DNS server for tests: dnsmasq, with the records of the test."""

import getpass
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.exception
import dns.resolver
import pytest

from tests.ports import free_port
from tests.waiting import wait_until

Records = Mapping[tuple[str, str], Sequence[str]]


def program() -> str:
    """Skips the test where dnsmasq is not installed."""
    found = os.environ.get("TEST_DNSMASQ") or shutil.which("dnsmasq", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if not found:
        pytest.skip("dnsmasq is not installed: apt-get install dnsmasq-base, or name it in TEST_DNSMASQ")
    return found


class Dnsmasq:
    """`with Dnsmasq() as server:` answers at `server.port` of 127.0.0.1. It knows the name `vllm.` and all below it."""

    def __init__(self) -> None:
        self._program = program()
        self.port = free_port()
        self._folder = tempfile.TemporaryDirectory()
        self._records: Records = {}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()
        self._folder.cleanup()

    def publish(self, records: Records) -> None:
        """These, and no others. (name with its dot, type) → values, as in a zone."""
        self._records = records
        self.kill()
        self.start()

    def start(self) -> None:
        hosts = Path(self._folder.name) / "hosts"
        addresses = [(address, name) for (name, kind), values in self._records.items() if kind in ("A", "AAAA") for address in values]
        hosts.write_text("".join(f"{address} {name.rstrip('.')}\n" for address, name in addresses))
        services = [(name.rstrip("."), *value.split()) for (name, kind), values in self._records.items() if kind == "SRV" for value in values]
        words = [f"--srv-host={name},{target.rstrip('.')},{port},{priority},{weight}" for name, priority, weight, port, target in services]
        self.process = subprocess.Popen(
            [
                *(self._program, "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", f"--addn-hosts={hosts}"),
                *("--listen-address=127.0.0.1", "--bind-interfaces", f"--port={self.port}", "--local=/vllm/", "--local=/vllm.models/"),
                *(f"--user={getpass.getuser()}", "--pid-file=", *words),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, what="an answer of dnsmasq")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def _answers(self) -> bool:
        assert self.process.poll() is None, f"dnsmasq ended with {self.process.returncode}"
        resolver = dns.resolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], self.port
        try:
            resolver.resolve("ready.vllm.", lifetime=0.5)
        except dns.resolver.NXDOMAIN:
            return True
        except dns.exception.DNSException:
            return False
        return True

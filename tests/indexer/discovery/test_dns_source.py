"""Engines by the records of a name, from a DNS server over real sockets."""

import asyncio
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import dns.asyncresolver
import pytest

from indexer.discovery import dns_source
from indexer.discovery.dns_source import DnsSource
from indexer.discovery.errors import Trouble
from indexer.discovery.source_spec import DiscoverSpec
from tests.command import environment
from tests.dns_server import DnsServer
from tests.dnsmasq import Dnsmasq
from tests.engine import Engine, stored
from tests.running import ROOT, Running
from tests.waiting import wait_until, wait_until_async

SERVICE = "_http._tcp.vllm.models."
STOPS = 150


def ask(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the source ask the server at this port, often."""

    def make_resolver() -> dns.asyncresolver.Resolver:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], port
        return resolver

    monkeypatch.setattr(dns_source, "make_resolver", make_resolver)
    monkeypatch.setattr(dns_source, "LOOKUP_S", 0.3)
    monkeypatch.setattr(dns_source, "TTL_S", (0.02, 30.0))
    monkeypatch.setattr(dns_source, "PAUSE_S", (0.02, 0.1))
    monkeypatch.setattr(dns_source, "EMPTY_PAUSE_S", 0.02)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[DnsServer]:
    with DnsServer() as server:
        ask(server.port, monkeypatch)
        yield server


@pytest.fixture(params=[DnsServer, pytest.param(Dnsmasq, marks=pytest.mark.kubernetes)])
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[DnsServer | Dnsmasq]:
    with request.param() as server:
        ask(server.port, monkeypatch)
        yield server


class Looking:
    def __init__(self, text: str, expiry_s: float) -> None:
        self.errors: list[Trouble] = []
        self.changes = 0
        self.source = DnsSource(DiscoverSpec.from_text(text), self._note_change, self.errors.append, expiry_s)

    def _note_change(self) -> None:
        self.changes += 1

    @property
    def ready(self) -> list[str]:
        return sorted(pod for pod, engine in (self.source.found or {}).items() if engine.is_ready)


@asynccontextmanager
async def looking(text: str, expiry_s: float = 300.0) -> AsyncIterator[Looking]:
    it = Looking(text, expiry_s)
    task = asyncio.create_task(it.source.run())
    try:
        yield it
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


# What is found


async def test_addresses_of_a_name_come_and_go_and_those_of_ipv4_count(server: DnsServer | Dnsmasq) -> None:
    server.publish({("vllm.", "A"): ["10.0.0.7"], ("vllm.", "AAAA"): ["fd00::7"]})
    async with looking("dns:vllm.?port=8000", expiry_s=0.5) as it:
        await wait_until_async(lambda: it.ready == ["10.0.0.7:8000"])
        server.publish({("vllm.", "A"): ["10.0.0.8"], ("vllm.", "AAAA"): ["fd00::7"]})
        await wait_until_async(lambda: it.ready == ["10.0.0.8:8000"])
        assert it.source.found is not None
        assert not it.source.found["10.0.0.7:8000"].is_ready
        await wait_until_async(lambda: list(it.source.found or {}) == ["10.0.0.8:8000"])
        server.publish({("vllm.", "AAAA"): ["fd00::7"]})
        await wait_until_async(lambda: it.ready == ["[fd00::7]:8000"])
        assert it.errors == [] or isinstance(server, Dnsmasq), "a server that starts anew is away for a moment"


async def test_services_name_their_ports(server: DnsServer | Dnsmasq) -> None:
    records = {(SERVICE, "SRV"): ["0 50 8000 a.vllm.", "0 50 8001 b.vllm."], ("a.vllm.", "A"): ["10.0.0.7"], ("b.vllm.", "A"): ["10.0.0.8"]}
    server.publish(records)
    async with looking(f"dns:{SERVICE}") as it:
        await wait_until_async(lambda: it.ready == ["10.0.0.7:8000", "10.0.0.8:8001"])
        assert {engine.name for engine in (it.source.found or {}).values()} == {"a", "b"}
        server.publish({**records, (SERVICE, "SRV"): ["0 50 8001 b.vllm."]})
        await wait_until_async(lambda: it.ready == ["10.0.0.8:8001"])


async def test_the_addresses_that_come_along_with_services_are_used(stand_in: DnsServer) -> None:
    stand_in.records = {(SERVICE, "SRV"): ["0 50 8000 a.vllm.", "0 50 8001 b.vllm."], ("b.vllm.", "A"): ["10.0.0.8"]}
    stand_in.added = {("a.vllm.", "A"): ["10.0.0.7"]}
    async with looking(f"dns:{SERVICE}") as it:
        await wait_until_async(lambda: it.ready == ["10.0.0.7:8000", "10.0.0.8:8001"])
        assert {question.split()[0] for question in stand_in.asked} == {SERVICE, "b.vllm."}


async def test_a_long_answer_comes_by_tcp(server: DnsServer | Dnsmasq, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_source, "LOOKUP_S", 10.0)  # a busy machine takes long to make such an answer
    server.publish({("vllm.", "A"): [f"10.0.{number // 250}.{number % 250 + 1}" for number in range(1_000)]})
    async with looking("dns:vllm.?port=8000") as it:
        await wait_until_async(lambda: len(it.ready) == 1_000)
        assert not isinstance(server, DnsServer) or "vllm. A tcp" in server.asked


async def test_the_time_to_live_is_obeyed(stand_in: DnsServer) -> None:
    stand_in.ttl_s = 5
    stand_in.records = {("vllm.", "A"): ["10.0.0.7"]}
    async with looking("dns:vllm.?port=8000") as it:
        await wait_until_async(lambda: it.ready == ["10.0.0.7:8000"])
        await asyncio.sleep(0.3)
        assert len(stand_in.asked) == 1


# What keeps what is known


@pytest.mark.parametrize("failure", ["SERVFAIL", "REFUSED", "silent"])
async def test_a_server_that_fails_changes_nothing(stand_in: DnsServer, failure: str) -> None:
    stand_in.records = {("vllm.", "A"): ["10.0.0.7"]}
    async with looking("dns:vllm.?port=8000") as it:
        await wait_until_async(lambda: it.ready == ["10.0.0.7:8000"])
        stand_in.failure = failure
        await wait_until_async(lambda: len(it.errors) >= 4)
        assert it.ready == ["10.0.0.7:8000"]
        assert "vllm." in next(it.source.failures())
        stand_in.failure = ""
        await wait_until_async(lambda: not list(it.source.failures()))
        assert (it.ready, it.changes) == (["10.0.0.7:8000"], 1)


@pytest.mark.kubernetes
async def test_a_server_that_is_away_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with Dnsmasq() as server:
        ask(server.port, monkeypatch)
        server.publish({("vllm.", "A"): ["10.0.0.7"]})
        async with looking("dns:vllm.?port=8000") as it:
            await wait_until_async(lambda: it.ready == ["10.0.0.7:8000"])
            server.kill()
            await wait_until_async(lambda: len(it.errors) >= 4)
            assert it.ready == ["10.0.0.7:8000"]
            server.start()
            await wait_until_async(lambda: not list(it.source.failures()))
            assert (it.ready, it.changes) == (["10.0.0.7:8000"], 1)


async def test_that_there_is_no_such_name_is_believed_at_last(server: DnsServer | Dnsmasq) -> None:
    server.publish({("vllm.", "A"): ["10.0.0.7"]})
    async with looking("dns:vllm.?port=8000") as it:
        await wait_until_async(lambda: it.ready == ["10.0.0.7:8000"])
        server.publish({("other.vllm.", "A"): ["10.0.0.7"]})
        await wait_until_async(lambda: it.ready == [])
        assert it.source.found is not None
        assert list(it.source.found) == ["10.0.0.7:8000"]


@pytest.mark.parametrize("failure", ["NXDOMAIN", "nothing"])
async def test_that_there_is_nothing_is_believed_when_it_is_said_often(stand_in: DnsServer, failure: str) -> None:
    stand_in.records = {("vllm.", "A"): ["10.0.0.7"]}
    async with looking("dns:vllm.?port=8000") as it:
        await wait_until_async(lambda: it.ready == ["10.0.0.7:8000"])
        stand_in.asked.clear()
        if failure == "nothing":
            stand_in.records["vllm.", "A"] = []
        else:
            stand_in.failure = failure
        await wait_until_async(lambda: it.ready == [])
        assert len([question for question in stand_in.asked if question == "vllm. A udp"]) >= dns_source.EMPTY_ANSWERS
        assert it.source.found is not None
        assert list(it.source.found) == ["10.0.0.7:8000"]


# Its end


@pytest.mark.parametrize(("failure", "delay_s"), [("", 0.0), ("", 0.01), ("SERVFAIL", 0.0), ("silent", 0.0)])
async def test_it_ends_at_whatever_moment_it_is_cancelled(stand_in: DnsServer, failure: str, delay_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio.wait_for, which the library uses, loses one cancellation in six on Python 3.11 where an answer comes at the same time."""
    for name in ("TTL_S", "PAUSE_S"):
        monkeypatch.setattr(dns_source, name, (0.0, 0.0))
    stand_in.records = {("vllm.", "A"): ["10.0.0.7"]}
    stand_in.failure, stand_in.delay_s = failure, delay_s
    for _ in range(STOPS):
        source = Looking("dns:vllm.?port=8000", 300.0).source
        task = asyncio.create_task(source.run())
        await asyncio.sleep(random.uniform(0.0, 0.006))
        task.cancel()
        async with asyncio.timeout(5):
            await asyncio.wait([task])
        assert task.cancelled()


@pytest.mark.parametrize("failure", ["", "silent", "REFUSED"])
def test_the_service_stops_whatever_the_server_does(stand_in: DnsServer, failure: str) -> None:
    stand_in.records = {("vllm.", "A"): ["127.0.0.1"]}
    stand_in.failure = failure
    for _ in range(3):
        with Running(discover="dns:vllm.?port=1&model=m", load_interval_s="0"):
            time.sleep(random.uniform(0.0, 0.1))
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 5


# In the service


def test_the_service_follows_what_dns_names(stand_in: DnsServer) -> None:
    with Engine() as engine:
        engine.publish(stored([1], [1, 2, 3, 4]))
        stand_in.records = {(SERVICE, "SRV"): ["0 50 8000 a.vllm."]}
        stand_in.added = {("a.vllm.", "A"): ["127.0.0.1"]}
        source = f"dns:{SERVICE}?model=m&events-port={engine.events_port}&replay-port={engine.replay_port}"
        with Running(discover=source, load_interval_s="0") as service:

            def pods() -> list[tuple[str, str, bool]]:
                return [(pod["pod"], pod["name"], pod["ready"]) for pod in service.http.get(f"{service.url}/v1/pods").json()["pods"]]

            wait_until(lambda: pods() == [("127.0.0.1:8000", "a", True)])
            service.wait_for(pod="127.0.0.1:8000", trust="live", sequence=0)
            stand_in.records[SERVICE, "SRV"] = []
            wait_until(lambda: pods() == [("127.0.0.1:8000", "a", False)])
            assert service.matched([1, 2, 3, 4, 5], pod="127.0.0.1:8000") == 4


def test_without_the_extra_one_line_says_what_to_install() -> None:
    words = ["serve", "--port", "0", "--discover", "dns:vllm.?port=8000"]
    script = f"import sys; sys.modules['dns'] = None; from scorer_api.cli.main import main; sys.exit(main({words!r}))"
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 2
    assert ran.stderr.strip().endswith("needs dnspython: pip install 'kv-event-indexer[dns]'")
    assert len(ran.stderr.strip().splitlines()) == 1

"""Where an endpoint is, and which of its addresses is dialled."""

import socket
from contextlib import closing

import pytest

from indexer.receiving.addresses import SocketAddress, addresses_of, has_name, is_ipv6, reachable
from tests.scenarios.test_ipv6 import has_ipv6

BOTH = ["::1", "127.0.0.1"]


@pytest.mark.parametrize(
    ("endpoint", "named", "in_ipv6"),
    [
        ("tcp://10.0.0.7:5557", False, False),
        ("tcp://[fd00::7]:5557", False, True),
        ("tcp://[fe80::1%eth0]:5557", False, True),
        ("tcp://pod-0.svc:5557", True, False),
        ("tcp://*:5557", False, False),
        ("ipc:///run/engine", False, False),
    ],
)
def test_the_family_of_an_endpoint(endpoint: str, named: bool, in_ipv6: bool) -> None:
    assert (has_name(endpoint), is_ipv6(endpoint)) == (named, in_ipv6)


@pytest.mark.parametrize(
    ("endpoint", "family", "at"),
    [
        ("tcp://10.0.0.7:5557", socket.AF_INET, ("10.0.0.7", 5557)),
        ("tcp://[fd00::7]:5557", socket.AF_INET6, ("fd00::7", 5557, 0, 0)),
        ("ipc:///run/engine", socket.AF_UNIX, "/run/engine"),
        ("ipc://@engine", socket.AF_UNIX, "\0engine"),
    ],
)
def test_the_address_of_an_endpoint(endpoint: str, family: int, at: object) -> None:
    assert addresses_of(endpoint) == [SocketAddress(family, at)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "endpoint",
    ["tcp://no-such-host.invalid:5557", f"tcp://{'x' * 70}.a:5557", "tcp://10.0.0.7:70000", "tcp://10.0.0.7:0", "ipc://" + "x" * 108, "udp://h:1"],
)
def test_an_endpoint_without_an_address_is_an_error_of_the_system(endpoint: str) -> None:
    with pytest.raises(OSError):  # noqa: PT011
        addresses_of(endpoint)


def test_addresses_of_ipv4_come_first() -> None:
    families = [address.family for address in addresses_of("tcp://localhost:5557")]
    assert families[0] == socket.AF_INET
    assert families == sorted(families)


async def test_no_address_is_not_reachable() -> None:
    assert await reachable([], 5557) is None


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("listening", BOTH)
async def test_of_both_families_the_one_that_answers_counts(listening: str) -> None:
    with closing(socket.create_server((listening, 0), family=socket.AF_INET6 if ":" in listening else socket.AF_INET)) as server:
        assert await reachable(BOTH, server.getsockname()[1]) == listening


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
async def test_ipv4_counts_where_neither_answers() -> None:
    with closing(socket.create_server(("::1", 0), family=socket.AF_INET6)) as server:
        port = server.getsockname()[1]
    assert await reachable(BOTH, port) == "127.0.0.1"
    assert await reachable(["::1"], port) == "::1"

"""Which address family an endpoint is dialled in."""

import socket
from contextlib import closing

import pytest

from indexer.receiving.address_family import has_name, is_ipv6, needs_ipv6, reachable
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
async def test_the_family_of_an_endpoint(endpoint: str, named: bool, in_ipv6: bool) -> None:
    assert (has_name(endpoint), is_ipv6(endpoint)) == (named, in_ipv6)
    if not named:
        assert await needs_ipv6(endpoint) is in_ipv6


async def test_a_name_without_an_address_is_left_to_libzmq() -> None:
    assert not await needs_ipv6("tcp://no-such-host.invalid:5557")
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

"""Whether a socket needs IPv6 for an endpoint. libzmq leaves it off, and with it on dials no IPv4 address of a name that has an IPv6 address too."""

import asyncio
import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address

# How long a look-up may take; libzmq looks the name up by itself, too.
RESOLVE_S = 1.0
# How long each address of a name that has several may take to accept a connection.
PROBE_S = 1.0


def is_ipv6(endpoint: str) -> bool:
    """Whether the endpoint's host is written as an IPv6 address."""
    return endpoint.startswith("tcp://[")


def host_and_port(endpoint: str) -> tuple[str, int] | None:
    """The host, without brackets, and the port of a tcp endpoint."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return (host.strip("[]"), int(port)) if endpoint.startswith("tcp://") and host and port.isdecimal() else None


def has_name(endpoint: str) -> bool:
    """Whether the host of a tcp endpoint is a name, which may have addresses of both families."""
    found = host_and_port(endpoint)
    if found is None or found[0] == "*":
        return False
    try:
        ip_address(found[0].partition("%")[0])
    except ValueError:
        return True
    return False


async def needs_ipv6(endpoint: str) -> bool:
    """Whether to dial the endpoint by IPv6. Of a name with addresses of both families, that which accepts a connection counts, IPv4 first."""
    found = host_and_port(endpoint)
    if found is None or not has_name(endpoint):
        return is_ipv6(endpoint)
    host, port = found
    try:
        async with asyncio.timeout(RESOLVE_S):
            addresses = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError, TimeoutError):
        return False
    return ":" in (await reachable([str(address[0]) for *_, address in addresses], port) or "")


async def reachable(addresses: Iterable[str], port: int) -> str | None:
    """The address to dial: the first IPv4 address, or the first IPv6 address where only that one accepts a connection. None if there is none."""
    firsts: dict[bool, str] = {}
    for address in addresses:
        firsts.setdefault(":" in address, address)
    ordered = [firsts[is_v6] for is_v6 in (False, True) if is_v6 in firsts]
    if len(ordered) > 1:
        for address in ordered:
            if await _accepts(address, port):
                return address
    return ordered[0] if ordered else None


async def _accepts(address: str, port: int) -> bool:
    with suppress(OSError, TimeoutError):
        async with asyncio.timeout(PROBE_S):
            _, writer = await asyncio.open_connection(address, port)
        writer.transport.abort()
        return True
    return False

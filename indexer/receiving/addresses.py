"""Where an endpoint is: the addresses of its host, and which of them to dial."""

import asyncio
import errno
import os
import socket
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_address
from typing import Any

from msgspec import Struct

# How long each address of a name that has several may take to accept a connection.
PROBE_S = 1.0
# Of the path of a socket, with the zero at its end.
IPC_PATH_MAX = 108


class SocketAddress(Struct, frozen=True):
    """What `socket.connect` takes, and the family of the socket."""

    family: int
    at: tuple[str | int | bytes, ...] | str


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


def addresses_of(endpoint: str) -> list[SocketAddress]:
    """Every address of an endpoint, those of IPv4 first. A name is looked up, which may take long: see `name_lookup`. Raises OSError for an endpoint
    that has none."""
    if endpoint.startswith("ipc://"):
        return [_ipc(endpoint.removeprefix("ipc://"))]
    found = host_and_port(endpoint)
    if found is None or not 0 < found[1] < 65_536:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    flags = 0 if has_name(endpoint) else socket.AI_NUMERICHOST
    try:
        infos = socket.getaddrinfo(*found, type=socket.SOCK_STREAM, flags=flags)
    except UnicodeError:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL)) from None
    return socket_addresses(infos, found[1])


def socket_addresses(infos: Iterable[tuple[Any, ...]], port: int) -> list[SocketAddress]:
    """What `socket.getaddrinfo` found, with this port, those of IPv4 first."""
    ordered = sorted(infos, key=lambda info: info[0] == socket.AF_INET6)
    return [SocketAddress(family, (at[0], port, *at[2:])) for family, *_, at in ordered]


def _ipc(path: str) -> SocketAddress:
    """Raises OSError for a path that is too long."""
    if not hasattr(socket, "AF_UNIX"):
        raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
    if len(os.fsencode(path)) >= IPC_PATH_MAX:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    return SocketAddress(socket.AF_UNIX, "\0" + path[1:] if path.startswith("@") else path)


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

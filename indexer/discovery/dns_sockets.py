"""Sockets for dnspython whose time limits keep cancellations.

Its own ones for asyncio use asyncio.wait_for, which up to Python 3.11 swallows a cancellation that comes together with an answer: the look-up would
go on as if it had not been cancelled.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

import dns.asyncbackend
import dns.exception


class Sockets:
    """What dnspython takes as `backend`, for UDP and TCP."""

    def __init__(self) -> None:
        self._own: Any = dns.asyncbackend.get_backend("asyncio")

    def name(self) -> str:
        return "asyncio"

    def datagram_connection_required(self) -> bool:
        return False

    async def make_socket(
        self, af: int, socktype: int, proto: int = 0, source: object = None, destination: object = None, timeout_s: float | None = None
    ) -> "_Socket":
        async with _time_limit(timeout_s):
            return _Socket(await self._own.make_socket(af, socktype, proto, source, destination))

    async def sleep(self, interval: float) -> None:
        await asyncio.sleep(interval)


class _Socket:
    """One of dnspython's own, which it is told to use without a limit."""

    def __init__(self, own: Any) -> None:
        self.family: int = own.family
        self.type: int = own.type
        self._own = own

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.close()

    async def sendto(self, what: bytes, destination: object, timeout_s: float | None) -> int:
        async with _time_limit(timeout_s):
            sent: int = await self._own.sendto(what, destination, None)
        return sent

    async def recvfrom(self, size: int, timeout_s: float | None) -> tuple[bytes, object]:
        async with _time_limit(timeout_s):
            received: tuple[bytes, object] = await self._own.recvfrom(size, None)
        return received

    async def sendall(self, what: bytes, timeout_s: float | None) -> None:
        async with _time_limit(timeout_s):
            await self._own.sendall(what, None)

    async def recv(self, size: int, timeout_s: float | None) -> bytes:
        async with _time_limit(timeout_s):
            received: bytes = await self._own.recv(size, None)
        return received

    async def close(self) -> None:
        await self._own.close()


@asynccontextmanager
async def _time_limit(timeout_s: float | None) -> AsyncIterator[None]:
    """Raises dns.exception.Timeout."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        raise dns.exception.Timeout from None

"""The event loop of the service."""

import asyncio
import socket
from contextlib import suppress
from typing import Any

import uvloop

from indexer.engines.networks import literal
from indexer.receiving.name_lookup import NAMES, Outcome


class EventLoop(uvloop.Loop):
    """uvloop's, with names looked up in threads of their own: its four threads are waited for at the end, and Redis's name needs them too."""

    async def getaddrinfo(
        self, host: str | bytes | None, port: str | bytes | int | None, *, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
    ) -> list[tuple[Any, ...]]:
        """As `socket.getaddrinfo`. Raises OSError, UnicodeError."""
        if isinstance(port, bytes):
            port = port.decode()
        if host is None or literal(host if isinstance(host, str) else host.decode(errors="replace")) is not None:
            return socket.getaddrinfo(host, port, family, type, proto, flags)
        outcome: asyncio.Future[Outcome] = self.create_future()

        def note(found: Outcome) -> None:
            if not outcome.done():
                outcome.set_result(found)

        def tell(found: Outcome) -> None:
            with suppress(RuntimeError):  # the loop has ended
                self.call_soon_threadsafe(note, found)

        NAMES.ask((host, port, family, type, proto, flags), tell)
        found = await outcome
        if isinstance(found, Exception):
            raise found
        return found

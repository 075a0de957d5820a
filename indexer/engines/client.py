"""Requests to the pods' own APIs, in the networks where engines may be."""

import asyncio
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from indexer.engines.api import EngineApi, target_of
from indexer.engines.http_client import Answer, FetchError, HttpClient
from indexer.engines.networks import EngineNetworks
from indexer.errors import SettingError

# Where thousands of pods are asked at a time, what so many do in one turn of the event loop takes some ten milliseconds.
CONNECTIONS_MAX = 32


class EngineClient:
    """`async with EngineClient(networks) as client:` keeps connections to the pods."""

    def __init__(self, networks: EngineNetworks) -> None:
        self._networks = networks

    async def __aenter__(self) -> Self:
        # No proxies: the address that was checked is the one that is dialled.
        # What waits for a connection waits here: for each request the HTTP client looks at all that wait in it.
        self._places = asyncio.Semaphore(CONNECTIONS_MAX)
        self._http = await HttpClient(connections_max=CONNECTIONS_MAX).__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def fetch(
        self,
        api: EngineApi,
        path: str,
        *,
        timeout_s: float,
        bytes_max: int,
        error_bytes_max: int | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Answer:
        """GET a path of the API, or POST `content` to it, see `HttpClient.fetch`. `timeout_s` includes the look-up of the name. Raises FetchError."""
        try:
            async with asyncio.timeout(timeout_s):
                target = await target_of(api, path, self._networks)
                async with self._places:
                    return await self._http.fetch(
                        target, timeout_s=timeout_s, bytes_max=bytes_max, error_bytes_max=error_bytes_max, headers=headers, content=content
                    )
        except TimeoutError:
            raise FetchError("timeout", f"no answer within {timeout_s:g} s") from None
        except SettingError as error:
            raise FetchError("outside", error.allowed) from None

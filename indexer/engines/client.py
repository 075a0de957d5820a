"""Speaking HTTP to the pods' own APIs: only where they may be, and never more of an answer than was wanted."""

import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import httpx

from indexer.engines.api import EngineApi, route_to
from indexer.engines.networks import EngineNetworks

CONNECTIONS_MAX = 64


class EngineClient:
    """`async with EngineClient(networks) as client:` keeps connections to them. A question as a whole has a deadline of the caller's."""

    def __init__(self, networks: EngineNetworks) -> None:
        self._networks = networks

    async def __aenter__(self) -> Self:
        # No proxy and no .netrc of the environment's: what was looked at is what is dialled.
        self._http = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            timeout=None,  # noqa: S113 - see the class
            limits=httpx.Limits(max_connections=CONNECTIONS_MAX, max_keepalive_connections=CONNECTIONS_MAX),
            verify=ssl.create_default_context(),
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.aclose()

    @asynccontextmanager
    async def ask(self, api: EngineApi, path: str, headers: Mapping[str, str], content: bytes | None = None) -> AsyncIterator[httpx.Response]:
        """GET of a path of the API, or POST where there is content; what the answer holds is not read yet.

        Raises SettingError where the API has no address that may be dialled, httpx.HTTPError and httpx.InvalidURL where it does not answer.
        """
        route = await route_to(api, path, self._networks)
        sent = {**headers, "Accept-Encoding": "identity"}
        if route.host is not None:
            sent["Host"] = route.host
        extensions = {} if route.server_name is None else {"sni_hostname": route.server_name}
        method = "GET" if content is None else "POST"
        async with self._http.stream(method, route.url, content=content, headers=sent, extensions=extensions) as response:
            yield response


async def read_body(response: httpx.Response, bytes_max: int) -> bytes | None:
    """What the answer holds, None where that is more."""
    found, size = [], 0
    async for chunk in response.aiter_raw():
        size += len(chunk)
        if size > bytes_max:
            return None
        found.append(chunk)
    return b"".join(found)

"""Asks over HTTP, and returns what there is instead of raising."""

import ssl
from email.utils import parsedate_to_datetime
from time import time
from types import TracebackType
from typing import Any, Literal, Self

import msgspec

from indexer.engines.http_client import FetchError, HttpClient, Target
from scorer_api.doctor.checks.reply import Reply

TIMEOUT_S = 4.0
BODY_BYTES_MAX = 4 * 2**20
HEADERS = {"User-Agent": "kv-indexer-doctor"}


class Asker:
    """`async with Asker() as asker: await asker.get(url)`. `token`, `verify`: for the service; `uses_proxies`: those of the environment."""

    def __init__(self, token: str | None = None, verify: Literal[True] | ssl.SSLContext = True, *, uses_proxies: bool = False) -> None:
        self._headers = HEADERS if token is None else {**HEADERS, "Authorization": f"Bearer {token}"}
        # No limit on connections: many pods are asked at once, each many things.
        self._http = HttpClient(verify=verify, uses_proxies=uses_proxies)

    async def __aenter__(self) -> Self:
        await self._http.__aenter__()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.__aexit__(kind, error, trace)

    async def get(self, url: str, *, timeout_s: float = TIMEOUT_S) -> Reply:
        """Never raises for what the other side does."""
        return await self._ask(url, self._headers, None, timeout_s)

    async def post(self, url: str, body: Any, *, timeout_s: float = TIMEOUT_S) -> Reply:
        """POST `body` as JSON. Never raises for what the other side does."""
        return await self._ask(url, {**self._headers, "Content-Type": "application/json"}, msgspec.json.encode(body), timeout_s)

    async def _ask(self, url: str, headers: dict[str, str], content: bytes | None, timeout_s: float) -> Reply:
        try:
            answer = await self._http.fetch(Target(url), timeout_s=timeout_s, bytes_max=BODY_BYTES_MAX, headers=headers, content=content)
        except FetchError as error:
            return Reply(error=error.why, is_tls_error=error.is_tls_error)
        return Reply(answer.status, answer.body, _skew_s(answer.headers.get("date")))


def _skew_s(date: str | None) -> float | None:
    if date is None:
        return None
    try:
        remote_s = parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    # The header has whole seconds: the middle of its second is the best guess.
    return remote_s + 0.5 - time()

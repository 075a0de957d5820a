"""Asking over HTTP, bounded: a deadline for the whole answer, and so many bytes of it. What comes may be anything."""

import asyncio
import ssl
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx
import msgspec

from indexer.masking import masked
from scorer_api.doctor.reply import Reply

TIMEOUT_S = 4.0
BODY_BYTES_MAX = 4 * 2**20
# Bodies are not inflated: a small one could become any size.
HEADERS = {"Accept-Encoding": "identity", "User-Agent": "kv-indexer-doctor"}


class Asker:
    """`async with Asker() as asker: await asker.get(url)`. Never raises for what the other side does."""

    def __init__(self, token: str | None = None, verify: bool | ssl.SSLContext = True, *, uses_proxies: bool = False) -> None:
        headers = HEADERS if token is None else {**HEADERS, "Authorization": f"Bearer {token}"}
        # Many pods are asked at once, each many things.
        limits = httpx.Limits(max_connections=None)
        self._client = httpx.AsyncClient(headers=headers, verify=verify, timeout=TIMEOUT_S, trust_env=uses_proxies, limits=limits)

    async def __aenter__(self) -> "Asker":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def get(self, url: str, *, timeout_s: float = TIMEOUT_S) -> Reply:
        return await self._ask("GET", url, None, timeout_s)

    async def post(self, url: str, body: Any, *, timeout_s: float = TIMEOUT_S) -> Reply:
        return await self._ask("POST", url, msgspec.json.encode(body), timeout_s)

    async def _ask(self, method: str, url: str, content: bytes | None, timeout_s: float) -> Reply:
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            async with asyncio.timeout(timeout_s), self._client.stream(method, url, content=content, headers=headers, timeout=timeout_s) as response:
                skew_s = _skew_s(response.headers.get("Date"))
                return Reply(response.status_code, await _body(response), skew_s)
        except TimeoutError:
            return Reply(error=f"no answer within {timeout_s:g} s")
        except httpx.HTTPError as error:
            return Reply(error=masked(_why(error)), is_tls_error=_is(error, ssl.SSLError))
        except (httpx.InvalidURL, ValueError, OSError) as error:
            return Reply(error=masked(str(error) or type(error).__name__))


async def _body(response: httpx.Response) -> bytes:
    body = bytearray()
    async for piece in response.aiter_raw(65_536):
        body += piece
        if len(body) >= BODY_BYTES_MAX:
            break
    return bytes(body[:BODY_BYTES_MAX])


def _skew_s(date: str | None) -> float | None:
    if date is None:
        return None
    try:
        said = parsedate_to_datetime(date).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    # The header has whole seconds: the middle of its second is the best guess.
    return said + 0.5 - time()


def _why(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return str(error) or type(error).__name__


def _is(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an error of this kind is at the bottom of it."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, kind):
            return True
        seen = seen.__cause__ or seen.__context__
    return False

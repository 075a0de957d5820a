"""An HTTP client for answers of others: each request has a deadline and a limit on the bytes of its answer."""

import asyncio
import ssl
import sys
from collections.abc import AsyncIterator, Mapping
from functools import cache
from importlib.util import find_spec
from types import TracebackType
from typing import Literal, Self

import httpx
from msgspec import Struct

from indexer.errors import IndexerError
from indexer.masking import masked

# The library under httpx imports this module for every connection, and does without it. Where it is not installed, Python would search the disk for
# it each time: a millisecond of a request.
if "sniffio" not in sys.modules and find_spec("sniffio") is None:
    sys.modules["sniffio"] = None  # type: ignore[assignment]  # what the import system takes for "there is none"

FetchOutcome = Literal["timeout", "unreachable", "outside"]


class FetchError(IndexerError):
    """There is no answer.

    Attributes: `outcome`, as metrics count it: "timeout", "unreachable", or "outside" of the networks that may be dialled; `why`, in words and
    without secrets; `is_tls_error`, whether TLS failed.
    """

    def __init__(self, outcome: FetchOutcome, why: str, *, is_tls_error: bool = False) -> None:
        super().__init__(why)
        self.outcome: FetchOutcome = outcome
        self.why = why
        self.is_tls_error = is_tls_error


class Answer(Struct, frozen=True):
    """`headers`: names in lower case. `body`: as sent, never inflated; `is_cut`: it is longer, and only its beginning was read."""

    url: str
    status: int
    headers: Mapping[str, str]
    body: bytes
    is_cut: bool


class Target(Struct, frozen=True):
    """`url`: what to dial. If its host is an address in place of a name: `host` for the header, `server_name` for TLS."""

    url: str
    host: str | None = None
    server_name: str | None = None


@cache
def trusted_authorities() -> ssl.SSLContext:
    """Those that the system trusts. Reading them takes a tenth of a second, so all clients of the process share them."""
    return ssl.create_default_context()


class HttpClient:
    """`async with HttpClient() as client: await client.fetch(Target(url), bytes_max=…, timeout_s=…)` keeps connections between requests.

    `verify`: how certificates are checked, True for the authorities that the system trusts. `uses_proxies`: whether proxies and .netrc of the
    environment count. `connections_max`: None for no limit.
    """

    def __init__(self, *, verify: Literal[True] | ssl.SSLContext = True, uses_proxies: bool = False, connections_max: int | None = None) -> None:
        self._verify = verify
        self._uses_proxies = uses_proxies
        self._connections_max = connections_max

    async def __aenter__(self) -> Self:
        self._http = httpx.AsyncClient(
            trust_env=self._uses_proxies,
            follow_redirects=False,
            timeout=None,  # noqa: S113 - each request has a deadline
            limits=httpx.Limits(max_connections=self._connections_max, max_keepalive_connections=self._connections_max),
            verify=trusted_authorities() if self._verify is True else self._verify,
        )
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._http.aclose()

    async def fetch(
        self,
        target: Target,
        *,
        timeout_s: float,
        bytes_max: int,
        error_bytes_max: int | None = None,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
    ) -> Answer:
        """GET, or POST with `content`. `error_bytes_max`: instead of `bytes_max` for an answer other than 200. Raises FetchError."""
        # An inflated body could become any size.
        sent = {**(headers or {}), "Accept-Encoding": "identity"}
        if target.host is not None:
            sent["Host"] = target.host
        extensions = {} if target.server_name is None else {"sni_hostname": target.server_name}
        method = "GET" if content is None else "POST"
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream(method, target.url, content=content, headers=sent, extensions=extensions) as response,
            ):
                limit = bytes_max if error_bytes_max is None or response.status_code == httpx.codes.OK else error_bytes_max
                body, is_cut = await _read(response.aiter_raw(), limit)
                return Answer(str(response.url), response.status_code, response.headers, body, is_cut)
        except TimeoutError:
            raise FetchError("timeout", f"no answer within {timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, OSError) as error:
            why = masked(str(error)) or type(error).__name__
            raise FetchError("unreachable", why, is_tls_error=_is_caused_by(error, ssl.SSLError)) from None


async def _read(chunks: AsyncIterator[bytes], bytes_max: int) -> tuple[bytes, bool]:
    """At most `bytes_max` bytes, and whether there are more."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > bytes_max:
            return bytes(body[:bytes_max]), True
    return bytes(body), False


def _is_caused_by(error: BaseException, kind: type[BaseException]) -> bool:
    """Whether an error of this kind is in the chain of causes."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, kind):
            return True
        cause = cause.__cause__ or cause.__context__
    return False

"""Kubernetes' API server: lists of objects, and watches from the version of a list on.

What it answers, and where:

    too old a version    200 with an event ERROR of code 410, or a plain 410      list again
    no rights, no token  403, 401                                                 list again after a pause; the token is read for each request
    a bad version        500                                                      likewise
    the end of a watch   its connection ends after a whole line                   watch on from the last version
"""

import asyncio
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Generic, Literal, Self, TypeVar

import httpx
import msgspec
from msgspec import Struct, field

from indexer.config.reload import WatchedFiles
from indexer.config.settings import Settings
from indexer.discovery.errors import SourceError, Trouble
from indexer.discovery.kube_objects import EndpointSlice, InferencePool, Metadata, Pod
from indexer.errors import SettingError
from indexer.masking import masked

log = logging.getLogger(__name__)

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
PAGE_OBJECTS = 500
# A page of large objects; a single one has at most 1.5 MiB in etcd, which JSON and what is added to it make larger.
PAGE_BYTES_MAX = 128 * 2**20
LINE_BYTES_MAX = 16 * 2**20
OBJECTS_MAX = 20_000
STATUS_BYTES_MAX = 65_536
CONNECT_S = 5.0
LIST_S = 30.0

B = TypeVar("B", bytes, bytearray)
T = TypeVar("T", Pod, EndpointSlice, InferencePool)


class Resource(Struct, Generic[T], frozen=True):
    """Which objects. `path`: below the server's address. `query`: what selects some of them. `name`: what a Role calls them."""

    kind: type[T]
    path: str
    query: Mapping[str, str]
    name: str
    namespace: str


class _ListMetadata(Struct, frozen=True, rename="camel"):
    resource_version: str = ""
    continue_: str = field(default="", name="continue")


class _Page(Struct, Generic[T], frozen=True):
    metadata: _ListMetadata
    items: list[T] | None = None


class _Status(Struct, frozen=True):
    code: int = 0
    message: str = ""


class _Event(Struct, frozen=True):
    type: Literal["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"]
    object: msgspec.Raw


class _Bookmark(Struct, frozen=True):
    metadata: Metadata


class Change(Struct, Generic[T], frozen=True):
    """What an event of a watch says. `object`: None for a bookmark. `version`: to watch on from."""

    object: T | None
    is_deleted: bool
    version: str


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_status = msgspec.json.Decoder(_Status).decode
_decode_bookmark = msgspec.json.Decoder(_Bookmark).decode


class KubeApi:
    """`async with KubeApi(base, …) as api:` keeps connections. `token_file`, `ca_file`: by default those that a pod is given, where there are any."""

    def __init__(self, base: str, token_file: str | None = None, ca_file: str | None = None) -> None:
        self._base = base.rstrip("/")
        self._token_file = Path(token_file) if token_file else SERVICE_ACCOUNT / "token"
        self._needs_token = token_file is not None
        ca = Path(ca_file) if ca_file else SERVICE_ACCOUNT / "ca.crt"
        self._ca_file = ca if ca_file or ca.exists() else None
        self._watched = WatchedFiles(*([] if self._ca_file is None else [str(self._ca_file)]))
        self._http: httpx.AsyncClient | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """That of the settings. Raises SettingError for a file that cannot be used."""
        assert settings.kube_api is not None, "sources in Kubernetes come with its address"
        api = cls(settings.kube_api, settings.kube_token_file, settings.kube_ca_file)
        try:
            api._make_client()
        except (OSError, ssl.SSLError) as error:
            raise SettingError("--kube-ca-file", settings.kube_ca_file, f"cannot be read: {error}") from None
        return api

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._http is not None:
            await self._http.aclose()

    def _make_client(self) -> httpx.AsyncClient:
        """Raises OSError, ssl.SSLError."""
        if self._http is None:
            context = ssl.create_default_context(cafile=None if self._ca_file is None else str(self._ca_file))
            # No proxies: a variable that names one is about other hosts.
            self._http = httpx.AsyncClient(trust_env=False, follow_redirects=False, verify=context)
        return self._http

    async def _client(self) -> httpx.AsyncClient:
        """Another one where the authority's file has changed. Raises SourceError."""
        if self._http is not None and self._watched.have_changed():
            former, self._http = self._http, None
            await former.aclose()
        try:
            return self._make_client()
        except (OSError, ssl.SSLError) as error:
            raise SourceError("unreachable", f"{self._ca_file} cannot be used: {error}") from None

    def _headers(self) -> dict[str, str]:
        """Raises SourceError."""
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if not self._base.startswith("https:"):
            return headers  # a token is sent to nobody but the server that a certificate names
        try:
            token = self._token_file.read_text(encoding="ascii").strip()
        except FileNotFoundError:
            if not self._needs_token:
                return headers
            raise SourceError("unauthorized", f"there is no token in {self._token_file}") from None
        except (OSError, UnicodeError) as error:
            raise SourceError("unauthorized", f"the token in {self._token_file} cannot be read: {error}") from None
        return {**headers, "Authorization": f"Bearer {token}"}

    # Lists

    async def list(self, resource: Resource[T]) -> tuple[list[T], str]:
        """Every object, and the version to watch on from. Raises SourceError."""
        decoder = msgspec.json.Decoder(_Page[resource.kind])  # type: ignore[name-defined]  # it is a type, known when it is called
        found: list[T] = []
        more = ""
        while True:
            query = {**resource.query, "limit": str(PAGE_OBJECTS), **({"continue": more} if more else {})}
            body = await self._get(resource, query)
            try:
                page = decoder.decode(body)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise SourceError("malformed", f"the list of {resource.name} is not understood: {error}") from None
            found += page.items or []
            more = page.metadata.continue_
            if not more:
                return found, page.metadata.resource_version
            if len(found) >= OBJECTS_MAX:
                raise SourceError("too_large", f"there are more than {OBJECTS_MAX} {resource.name}")

    async def _get(self, resource: Resource[T], query: Mapping[str, str]) -> bytes:
        client, headers = await self._client(), self._headers()
        try:
            async with (
                asyncio.timeout(LIST_S),
                client.stream("GET", self._base + resource.path, params=query, headers=headers, timeout=LIST_S) as response,
            ):
                if response.status_code != httpx.codes.OK:
                    raise await _refusal(response, "list", resource)
                return await _read(response, PAGE_BYTES_MAX)
        except (TimeoutError, httpx.TimeoutException):
            raise SourceError("timeout", f"{self._base} did not list {resource.name} within {LIST_S:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise SourceError("unreachable", f"{self._base} cannot be reached: {masked(str(error)) or type(error).__name__}") from None

    # Watches

    async def watch(
        self, resource: Resource[T], version: str, watch_s: int, silence_s: float, note_open: Callable[[], None]
    ) -> AsyncGenerator[Change[T], None]:
        """What changes, until the server ends the watch after `watch_s`. A silence of `silence_s` means that it is frozen. Raises SourceError."""
        decode = msgspec.json.Decoder(resource.kind).decode
        query = {**resource.query, "watch": "1", "resourceVersion": version, "allowWatchBookmarks": "true", "timeoutSeconds": str(watch_s)}
        client, headers = await self._client(), self._headers()
        times = httpx.Timeout(CONNECT_S, read=silence_s)
        try:
            async with client.stream("GET", self._base + resource.path, params=query, headers=headers, timeout=times) as response:
                if response.status_code != httpx.codes.OK:
                    raise await _refusal(response, "watch", resource)
                note_open()
                async for line in _lines(response):
                    yield _change(line, decode, resource.name)
        except httpx.TimeoutException:
            raise SourceError("timeout", f"{self._base} was silent for {silence_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
            raise SourceError("unreachable", f"{self._base} cannot be reached: {masked(str(error)) or type(error).__name__}") from None


async def _read(response: httpx.Response, bytes_max: int) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > bytes_max:
            raise SourceError("too_large", f"an answer has more than {bytes_max} bytes")
    return bytes(body)


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Whole lines. Other separators than a line feed are part of a line. Raises SourceError for an end within one."""
    rest = bytearray()
    async for chunk in response.aiter_raw():
        *lines, last = chunk.split(b"\n")
        for line in lines:
            yield _bounded(bytes(rest) + line)
            rest.clear()
        rest += last
        _bounded(rest)
    if rest:
        raise SourceError("cut", "the watch ended within an event")


def _bounded(line: B) -> B:
    """Raises SourceError."""
    if len(line) > LINE_BYTES_MAX:
        raise SourceError("too_large", f"an event has more than {LINE_BYTES_MAX} bytes")
    return line


def _change(line: bytes, decode: Callable[[msgspec.Raw], T], name: str) -> Change[T]:
    """Raises SourceError."""
    try:
        event = _decode_event(line)
        if event.type == "ERROR":
            status = _decode_status(event.object)
            raise SourceError(_reason(status.code), f"the watch of {name} ended: {status.message or status.code}")
        if event.type == "BOOKMARK":
            return Change(None, False, _decode_bookmark(event.object).metadata.resource_version)
        changed = decode(event.object)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SourceError("malformed", f"an event about {name} is not understood: {error}") from None
    return Change(changed, event.type == "DELETED", changed.metadata.resource_version)


async def _refusal(response: httpx.Response, verb: str, resource: Resource[T]) -> SourceError:
    """What an answer other than 200 says: which verb on what is not allowed, for example."""
    body = await _read(response, STATUS_BYTES_MAX)
    try:
        said = _decode_status(body).message
    except (msgspec.DecodeError, UnicodeDecodeError):
        said = ""
    status = response.status_code
    more = f": {said}" if said else ""
    return SourceError(_reason(status), f"cannot {verb} {resource.name} in namespace {resource.namespace}, answered {status}{more}")


def _reason(status: int) -> Trouble:
    reasons: dict[int, Trouble] = {401: "unauthorized", 403: "forbidden", 404: "missing", 410: "expired", 429: "status", 504: "timeout"}
    return reasons.get(status, "status")

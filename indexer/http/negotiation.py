"""Request and response bodies: their size, and JSON or msgpack."""

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from indexer.http.problems import Problem

# A refused body of up to this many times the limit is still read to its end.
FAR_OVER = 4
# To join more than this takes a millisecond or longer.
JOINED_BYTES_MAX = 2**20

JSON = "application/json"
MSGPACK = "application/msgpack"
_MSGPACK_NAMES = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})
Encode = Callable[[Any], bytes]
_ENCODE: Mapping[str, Encode] = {JSON: msgspec.json.Encoder().encode, MSGPACK: msgspec.msgpack.Encoder().encode}


def media_type_of(request: Request, *allowed: str) -> str:
    """The type of the request's body. Raises Problem 415."""
    if request.headers.get("content-encoding", "identity") != "identity":
        raise Problem(415, "Content-Encoding should be left out: bodies are taken uncompressed")
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    found = MSGPACK if given in _MSGPACK_NAMES else given
    if found not in allowed:
        raise Problem(415, f"Content-Type should be {' or '.join(allowed)}, not {given or 'left out'}")
    return found


def accepted_type(request: Request, otherwise: str) -> str:
    """The type of the response: the one that Accept prefers, else `otherwise`."""
    best, best_weight = otherwise, 0.0
    for accepted in request.headers.get("accept", "").lower().split(","):
        name, _, parameters = accepted.partition(";")
        found = MSGPACK if name.strip() in _MSGPACK_NAMES else name.strip()
        if found in (JSON, MSGPACK) and (weight := _weight(parameters)) > best_weight:
            best, best_weight = found, weight
    return best


def _weight(parameters: str) -> float:
    found = re.search(r"(?:^|;)\s*q\s*=\s*([01](?:\.\d*)?)\s*(?:;|$)", parameters)
    return float(found[1]) if found else 1.0


async def read_body(request: Request, bytes_max: int, timeout_s: float) -> bytes:
    """The whole body. Raises Problem 413 as soon as it is known to be too large, and 408 if it takes too long."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > bytes_max:
        # A body that is somewhat too large is discarded as it arrives: closing at once would reset the connection while the client still sends,
        # and it might never see why. A body that is far too large is not waited for.
        is_far_over = int(announced) > FAR_OVER * bytes_max
        raise Problem(413, f"the body has {announced} bytes; at most {bytes_max} are taken", closes=is_far_over)
    try:
        async with asyncio.timeout(timeout_s):
            return await _read_at_most(request, bytes_max)
    except TimeoutError:
        raise Problem(408, f"the body did not arrive within {timeout_s} s", closes=True) from None


async def _read_at_most(request: Request, bytes_max: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > bytes_max:
            raise Problem(413, f"the body has more than {bytes_max} bytes, which is the most that is taken", closes=True)
        chunks.append(chunk)
    return await join(chunks)


async def join(pieces: Sequence[bytes]) -> bytes:
    """All pieces in one. Other requests have their turn while a large one is copied: into memory that was never used before it takes long."""
    if sum(map(len, pieces)) <= JOINED_BYTES_MAX:
        return b"".join(pieces)
    return await asyncio.to_thread(b"".join, pieces)  # CPython copies this much without its lock


def encoder(media_type: str) -> Encode:
    """What makes the bytes of a response body in the given type."""
    return _ENCODE[media_type]


def encode(answer: Any, media_type: str) -> bytes:
    """The bytes of a response body in the given type."""
    return _ENCODE[media_type](answer)


def respond(answer: Any, media_type: str = JSON, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """A response in the given type."""
    return Response(_ENCODE[media_type](answer), status, headers, media_type)


async def respond_in_pieces(pieces: AsyncGenerator[bytes, None], media_type: str) -> Response:
    """A response that is made while it is read. One of a single piece has a Content-Length."""
    first = await anext(pieces)
    second = await anext(pieces, None)
    return Response(first, media_type=media_type) if second is None else _InPieces(first, second, pieces, media_type)


class _InPieces(StreamingResponse):
    def __init__(self, first: bytes, second: bytes, rest: AsyncGenerator[bytes, None], media_type: str) -> None:
        self._rest = rest
        super().__init__(self._all(first, second), media_type=media_type)

    async def _all(self, *begun: bytes) -> AsyncGenerator[bytes, None]:
        for piece in begun:
            yield piece
        async for piece in self._rest:
            yield piece

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._rest.aclose()  # the client may have left before the end

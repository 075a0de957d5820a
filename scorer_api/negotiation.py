"""Bodies in and out: their size, and JSON or msgpack."""

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import Request, Response

from scorer_api.problems import Problem

JSON = "application/json"
MSGPACK = "application/msgpack"
_MSGPACK_NAMES = frozenset({MSGPACK, "application/x-msgpack", "application/vnd.msgpack"})
_ENCODE = {JSON: msgspec.json.Encoder().encode, MSGPACK: msgspec.msgpack.Encoder().encode}


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
    """The type to answer in: what Accept asks for, first come, else `otherwise`."""
    for accepted in request.headers.get("accept", "").lower().split(","):
        name = accepted.partition(";")[0].strip()
        if name in _MSGPACK_NAMES:
            return MSGPACK
        if name == JSON:
            return JSON
    return otherwise


async def read_body(request: Request, bytes_max: int) -> bytes:
    """The whole body. Raises Problem 413 as soon as it is known to be too large."""
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > bytes_max:
        raise Problem(413, f"the body has {announced} bytes; at most {bytes_max} are taken")
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > bytes_max:
            raise Problem(413, f"the body has more than {bytes_max} bytes, which is the most that is taken")
        chunks.append(chunk)
    return b"".join(chunks)


def respond(answer: Any, media_type: str = JSON, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in the given type."""
    return Response(_ENCODE[media_type](answer), status, headers, media_type)

"""Takes a long list of tokens out of a JSON or msgpack object, piece by piece, so that other requests have their turn in between.

A decoder reads a million tokens in one call of a tenth of a second, in which nothing else runs. Pieces are cut without decoding: in JSON at commas,
in msgpack at the ends of integers, which a pattern finds.
"""

import asyncio
import re

import msgspec
from msgspec import Struct

from indexer.core.block_keys import pack_tokens
from indexer.http.negotiation import JSON

# About 5,000 tokens, which take a millisecond.
PIECE_BYTES = 32_768
PIECE_ITEMS = 4_096
# A shorter list is decoded as a part of its object.
LIST_BYTES_MIN = 262_144

_ARRAY_START = re.compile(rb"\s*:\s*\[")
_INTEGER = rb"(?:[\x00-\x7f]|\xcc.|\xcd..|\xce.{4}|\xcf.{8})"
_ITEMS = re.compile(_INTEGER + b"{%d}" % PIECE_ITEMS, re.DOTALL)

_decode_json = msgspec.json.Decoder(list[int]).decode
_decode_msgpack = msgspec.msgpack.Decoder(list[int]).decode


class Taken(Struct, frozen=True):
    """`body`: without the first tokens of its list. `tokens`: these, as little-endian uint32. `left`: how many are still in the list."""

    body: bytes
    tokens: bytes
    left: int


async def take_tokens(body: bytes, key: str, media_type: str) -> Taken | None:
    """Take the tokens of the list under `key`: all of them, or all but fewer than PIECE_ITEMS.

    None if there is no long list of tokens, or not exactly one key of this name. The caller checks that the key is the object's own: then `left`
    tokens are in the list of what the new body decodes to.
    """
    if len(body) < LIST_BYTES_MIN:
        return None
    try:
        return await (_take_json(body, key) if media_type == JSON else _take_msgpack(body, key))
    except (msgspec.MsgspecError, UnicodeDecodeError, OverflowError):
        return None  # decoding the whole body says what is wrong


async def _take_json(body: bytes, key: str) -> Taken | None:
    name = f'"{key}"'.encode()
    if (at := _only(body, name)) is None or (opened := _ARRAY_START.match(body, at + len(name))) is None:
        return None
    start, end = opened.end(), body.find(b"]", opened.end())
    if end - start < LIST_BYTES_MIN:
        return None
    pieces: list[bytes] = []
    while start < end:
        cut = body.find(b",", start + PIECE_BYTES, end)
        cut = end if cut < 0 else cut
        tokens = _decode_json(b"[%b]" % body[start:cut])
        if not tokens or cut + 1 == end:
            return None  # nothing between commas
        pieces.append(pack_tokens(tokens))
        start = cut + 1
        await asyncio.sleep(0)
    return Taken(body[: opened.end()] + body[end:], b"".join(pieces), 0)


async def _take_msgpack(body: bytes, key: str) -> Taken | None:
    name = bytes([0xA0 | len(key)]) + key.encode()
    if (at := _only(body, name)) is None:
        return None
    first = at + len(name)
    match body[first : first + 1]:
        case b"\xdc":
            start, left = first + 3, int.from_bytes(body[first + 1 : first + 3], "big")
        case b"\xdd":
            start, left = first + 5, int.from_bytes(body[first + 1 : first + 5], "big")
        case _:
            return None
    if left < PIECE_ITEMS:
        return None
    pieces: list[bytes] = []
    while left >= PIECE_ITEMS:
        if (items := _ITEMS.match(body, start)) is None:
            return None
        pieces.append(pack_tokens(_decode_msgpack(b"\xdd%b%b" % (PIECE_ITEMS.to_bytes(4, "big"), items[0]))))
        start, left = items.end(), left - PIECE_ITEMS
        await asyncio.sleep(0)
    # The last ones stay where they are: the decoder knows where they end.
    return Taken(body[:first] + b"\xdd" + left.to_bytes(4, "big") + body[start:], b"".join(pieces), left)


def _only(body: bytes, name: bytes) -> int | None:
    at = body.find(name)
    return None if at < 0 or body.find(name, at + len(name)) >= 0 else at

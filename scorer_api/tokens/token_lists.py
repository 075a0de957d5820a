"""Takes a long list of tokens out of a JSON or msgpack object, piece by piece, so that other requests have their turn in between.

A decoder reads a million tokens in one call of a tenth of a second, in which nothing else runs. Pieces are cut without decoding: in JSON at commas,
in msgpack at the ends of integers, which a pattern finds.
"""

import asyncio
import re
from collections.abc import Sequence

import msgspec
from msgspec import Raw, Struct

from indexer.compiled import core
from indexer.core.block_keys import TOKEN_BYTES, TOKEN_MAX, pack_tokens
from indexer.http.negotiation import JSON, join

# About 5,000 tokens, which take a millisecond.
PIECE_BYTES = 32_768
PIECE_ITEMS = 4_096
# A shorter list is decoded as a part of its object.
LIST_BYTES_MIN = 262_144

_ARRAY_START = re.compile(rb"\s*:\s*\[")
_INTEGER = rb"(?:[\x00-\x7f]|\xcc.|\xcd..|\xce.{4}|\xcf.{8})"
_ITEMS = re.compile(_INTEGER + b"{%d}" % PIECE_ITEMS, re.DOTALL)
# Letters of another key may be written so, and it may be the same key.
_ESCAPED = re.compile(rb"\\u00[2-7]")
# Positions in errors.
_TOKEN = re.compile(r"(?:(?<=^token_ids\[)|(?<=^prompt\[))\d+(?=\])")
_BYTE = re.compile(r"(?<=\(byte )\d+(?=\)$)")

_decode_json = msgspec.json.Decoder(list[int]).decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_decode_msgpack = msgspec.msgpack.Decoder(list[int]).decode


class Taken(Struct, frozen=True):
    """`body`: without `cut` bytes of a list that begins at `first`. `tokens`: those that were there, as little-endian uint32.

    `left`: how many tokens are still in the list; None for a list that is none of integers: what is wrong with it is near its beginning now.
    `bad`: position and value of the first of the tokens taken that is out of range.
    """

    body: bytes
    first: int
    cut: int
    tokens: bytes
    left: int | None
    bad: tuple[int, int] | None = None

    @property
    def count(self) -> int:
        """How many tokens were taken."""
        return len(self.tokens) // TOKEN_BYTES

    def moved(self, error: str, field: str) -> str:
        """An error about this body, with the positions of the whole one. `field`: the one whose list it was."""
        if error.startswith(f"{field}["):
            error = _TOKEN.sub(lambda found: str(int(found[0]) + self.count), error)
        return moved_bytes(error, self.first, self.cut)


def moved_bytes(error: str, first: int, cut: int) -> str:
    """An error about a body without the `cut` bytes from `first` on, with the position of the whole one."""
    return _BYTE.sub(lambda found: str(int(found[0]) + (cut if int(found[0]) >= first else 0)), error)


def first_out_of_range(tokens: Sequence[int]) -> tuple[int, int]:
    """Position and value of the first one that is no token."""
    return next((position, token) for position, token in enumerate(tokens) if not 0 <= token <= TOKEN_MAX)


async def take_tokens(body: bytes, key: str, media_type: str) -> Taken | None:
    """Take the tokens of the list under `key`: all of them, or all but fewer than PIECE_ITEMS.

    None if there is no long list of tokens, or not exactly one key of this name. The caller checks that the key is the object's own: then `left`
    tokens are in the list of what the new body decodes to.
    """
    if len(body) < LIST_BYTES_MIN:
        return None
    if media_type == JSON:
        return None if (found := long_list(body, key)) is None else await _take_json(body, *found)
    # The same key may have a longer head, which is no other key.
    name = key.encode()
    if (at := _only(body, name)) is None or at == 0 or body[at - 1] != 0xA0 | len(name):
        return None
    return await _take_msgpack(body, at + len(name))


async def take_list(body: bytes, content: bytes, media_type: str) -> Taken | None:
    """The same of a list that is found by its content, wherever it is: None if it is short, or no list of numbers."""
    if len(content) < LIST_BYTES_MIN or (at := body.find(content)) < 0:
        return None
    if media_type != JSON:
        return await _take_msgpack(body, at)
    is_flat = content[:1] == b"[" and content.find(b"]") == len(content) - 1
    return await _take_json(body, at + 1, at + len(content) - 1) if is_flat else None


class _Packed:
    """The tokens of the pieces so far."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.count = 0
        self.bad: tuple[int, int] | None = None

    def add_packed(self, tokens: bytes) -> None:
        self.pieces.append(tokens)
        self.count += len(tokens) // TOKEN_BYTES

    def add(self, tokens: list[int]) -> None:
        try:
            packed = pack_tokens(tokens)
        except OverflowError:
            position, token = first_out_of_range(tokens)
            self.bad = self.bad or (self.count + position, token)
            packed = bytes(TOKEN_BYTES * len(tokens))
        self.add_packed(packed)


def long_list(body: bytes, key: str) -> tuple[int, int] | None:
    """Where the items of a long list in a JSON object begin and end; None if there is none under this key, or not exactly one such key.

    It ends at the first bracket: one in an item makes it no list of numbers or simple texts.
    """
    name = f'"{key}"'.encode()
    if (at := _only(body, name)) is None or (opened := _ARRAY_START.match(body, at + len(name))) is None:
        return None
    first, end = opened.end(), body.find(b"]", opened.end())
    if end - first < LIST_BYTES_MIN or _ESCAPED.search(body, 0, at) or _ESCAPED.search(body, end) or not _is_own_key(body, at):
        return None
    return first, end


async def _take_json(body: bytes, first: int, end: int) -> Taken:
    """The items are between these positions."""
    packed, start = _Packed(), first
    before = first
    while start < end:
        cut = body.find(b",", start + PIECE_BYTES, end)
        cut = end if cut < 0 else cut
        piece = b"[%b]" % body[start:cut]
        if core is not None and cut + 1 != end and (tokens := core.pack_json_tokens(piece)):
            packed.add_packed(tokens)
        else:
            try:
                decoded = _decode_json(piece)
            except (msgspec.DecodeError, UnicodeDecodeError):
                decoded = []
            if not decoded or cut + 1 == end:  # no integers, or nothing between commas
                good = await join(packed.pieces[:-1])
                return Taken(body[:first] + body[before:], first, before - first, good, None)
            packed.add(decoded)
        before, start = start, cut + 1
        await asyncio.sleep(0)
    return Taken(body[:first] + body[end:], first, end - first, await join(packed.pieces), 0, packed.bad)


async def _take_msgpack(body: bytes, first: int) -> Taken | None:
    """The list, or what may be one, begins at `first`."""
    match body[first : first + 1]:
        case b"\xdc":
            start, left = first + 3, int.from_bytes(body[first + 1 : first + 3], "big")
        case b"\xdd":
            start, left = first + 5, int.from_bytes(body[first + 1 : first + 5], "big")
        case _:
            return None
    if left < PIECE_ITEMS:
        return None
    packed = _Packed()
    while left >= PIECE_ITEMS:
        if (items := _ITEMS.match(body, start)) is None:
            break
        packed.add(_decode_msgpack(b"\xdd%b%b" % (PIECE_ITEMS.to_bytes(4, "big"), items[0])))
        start, left = items.end(), left - PIECE_ITEMS
        await asyncio.sleep(0)
    # The last ones stay where they are: the decoder knows where they end, and what is wrong with them.
    rest = body[:first] + b"\xdd" + left.to_bytes(4, "big") + body[start:]
    return Taken(rest, first, len(body) - len(rest), await join(packed.pieces), left, packed.bad)


def _is_own_key(body: bytes, at: int) -> bool:
    """Whether the key there is one of the outermost object."""
    try:
        _decode_object(b'%b"":0}' % body[:at])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _only(body: bytes, name: bytes) -> int | None:
    at = body.find(name)
    return None if at < 0 or body.find(name, at + len(name)) >= 0 else at

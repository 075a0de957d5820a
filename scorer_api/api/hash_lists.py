"""Takes a long list of engine hashes out of a JSON object, piece by piece, so that other requests have their turn in between.

Hashes in hexadecimal digits are matched with a pattern one by one: 60,000 of them take a fifth of a second in one call.
"""

import asyncio

import msgspec
from msgspec import Struct

from scorer_api.api.schemas import BLOCK_HASHES_MAX, HexDigits
from scorer_api.index.engine_hashes import normalised
from scorer_api.tokens.token_lists import long_list

KEY = "block_hashes"
# About 1,000 hashes in digits, which take two milliseconds.
PIECE_BYTES = 16_384

_decode = msgspec.json.Decoder(list[int | HexDigits]).decode


class TakenHashes(Struct, frozen=True):
    """`body`: without the `cut` bytes of the list from `first` on, or with another list that is too long where there are more than BLOCK_HASHES_MAX.

    `hashes`: those that were in the list.
    """

    body: bytes
    first: int
    cut: int
    hashes: list[int]


async def take_hashes(body: bytes) -> TakenHashes | None:
    """All hashes of the list. None if there is no long list of hashes, or not exactly one such key."""
    if (found := long_list(body, KEY)) is None:
        return None
    first, end = found
    hashes: list[int] = []
    start = first
    while start < end:
        cut = body.find(b",", start + PIECE_BYTES, end)
        cut = end if cut < 0 else cut
        try:
            piece = normalised(_decode(b"[%b]" % body[start:cut]))
        except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
            return None  # decoding the whole body says what is wrong
        if not piece or cut + 1 == end:
            return None  # nothing between commas
        hashes += piece
        if len(hashes) > BLOCK_HASHES_MAX:
            too_long = b"0," * BLOCK_HASHES_MAX + b"0"
            return TakenHashes(body[:first] + too_long + body[end:], first, end - first - len(too_long), [])
        start = cut + 1
        await asyncio.sleep(0)
    return TakenHashes(body[:first] + body[end:], first, end - first, hashes)

"""Splits a batch in JSON into its requests, a piece at a time, so that others have their turn in between.

A request is an object. It ends at a closing brace where what began with it is a whole value, so a cut that decodes is the only one there is. Whatever
else a batch is, is left to the decoder of the whole.
"""

import asyncio
import re
from collections.abc import Sequence

import msgspec
from msgspec import Raw

# A smaller batch takes a millisecond or two.
WHOLE_BYTES_MAX = 524_288
# So many bytes are looked at, and then others have their turn.
PIECE_BYTES = 262_144
# Objects in objects end where a request might.
ENDS_MAX = 16_384

_BEGIN = re.compile(rb'\s*\{\s*"requests"\s*:\s*\[\s*(?=\{)')
_END = re.compile(rb"\}(?:\s*,\s*(?=\{)|(?P<last>\s*\]\s*\}\s*\Z))")
_check = msgspec.json.Decoder(Raw).decode


async def split_in_turns(body: bytes) -> Sequence[bytes] | None:
    """The requests of a batch, still encoded; None where the body is small, or no batch that can be split."""
    if len(body) <= WHOLE_BYTES_MAX or (begin := _BEGIN.match(body)) is None:
        return None
    requests: list[bytes] = []
    start = seen = paused = begin.end()
    depth = 0
    for number, end in enumerate(_END.finditer(body, start)):
        depth += body.count(b"{", seen, end.start() + 1) - body.count(b"}", seen, end.start() + 1)
        seen = end.start() + 1
        if number >= ENDS_MAX:
            return None
        # A brace in a text counts too: then it does not decode, or the last request never ends.
        if not depth:
            request = body[start:seen]
            try:
                _check(request)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                return None
            requests.append(request)
            start = seen = end.end()
            if end["last"] is not None:
                return requests
        if seen - paused >= PIECE_BYTES:
            paused = seen
            await asyncio.sleep(0)
    return None

"""Decodes a long list of extra keys piece by piece: those of 80,000 blocks take a fifth of a second in one call."""

import re
from collections.abc import Callable, Generator, Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw

from indexer.http.negotiation import JSON, MSGPACK
from scorer_api.api.schemas import BLOCK_NUMBER_MAX

# A shorter list is decoded as a part of its object.
LIST_BYTES_MIN = 32_768
# They take about a millisecond.
PIECE_ENTRIES = 512
EMPTY = {JSON: b"[]", MSGPACK: b"\x90"}

# Tuples: the garbage collector does not look through many small ones again and again, as it does through lists.
Entry = tuple[Annotated[int, Meta(ge=0, le=BLOCK_NUMBER_MAX)], tuple[Any, ...]]
_decode_raw: Mapping[str, Callable[[bytes], list[Raw]]] = {
    JSON: msgspec.json.Decoder(list[Raw]).decode,
    MSGPACK: msgspec.msgpack.Decoder(list[Raw]).decode,
}
_decode: Mapping[str, Callable[[bytes], list[Entry]]] = {
    JSON: msgspec.json.Decoder(list[Entry]).decode,
    MSGPACK: msgspec.msgpack.Decoder(list[Entry]).decode,
}
# The place in an error.
_PLACE = re.compile(r"`\$\[(\d+)\]")


def without_list(body: bytes, content: bytes, media_type: str) -> bytes | None:
    """The body with an empty list where this content is first; None where the content is short, or no list. It may have been in a text."""
    is_list = content[:1] == b"[" if media_type == JSON else content[:1] in (b"\xdc", b"\xdd")
    if len(content) < LIST_BYTES_MIN or not is_list or (at := body.find(content)) < 0:
        return None
    return body[:at] + EMPTY[media_type] + body[at + len(content) :]


def entries_in_steps(content: bytes, media_type: str) -> Generator[None, None, list[Entry]]:
    """The entries of the list. Raises what msgspec raises for the whole body."""
    raw = _decode_raw[media_type](content)
    entries: list[Entry] = []
    for start in range(0, len(raw), PIECE_ENTRIES):
        yield
        piece = raw[start : start + PIECE_ENTRIES]
        framed = b"[%b]" % b",".join(piece) if media_type == JSON else b"\xdc" + len(piece).to_bytes(2, "big") + b"".join(piece)
        try:
            entries += _decode[media_type](framed)
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(_moved(str(error), start)) from None
    return entries


def _moved(error: str, start: int) -> str:
    return _PLACE.sub(lambda found: f"`$.block_extra_keys[{int(found[1]) + start}]", error)

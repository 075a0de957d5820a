"""Fields of a chat, whose content is the engine's own and is passed on to it in JSON."""

import math
from datetime import datetime

import msgspec
from msgspec import UNSET, Raw, UnsetType

from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.problems import Problem
from scorer_api.api.msgpack_values import has_more_values

CHAT = {"messages": (b"[", "a list of messages"), "tools": (b"[", "a list of tools"), "chat_template_kwargs": (b"{", "an object")}
CHAT |= {"documents": (b"[", "a list of documents"), "mm_processor_kwargs": (b"{", "an object")}
# A larger chat in msgpack is nearly all text: pages, images.
UNCOUNTED_BYTES_MAX = 2_097_152
CHAT_VALUES_MAX = 65_536
NULL = {JSON: b"null", MSGPACK: b"\xc0"}


def json_field(name: str, raw: Raw | UnsetType, media_type: str) -> Raw | UnsetType:
    """A field of a chat, one of CHAT, in JSON; UNSET for null. Raises Problem 422 for another type, and what msgspec raises."""
    if raw is UNSET or (content := bytes(raw)) == NULL[media_type]:
        return UNSET
    if media_type != JSON:
        if len(content) > UNCOUNTED_BYTES_MAX and has_more_values(content, CHAT_VALUES_MAX):
            raise Problem(
                422, f"{name}: {len(content)} bytes of more than {CHAT_VALUES_MAX} values; in msgpack so large a chat should be nearly all text"
            )
        content = _json_of(name, content)
    content.decode()
    begin, expected = CHAT[name]
    if not content.startswith(begin):
        raise Problem(422, f"{name}: should be {expected}")
    return Raw(content)


def _json_of(name: str, content: bytes) -> bytes:
    """Raises Problem 422 for what has no word in JSON."""
    try:
        value = msgspec.msgpack.decode(content)
    except (TypeError, msgspec.DecodeError):  # a list or an object as a key; what cannot be read was refused before
        raise Problem(422, f"{name}: the keys of objects should be texts") from None
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, dict):
            if not all(isinstance(key, str) for key in item):
                raise Problem(422, f"{name}: the keys of objects should be texts")
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
        elif not (item is None or isinstance(item, str | int) or (isinstance(item, float) and math.isfinite(item))):
            kind = {float: "a number that is not finite", bytes: "bin", datetime: "a time stamp"}.get(type(item), "an extension")
            raise Problem(422, f"{name}: there is {kind}, which JSON has no word for")
    return msgspec.json.encode(value)

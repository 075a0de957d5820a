"""From messages to requests: what is wrong with one is said by the same code as for bodies over HTTP, since the message becomes such a body.

Only what is long and needs no checks is put into the request by itself: tokens, hashes, and the texts of the prompt and of its template.
"""

import asyncio
import sys
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from itertools import islice
from typing import Any, TypeVar

import msgspec
from msgspec import Raw, structs

from indexer.core.event_pieces import result_of
from indexer.http.negotiation import JSON
from indexer.http.problems import Problem
from scorer_api.api.decode import FIELD_BYTES_MAX, decode_done, decode_route_in_turns, decode_score_in_turns
from scorer_api.api.route_schemas import DoneRequest, RouteRequest
from scorer_api.api.schemas import BATCH_REQUESTS_MAX, BLOCK_HASHES_MAX, ScoreRequest
from scorer_api.api.steps import one_by_one
from scorer_api.rpc.protobuf import MalformedError, read_fields
from scorer_api.rpc.schema import SCHEMA

R = TypeVar("R", bound=ScoreRequest)
# Fields whose text is JSON, and goes into the body as it is.
IN_JSON = frozenset({"messages", "tools", "chat_template_kwargs", "documents", "mm_processor_kwargs", "block_extra_keys"})
# Texts that need no checks.
TEXTS = frozenset({"prompt", "chat_template"})
# Fields that have no limit of their own: those texts, and JSON of which most is text.
LONG = TEXTS | {"messages", "documents"}
TEXT_BYTES_MAX = 262_144
HASH_BYTES = 8
# So many fields are read in a millisecond or two.
STEP_FIELDS = 2_048
_WIRE_TYPES: Mapping[str, tuple[int, ...]] = {"string": (2,), "uint32": (0,), "bool": (0,), "fixed32": (2, 5), "fixed64": (2, 1)}
_check_json = msgspec.json.Decoder(Raw).decode


def _keys(message: str) -> dict[int, tuple[str, str, bool]]:
    """Key of a field → its name, kind, and whether it is repeated."""
    return {
        field.number << 3 | wire_type: (field.name, field.kind, field.label == "repeated")
        for field in SCHEMA.messages[message]
        for wire_type in _WIRE_TYPES[field.kind]
    }


_KEYS = {name: _keys(name) for name in ("ScoreRequest", "RouteRequest", "DoneRequest", "WatchRequest")}


(_REQUESTS,) = SCHEMA.messages["ScoreBatchRequest"]
_REQUESTS_KEY = _REQUESTS.number << 3 | 2


def read_request(name: str, data: bytes) -> dict[str, Any]:
    """The fields of a message: texts, numbers, bools, lists of texts, and of fixed numbers their packed bytes. Raises Problem 400, and 422 for a text
    that is too long."""
    return result_of(_read_in_steps(name, data))


def _read_in_steps(name: str, data: bytes) -> Generator[None, None, dict[str, Any]]:
    keys = _KEYS[name]
    found: dict[str, Any] = {}
    sizes: Counter[str] = Counter()
    try:
        for count, (key, value) in enumerate(read_fields(memoryview(data)), 1):
            if not count % STEP_FIELDS:
                yield
            if (known := keys.get(key)) is None:
                continue
            field, kind, is_repeated = known
            if kind == "string":
                sizes[field] += len(value)
                text = _text_of(field, value, sizes[field])
                if is_repeated:
                    found.setdefault(field, []).append(text)
                else:
                    found[field] = text
            elif is_repeated:
                found.setdefault(field, []).append(value)
            else:
                found[field] = bool(value) if kind == "bool" else value & 0xFFFFFFFF
    except MalformedError as error:
        raise Problem(400, f"the message is not a valid {name}: {error}") from None
    return found


def _text_of(field: str, value: memoryview, size: int) -> str:
    """`size`: of all that the message has of the field so far."""
    bytes_max = FIELD_BYTES_MAX.get(field, TEXT_BYTES_MAX)
    if size > bytes_max and field not in LONG:  # in JSON it may be six times as long
        raise Problem(422, f"{field}: {size} bytes; at most {bytes_max} are taken")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise Problem(400, f"{field}: should be UTF-8") from None


async def score_request_of(data: bytes, turn: asyncio.Lock) -> ScoreRequest:
    """Raises Problem 400 for what is no such message, 422 for wrong values. Other requests have their turn while a long one is read."""
    return await _request_of("ScoreRequest", data, decode_score_in_turns, turn)


async def route_request_of(data: bytes, turn: asyncio.Lock) -> RouteRequest:
    """The same of a request for a pick."""
    return await _request_of("RouteRequest", data, decode_route_in_turns, turn)


def split_batch(data: bytes) -> list[memoryview]:
    """The messages of the requests of a batch. Raises Problem 400 for what is no such message, 422 for too many."""
    try:
        found = (value for key, value in read_fields(memoryview(data)) if key == _REQUESTS_KEY)
        requests = list(islice(found, BATCH_REQUESTS_MAX + 1))
    except MalformedError as error:
        raise Problem(400, f"the message is not a valid ScoreBatchRequest: {error}") from None
    if len(requests) > BATCH_REQUESTS_MAX:
        raise Problem(422, f"requests: there are more than {BATCH_REQUESTS_MAX}; send at most so many at once")
    return requests


def done_request_of(data: bytes) -> DoneRequest:
    """Raises Problem 400 for what is no such message, 422 for a wrong value."""
    return decode_done(msgspec.json.encode({"id": "", **read_request("DoneRequest", data)}), JSON)


async def _request_of(name: str, data: bytes, decode: Callable[[bytes, str, asyncio.Lock], Awaitable[R]], turn: asyncio.Lock) -> R:
    fields = await one_by_one(_read_in_steps(name, data))
    apart: dict[str, Any] = {}
    if (pieces := fields.pop("token_ids", None)) is not None:
        apart["token_ids"] = _packed("token_ids", pieces, 4)
    if (pieces := fields.pop("block_hashes", None)) is not None:
        apart["block_hashes"] = _hashes(_packed("block_hashes", pieces, HASH_BYTES))
    for field in TEXTS & fields.keys():
        apart[field] = fields.pop(field)
    for field in IN_JSON & fields.keys():
        fields[field] = _raw(field, fields[field])
    # Protobuf leaves out an empty text.
    fields.setdefault("model", "")
    return structs.replace(await decode(msgspec.json.encode(fields), JSON, turn), **apart)


def _packed(field: str, pieces: Sequence[memoryview], size: int) -> bytes:
    if any(len(piece) % size for piece in pieces):
        raise Problem(400, f"{field}: should be numbers of {size} bytes each")
    return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


def _hashes(packed: bytes) -> list[int]:
    count = len(packed) // HASH_BYTES
    if count > BLOCK_HASHES_MAX:
        raise Problem(422, f"block_hashes: there are {count}; at most {BLOCK_HASHES_MAX} are taken")
    hashes = array("Q", packed)
    if sys.byteorder == "big":
        hashes.byteswap()
    return hashes.tolist()


def _raw(field: str, text: str) -> Raw:
    content = text.encode()
    try:
        _check_json(content)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Problem(400, f"{field}: should be JSON: {error}") from None
    return Raw(content)

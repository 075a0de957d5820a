"""Decodes the bodies of requests: the one place where bytes become a request. Every mistake gets a problem with a sentence."""

import asyncio
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar, cast

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, defstruct

from indexer.compiled import core
from indexer.core.block_keys import pack_tokens
from indexer.core.event_pieces import result_of
from indexer.errors import field_first
from indexer.http.negotiation import JSON, MSGPACK, join
from indexer.http.problems import Problem
from scorer_api.api.batch_split import WHOLE_BYTES_MAX, split_in_turns
from scorer_api.api.chat_fields import CHAT, json_field
from scorer_api.api.extra_keys_list import entries_in_steps, without_list
from scorer_api.api.hash_lists import take_hashes
from scorer_api.api.prompt import out_of_range
from scorer_api.api.route_schemas import DoneRequest, RouteRequest, RouteRequestMsgpack
from scorer_api.api.schemas import BATCH_REQUESTS_MAX, ScoreRequest, ScoreRequestMsgpack
from scorer_api.api.steps import one_by_one
from scorer_api.api.unknown_fields import misspelled
from scorer_api.routing.policies import POLICY_NAMES
from scorer_api.tokens.token_lists import LIST_BYTES_MIN, Taken, first_out_of_range, moved_bytes, take_list, take_tokens

T = TypeVar("T")
R = TypeVar("R", bound=ScoreRequest)
Decoders = Mapping[str, Callable[[bytes], T]]
"""Media type → decoder of one kind of body."""

# A larger body is scanned first: how large are its fields, apart from the tokens?
UNSCANNED_BYTES_MAX = 262_144
# The compiled core takes the tokens out of a body of this size in a millisecond; of a larger one in pieces.
REGULAR_BYTES_MAX = 1_048_576
# msgspec builds up to 80 times the bytes of a field that is neither tokens nor text. These limits leave room for the extra keys of 20,000 blocks, or
# for the names of 4,000 pods. A prompt is text and has none. Nor has a chat: JSON is passed on as it is; a local tokenizer has a limit of its own.
FIELD_BYTES_MAX = {"model": 262_144, "pods": 262_144, "lora_name": 262_144, "cache_salt": 262_144, "block_extra_keys": 2_097_152}
FIELD_BYTES_MAX |= {"tools": 1_048_576, "chat_template_kwargs": 65_536, "mm_processor_kwargs": 65_536, "reasoning_effort": 65_536}
FIELD_BYTES_MAX |= {"exclude": 262_144, "session_id": 262_144}
# Keys, and white space between them. What a key given twice has first is decoded too, in one step.
SPARE_BYTES_MAX = 262_144
TOKEN_LISTS = ("token_ids", "prompt")
"""Fields that a long list of tokens may be in."""


class Outline(Struct):
    """A request of whichever route, whose fields are still encoded. A key that is given twice counts as the last one of it says."""

    model: Raw = Raw()
    token_ids: Raw = Raw()
    pods: Raw = Raw()
    lora_name: Raw = Raw()
    cache_salt: Raw = Raw()
    block_extra_keys: Raw = Raw()
    limit: Raw = Raw()
    include_speculative: Raw = Raw()
    prompt: Raw = Raw()
    messages: Raw = Raw()
    tools: Raw = Raw()
    chat_template_kwargs: Raw = Raw()
    add_generation_prompt: Raw = Raw()
    continue_final_message: Raw = Raw()
    documents: Raw = Raw()
    reasoning_effort: Raw = Raw()
    chat_template: Raw = Raw()
    mm_processor_kwargs: Raw = Raw()
    block_hashes: Raw = Raw()
    session_id: Raw = Raw()
    exclude: Raw = Raw()
    output_tokens_expected: Raw = Raw()
    policy: Raw = Raw()
    # The largest fields of engines' APIs that are none of ours.
    response_format: Raw = Raw()
    structured_outputs: Raw = Raw()
    guided_json: Raw = Raw()
    logit_bias: Raw = Raw()
    metadata: Raw = Raw()
    input: Raw = Raw()


# One field for each request of a batch and one more, which shows that there are too many. msgspec skips what follows, and allocates nothing for it.
_PLACES = [f"request_{number}" for number in range(BATCH_REQUESTS_MAX + 1)]
_Requests = defstruct("_Requests", [(place, Raw | UnsetType, UNSET) for place in _PLACES], array_like=True)


class _Batch(Struct, forbid_unknown_fields=True):
    requests: _Requests  # type: ignore[valid-type]  # the type is made at run time


def _decoders(in_json: type[T], in_msgpack: type[T]) -> Decoders[T]:
    return {JSON: msgspec.json.Decoder(in_json).decode, MSGPACK: msgspec.msgpack.Decoder(in_msgpack).decode}


class _Kind(Struct, Generic[R], frozen=True):
    """One kind of request. `strict`: decodes a body of its own fields alone, in less time; `open`: passes over others."""

    own: frozenset[str]
    strict: Decoders[R]
    open: Decoders[R]


def _kind(in_json: type[R], in_msgpack: type[R]) -> _Kind[R]:
    return _Kind(frozenset(in_json.__struct_fields__), _decoders(in_json, in_msgpack), _decoders(_open(in_json), _open(in_msgpack)))


def _open(kind: type[R]) -> type[R]:
    """The same type, which passes over what it does not know."""
    return cast(type[R], defstruct(kind.__name__, [], bases=(kind,), frozen=True, forbid_unknown_fields=False))


_SCORE = _kind(ScoreRequest, ScoreRequestMsgpack)
_ROUTE = _kind(RouteRequest, RouteRequestMsgpack)
_NAMES: Decoders[dict[str, Raw]] = _decoders(dict[str, Raw], dict[str, Raw])
_DONE = _decoders(DoneRequest, DoneRequest)
_BATCH = _decoders(_Batch, _Batch)
_OUTLINE = _decoders(Outline, Outline)


def decode_score(body: bytes, media_type: str) -> ScoreRequest:
    """A request for scores, or for an explanation of them. Raises Problem 400 for what is not JSON or msgpack, 422 for another shape."""
    return _regular(body, media_type, _SCORE) or result_of(_steps(body, media_type, _SCORE))


def decode_route(body: bytes, media_type: str) -> RouteRequest:
    """A request for a pick. Raises Problem 400 for what is not JSON or msgpack, 422 for another shape."""
    return _regular(body, media_type, _ROUTE) or result_of(_steps(body, media_type, _ROUTE))


async def decode_score_in_turns(body: bytes, media_type: str, turn: asyncio.Lock) -> ScoreRequest:
    """The same as `decode_score`. Other requests have their turn while a long body is decoded. `turn`: held by one such body at a time."""
    return await _in_turns(body, media_type, _SCORE, turn)


async def decode_route_in_turns(body: bytes, media_type: str, turn: asyncio.Lock) -> RouteRequest:
    """The same as `decode_route`, in the same way."""
    return await _in_turns(body, media_type, _ROUTE, turn)


def decode_score_at_once(body: bytes, media_type: str) -> ScoreRequest | None:
    """The same as `decode_score`, of a body that takes about a millisecond at most; None for others, and for most that have no tokens."""
    return _at_once(body, media_type, _SCORE)


def decode_route_at_once(body: bytes, media_type: str) -> RouteRequest | None:
    """The same as `decode_route`, in the same way."""
    return _at_once(body, media_type, _ROUTE)


def _at_once(body: bytes, media_type: str, kind: _Kind[R]) -> R | None:
    regular = _regular(body, media_type, kind)
    if regular is not None or len(body) > UNSCANNED_BYTES_MAX or (media_type == JSON and core is not None):
        return regular
    simple = _simple(body, media_type, kind)
    return result_of(_steps(body, media_type, kind)) if simple is None or isinstance(simple.prompt, list) else simple


async def _in_turns(body: bytes, media_type: str, kind: _Kind[R], turn: asyncio.Lock) -> R:
    """The tokens are packed where they were many, or where the compiled core took them."""
    if (regular := _regular(body, media_type, kind)) is not None:
        return regular
    if len(body) < LIST_BYTES_MIN:
        return result_of(_steps(body, media_type, kind))
    async with turn:
        await asyncio.sleep(0)
        for field in TOKEN_LISTS:
            if (taken := await take_tokens(body, field, media_type)) is not None:
                return await _with_tokens(body, field, taken, media_type, kind)
        if media_type == JSON and (hashes := await take_hashes(body)) is not None:
            try:
                request = await one_by_one(_steps(hashes.body, media_type, kind))
            except Problem as problem:
                raise Problem(problem.status, moved_bytes(problem.detail, hashes.first, hashes.cut)) from None
            return msgspec.structs.replace(request, block_hashes=hashes.hashes)
        outline = _outline_of(body, media_type) or Outline()
        for field in TOKEN_LISTS:
            await asyncio.sleep(0)
            if (taken := await take_list(body, bytes(getattr(outline, field)), media_type)) is not None:
                return await _with_tokens(body, field, taken, media_type, kind, is_repeated=True)
        return await one_by_one(_steps(body, media_type, kind))


def _regular(body: bytes, media_type: str, kind: _Kind[R]) -> R | None:
    """The request of a body whose list of tokens the compiled core packs without an object for each. None where it does not, and wherever anything is
    wrong: decoding all of the body says what.
    """
    if core is None or len(body) > REGULAR_BYTES_MAX:
        return None
    take, empty = (core.take_json_tokens, b"[]") if media_type == JSON else (core.take_msgpack_tokens, b"\x90")
    for field in TOKEN_LISTS:
        name = field.encode()
        if (media_type == JSON and name not in body) or (taken := take(body, name)) is None:
            continue
        tokens, first, end = taken
        if len(body) - (end - first) > LIST_BYTES_MIN:
            return None
        rest = b"%b%b%b" % (body[:first], empty, body[end:])
        request = _simple(rest, media_type, kind) if len(body) <= UNSCANNED_BYTES_MAX else None
        if request is None:
            try:
                request = result_of(_steps(rest, media_type, kind, packs=False, is_scanned=len(body) > UNSCANNED_BYTES_MAX))
            except Problem:
                return None
        other = request.prompt if field == "token_ids" else request.token_ids
        return None if getattr(request, field) != [] or isinstance(other, list) else _with_packed(request, field, tokens)
    return None


def _simple(body: bytes, media_type: str, kind: _Kind[R]) -> R | None:
    """The request of a short body with nothing but its own fields, and no chat: what `_steps` makes of it, for less. None for others."""
    try:
        request = kind.strict[media_type](body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return request if all(getattr(request, name) is UNSET for name in CHAT) else None


async def _with_tokens(body: bytes, field: str, taken: Taken, media_type: str, kind: _Kind[R], *, is_repeated: bool = False) -> R:
    """The request whose long list of tokens was taken out of this field. `is_repeated`: whether the field may be there twice. Raises Problem."""
    await asyncio.sleep(0)
    try:
        request = await one_by_one(_steps(taken.body, media_type, kind, packs=False))
    except Problem as problem:
        # Which of two lists it is about is not told; and without another field's list another mistake may be the first.
        if (is_repeated and taken.left != 0) or not await _is_of_field(taken, body, field, media_type):
            return await one_by_one(_steps(body, media_type, kind))
        detail = moved_bytes(problem.detail, taken.first, taken.cut) if is_repeated else taken.moved(problem.detail, field)
        raise Problem(problem.status, detail) from None
    left = getattr(request, field)
    if not isinstance(left, list) or len(left) != taken.left:
        return await one_by_one(_steps(body, media_type, kind))  # it was the key of another object
    try:
        rest = pack_tokens(left)
    except OverflowError:
        position, token = first_out_of_range(left)
        raise out_of_range(*(taken.bad or (taken.count + position, token)), field) from None
    if taken.bad is not None:
        raise out_of_range(*taken.bad, field)
    request = _with_packed(request, field, await join([taken.tokens, rest]) if rest else taken.tokens)
    # Tokens under the other name as well are refused later.
    return request if field == "prompt" or not isinstance(request.prompt, list) else msgspec.structs.replace(request, prompt="")


async def _is_of_field(taken: Taken, body: bytes, field: str, media_type: str) -> bool:
    """Whether the list that was taken out of a body is this field's: others may have the same content, and a text that of a list. True for a body
    that cannot be read.
    """
    await asyncio.sleep(0)
    if (whole := _outline_of(body, media_type)) is None:
        return True
    await asyncio.sleep(0)
    rest = _outline_of(taken.body, media_type)
    return rest is not None and bytes(getattr(rest, field)) != bytes(getattr(whole, field))


def _with_packed(request: R, field: str, tokens: bytes) -> R:
    """The request with tokens of this field, packed, under `token_ids`; with both of them if it gives others there too, which is refused later."""
    if field == "prompt" and request.token_ids is None:
        return msgspec.structs.replace(request, token_ids=tokens, prompt=None)
    return msgspec.structs.replace(request, token_ids=tokens)


def _outline_of(body: bytes, media_type: str) -> Outline | None:
    """The fields of a request, still encoded; None for a body that is none."""
    try:
        return _OUTLINE[media_type](body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # decoding the whole body says what is wrong


def decode_done(body: bytes, media_type: str) -> DoneRequest:
    """Raises Problem 400 for what is not JSON or msgpack, 422 for another shape."""
    with _problems(media_type):
        return _DONE[media_type](body)


async def split_batch_in_turns(body: bytes, media_type: str, turn: asyncio.Lock) -> Sequence[bytes]:
    """The same as `split_batch`. Other requests have their turn while a large batch in JSON is split."""
    if media_type != JSON or len(body) <= WHOLE_BYTES_MAX:
        return split_batch(body, media_type)
    async with turn:
        requests = await split_in_turns(body)
        return split_batch(body, media_type) if requests is None or len(requests) > BATCH_REQUESTS_MAX else requests


def split_batch(body: bytes, media_type: str) -> list[bytes]:
    """The requests of a batch, still encoded: each is decoded by itself, so that a bad one fails alone.

    Raises Problem 400 for what is not JSON or msgpack, 422 for another shape or too many requests.
    """
    with _problems(media_type, lambda error: f"{error}; the body should be an object with requests, a list of score requests"):
        batch = _BATCH[media_type](body)
    requests = [bytes(raw) for place in _PLACES if (raw := getattr(batch.requests, place)) is not UNSET]
    if len(requests) > BATCH_REQUESTS_MAX:
        raise Problem(422, f"requests: there are more than {BATCH_REQUESTS_MAX}; send at most so many at once")
    return requests


@contextmanager
def _problems(media_type: str, explain: Callable[[msgspec.ValidationError], str] = lambda error: _explained(str(error))) -> Iterator[None]:
    """Turn msgspec's errors into problems. `explain`: the sentence about a wrong shape."""
    try:
        yield
    except msgspec.ValidationError as error:
        raise Problem(422, explain(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body is not valid {media_type}: {error}") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply") from None


def _explained(error: str) -> str:
    text = field_first(error)
    return f"{text}; it should be {', '.join(POLICY_NAMES[:-1])} or {POLICY_NAMES[-1]}" if text.startswith("policy: ") else text


def _steps(body: bytes, media_type: str, kind: _Kind[R], *, packs: bool = True, is_scanned: bool = False) -> Generator[None, None, R]:
    """Decode a request, passing over all of the body once in each step. `packs`: whether tokens under `prompt` are packed. `is_scanned`: whether a
    short body is scanned like a long one.
    """
    with _problems(media_type):
        extra_keys = b""
        if is_scanned or len(body) > UNSCANNED_BYTES_MAX:
            outline = _OUTLINE[media_type](body)
            yield
            _check_sizes(outline, len(body.strip()) if media_type == JSON else len(body))
            extra_keys = bytes(outline.block_extra_keys)
        request = yield from _decoded(body, extra_keys, media_type, kind)
        if packs and isinstance(request.prompt, list):
            request = _with_packed(request, "prompt", _packed_prompt(request.prompt))
        given = [name for name in CHAT if getattr(request, name) is not UNSET]
        if not given:
            return request
        chat: dict[str, Raw | UnsetType] = {}
        for name in given:
            yield
            chat[name] = json_field(name, getattr(request, name), media_type)
        return msgspec.structs.replace(request, **chat)


def _decoded(body: bytes, extra_keys: bytes, media_type: str, kind: _Kind[R]) -> Generator[None, None, R]:
    """`extra_keys`: the list of them, which is decoded apart if it is long."""
    if (without := without_list(body, extra_keys, media_type)) is not None:
        request = yield from _without_foreign(without, media_type, kind)
        if request.block_extra_keys == []:
            return msgspec.structs.replace(request, block_extra_keys=(yield from entries_in_steps(extra_keys, media_type)))
    return (yield from _without_foreign(body, media_type, kind))


def _without_foreign(body: bytes, media_type: str, kind: _Kind[R]) -> Generator[None, None, R]:
    """The request, without fields that are none of its own. Raises Problem 422 for a misspelled one, and what msgspec raises.

    What is in such fields is little: a large body was checked for that.
    """
    try:
        return kind.strict[media_type](body)
    except msgspec.ValidationError as error:
        if "unknown field" not in str(error):
            raise
    yield
    if (found := misspelled(_NAMES[media_type](body), kind.own)) is not None:
        raise Problem(422, f"{found[0]}: there is no such field; did you mean {found[1]}?")
    yield
    return kind.open[media_type](body)


def _packed_prompt(tokens: list[int]) -> bytes:
    try:
        return pack_tokens(tokens)
    except OverflowError:
        raise out_of_range(*first_out_of_range(tokens), "prompt") from None


def check_field_sizes(fields: Struct) -> None:
    """Raises Problem 422 for a field that exceeds its limit. `fields`: still encoded, as far as there are any."""
    for name, bytes_max in FIELD_BYTES_MAX.items():
        size = len(getattr(fields, name, b"") or b"")
        if size > bytes_max:
            raise Problem(422, f"{name}: {size} bytes; at most {bytes_max} are taken")


def _check_sizes(outline: Outline, body_bytes: int) -> None:
    """Raises Problem 422 for a field that exceeds its limit, and for much that is in none."""
    check_field_sizes(outline)
    spare = body_bytes - sum(len(getattr(outline, name)) for name in outline.__struct_fields__)
    if spare > SPARE_BYTES_MAX:
        what = "white space between fields, keys given twice, or unknown ones"
        raise Problem(422, f"{spare} bytes of the body are in no field: {what}; at most {SPARE_BYTES_MAX} are taken")

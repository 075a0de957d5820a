"""A score request, from its bytes to a prompt. Every mistake gets a sentence."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from indexer.core.block_keys import TOKEN_BYTES, TOKEN_MAX, fold_extra_keys, pack_tokens, read_extra_keys
from indexer.errors import field_first
from indexer.http.negotiation import JSON, MSGPACK
from indexer.http.problems import Problem
from scorer_api.api.schemas import ScoreRequest, ScoreRequestMsgpack
from scorer_api.index.view import Prompt
from scorer_api.tokens.wording import Wording

R = TypeVar("R", bound=ScoreRequest)
Decoders = Mapping[str, Callable[[bytes], R]]
"""A request's decoder by media type."""

EXTRA_KEYS_BYTES_MAX = 65_536
# A body that is no larger is decoded at once; of a larger one it is first looked how much of it is not tokens.
UNMEASURED_BYTES_MAX = 262_144
# Of what is not tokens msgspec builds up to 80 times its bytes. This is room for the extra keys of 20,000 blocks, or for the names of 4,000 pods.
FIELD_BYTES_MAX = {"model": 262_144, "pods": 262_144, "lora_name": 262_144, "cache_salt": 262_144, "block_extra_keys": 2_097_152}
# A chat is decoded only where a template of our own makes a prompt of it; a prompt is text alone.
FIELD_BYTES_MAX |= {"prompt": 8_388_608, "messages": 2_097_152, "tools": 1_048_576, "chat_template_kwargs": 65_536}
CHAT = {"messages": (b"[", "a list of messages"), "tools": (b"[", "a list of tools"), "chat_template_kwargs": (b"{", "an object")}
NULL = {JSON: b"null", MSGPACK: b"\xc0"}
FIELD_BYTES_MAX |= {"exclude": 262_144, "session_id": 262_144}


class _Outline(Struct):
    """A request whose fields are still encoded."""

    model: Raw = Raw()
    pods: Raw = Raw()
    lora_name: Raw = Raw()
    cache_salt: Raw = Raw()
    block_extra_keys: Raw = Raw()
    prompt: Raw = Raw()
    messages: Raw = Raw()
    tools: Raw = Raw()
    chat_template_kwargs: Raw = Raw()
    exclude: Raw = Raw()
    session_id: Raw = Raw()


_OUTLINE: dict[str, Callable[[bytes], _Outline]] = {JSON: msgspec.json.Decoder(_Outline).decode, MSGPACK: msgspec.msgpack.Decoder(_Outline).decode}


def decoders(in_json: type[R], in_msgpack: type[R]) -> Decoders[R]:
    """What decodes a kind of request."""
    return {JSON: msgspec.json.Decoder(in_json).decode, MSGPACK: msgspec.msgpack.Decoder(in_msgpack).decode}


SCORE = decoders(ScoreRequest, ScoreRequestMsgpack)


def decode(body: bytes, media_type: str) -> ScoreRequest:
    """What `decode_as` says, for a score."""
    return decode_as(body, media_type, SCORE)


def decode_as(body: bytes, media_type: str, kind: Decoders[R]) -> R:
    """Raises Problem 400 for what is not JSON or msgpack, 422 for what is, with other fields or types than it should have."""
    try:
        if len(body) > UNMEASURED_BYTES_MAX:
            _measure(_OUTLINE[media_type](body))
        request = kind[media_type](body)
        if request.messages is UNSET and request.tools is UNSET and request.chat_template_kwargs is UNSET:
            return request
        return msgspec.structs.replace(request, **{name: _in_json(name, getattr(request, name), media_type) for name in CHAT})
    except msgspec.ValidationError as error:
        raise Problem(422, field_first(str(error))) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Problem(400, f"the body is not valid {media_type}: {error}") from None
    except RecursionError:
        raise Problem(400, "the body is nested too deeply") from None


def _in_json(name: str, raw: Raw | UnsetType, media_type: str) -> Raw | UnsetType:
    """A part of a chat, in JSON. Raises Problem 422 for what is of another type, and what decoding it raises."""
    if raw is UNSET or (content := bytes(raw)) == NULL[media_type]:
        return UNSET
    if media_type != JSON:
        content = msgspec.json.encode(msgspec.msgpack.decode(content))
    content.decode()
    begin, expected = CHAT[name]
    if not content.startswith(begin):
        raise Problem(422, f"{name}: should be {expected}")
    return Raw(content)


def wording_of(request: ScoreRequest) -> Wording:
    """What is to be tokenized. Raises Problem 422 for what does not go together."""
    model = request.lora_name or request.model
    if request.messages is UNSET:
        for name in ("tools", "chat_template_kwargs", "add_generation_prompt"):
            if getattr(request, name) not in (None, UNSET):
                raise Problem(422, f"{name}: goes with messages only")
        return Wording(model, request.prompt)
    tools, kwargs = (None if raw is UNSET else bytes(raw) for raw in (request.tools, request.chat_template_kwargs))
    return Wording(model, None, bytes(request.messages), tools, kwargs, request.add_generation_prompt is not False)


def _measure(outline: _Outline) -> None:
    """Raises Problem 422 for a field that is larger than it ever needs to be."""
    for name, bytes_max in FIELD_BYTES_MAX.items():
        size = len(getattr(outline, name))
        if size > bytes_max:
            raise Problem(422, f"{name}: {size} bytes; at most {bytes_max} are taken")


def prompt_of(request: ScoreRequest, tokens: bytes | None = None) -> Prompt:
    """`tokens`: where they are not the request's own. Raises Problem 422 for values that no prompt can have."""
    if tokens is None:
        tokens = _packed_tokens(request.token_ids or [])
    return Prompt(request.model, tokens, request.lora_name or None, _extra_keys(request))


def _packed_tokens(token_ids: list[int] | bytes) -> bytes:
    if isinstance(token_ids, bytes):
        if len(token_ids) % TOKEN_BYTES:
            raise Problem(
                422, f"token_ids: a bin should have {TOKEN_BYTES} bytes a token (little-endian uint32); {len(token_ids)} is no multiple of that"
            )
        return token_ids
    try:
        return pack_tokens(token_ids)
    except OverflowError:
        position, token = next((i, t) for i, t in enumerate(token_ids) if not 0 <= t <= TOKEN_MAX)
        raise Problem(422, f"token_ids[{position}]: {token} should be from 0 to {TOKEN_MAX}") from None


def _extra_keys(request: ScoreRequest) -> dict[int, bytes] | None:
    """Block number → folded extra keys: the given ones, read like an engine's, and the cache salt in the first block."""
    own_keys: dict[int, list[Any]] = {}
    salt = request.cache_salt or None
    for position, (number, entry) in enumerate(request.block_extra_keys or ()):
        where = f"block_extra_keys[{position}]"
        if number in own_keys:
            raise Problem(422, f"{where}: block {number} is given twice; give each block once")
        own_keys[number], announced_salt = read_extra_keys(entry, request.lora_name or None, first=number == 0)
        if announced_salt is not None and salt is not None and announced_salt != salt:
            raise Problem(422, f"{where}: a text in block 0 is the cache salt, and it is not the one in cache_salt; give one of them")
        salt = salt or announced_salt
    if salt is not None:
        own_keys.setdefault(0, [])
    folded = {number: _folded(number, own, salt if number == 0 else None) for number, own in own_keys.items()}
    return {number: extra for number, extra in folded.items() if extra} or None


def _folded(number: int, own: list[Any], salt: str | None) -> bytes:
    try:
        if not all(_is_extra_key(item) or (isinstance(item, list) and all(map(_is_extra_key, item))) for item in own):
            raise TypeError("no extra key")
        folded = fold_extra_keys(own, salt)
    except (TypeError, ValueError, OverflowError):
        raise Problem(422, f"block_extra_keys: the keys of block {number} should be texts, bytes, 64-bit integers or lists of these") from None
    if len(folded) > EXTRA_KEYS_BYTES_MAX:
        raise Problem(422, f"block_extra_keys: the keys of block {number} have {len(folded)} bytes; at most {EXTRA_KEYS_BYTES_MAX} are taken")
    return folded


def _is_extra_key(item: Any) -> bool:
    return isinstance(item, str | bytes | int) and not isinstance(item, bool)

"""A client's body as a gateway passes it on: which API it is for, which model, and what of it is the prompt. It reads what it has to and no more.

path                            prompt
…/chat/completions              `messages`
…/completions                   `prompt`: text, tokens, or a list of either, of which the first one counts
…/embeddings                    `input`, in the same way, or `messages`
…/responses                     `input` with `instructions`, made a chat
…/messages                      `messages` with `system` (Anthropic), made a chat
none                            by the fields that the body has
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType, defstruct

from indexer.http.negotiation import JSON
from indexer.http.problems import Problem
from scorer_api.api.chat_fields import json_field
from scorer_api.api.client_chats import NoChatError, chat_of_anthropic, chat_of_responses
from scorer_api.api.decode import check_field_sizes
from scorer_api.api.route_schemas import OUTPUT_TOKENS_MAX
from scorer_api.api.schemas import TEXT_LENGTH_MAX, ScoreRequest

ByLoad = Literal["no_body", "other_type", "other_api", "no_prompt", "over_limit", "wrong_value", "no_tokens", "too_slow", "unknown_model"]
"""Why a pod is picked by load, and not by its prefix.

no_body         there is none, or the request has no model and there is one model only
other_type      the body is not JSON
other_api       the path is of none of the APIs above
no_prompt       the body has none that could be tokenized, such as a chat that continues a response which the engine remembers
over_limit      the body, or a chat that has to be read, is too long
wrong_value     a value is none that could be looked up; the engine may take it all the same
no_tokens       no engine and no tokenizer said what the tokens are
too_slow        that took too long
unknown_model   no pod is registered for the model, and `--pick-unknown-model by-load` is set
"""
BY_LOAD: tuple[ByLoad, ...] = get_args(ByLoad)

# A longer chat of the Responses or Anthropic API is not read: its values would fill the memory.
CONVERTED_BYTES_MAX = 2_097_152
# A rough length of a prompt whose tokens are unknown.
BYTES_PER_TOKEN = 4
_CHAT_FIELDS = ("messages", "tools", "chat_template_kwargs", "documents", "mm_processor_kwargs")
_OUTPUT_TOKENS = ("max_completion_tokens", "max_output_tokens", "max_tokens")
_FIELDS = (
    *("model", "prompt", "input", "instructions", "system", "previous_response_id", "conversation", "cache_salt", "session_id"),
    *("add_generation_prompt", "continue_final_message", "reasoning_effort", "chat_template"),
    *_CHAT_FIELDS,
    *_OUTPUT_TOKENS,
)
_Body = defstruct("_Body", [(name, Raw | UnsetType, UNSET) for name in _FIELDS])
_decode_body = msgspec.json.Decoder(_Body).decode
_decode_tokens = msgspec.json.Decoder(list[int]).decode


class _First(Struct, array_like=True):
    """The first item of a list; the others are passed over."""

    first: Raw


_decode_first = msgspec.json.Decoder(_First).decode


class ClientBody(Struct, frozen=True):
    """What a pick goes by.

    `model`: None where the body names none. `request`: of the prompt, None where it is picked by load for this reason. `tokens`: of the prompt, in
    JSON, where it consists of these. `session_id`, `output_tokens`: None where the body does not say. `size`: in bytes.
    """

    model: str | None
    size: int
    request: ScoreRequest | None = None
    tokens: bytes | None = None
    by_load: ByLoad | None = None
    session_id: str | None = None
    output_tokens: int | None = None

    @property
    def tokens_estimate(self) -> int:
        """About how long the prompt is."""
        return self.size // BYTES_PER_TOKEN


class _NoPromptError(Exception):
    """The body has no prompt that could be looked up."""

    def __init__(self, by_load: ByLoad) -> None:
        super().__init__(by_load)
        self.by_load = by_load


def read_client_body(body: bytes, path: str, *, is_anthropic: bool = False) -> ClientBody:
    """`path`: what stands behind the pick's own, which is the engine's path. `is_anthropic`: whether the client says so in a header.

    Raises Problem 400 for what is not a JSON object, or a model that is no text.
    """
    try:
        fields = _decode_body(body)
        model = _text(fields, "model")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(400, f"the body is no JSON object that names a model: {error}") from None
    found = ClientBody(model, len(body), session_id=_or_none(_session, fields), output_tokens=_output_tokens(fields))
    try:
        request, tokens = _READERS[_api(path, fields, is_anthropic=is_anthropic)](fields, model or "")
    except _NoPromptError as error:
        return msgspec.structs.replace(found, by_load=error.by_load)
    except (Problem, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return msgspec.structs.replace(found, by_load="wrong_value")
    return msgspec.structs.replace(found, request=request, tokens=tokens)


Api = Literal["chat", "completion", "embedding", "response", "anthropic", "other"]
_PATHS: Mapping[str, Api] = {
    "chat/completions": "chat",
    "completions": "completion",
    "embeddings": "embedding",
    "responses": "response",
    "messages": "anthropic",
}
_Read = tuple[ScoreRequest, bytes | None]


def _api(path: str, fields: Any, *, is_anthropic: bool) -> Api:
    if path := path.strip("/"):
        return next((api for end, api in _PATHS.items() if path == end or path.endswith(f"/{end}")), "other")
    if fields.messages is not UNSET:
        return "anthropic" if is_anthropic or fields.system is not UNSET else "chat"
    if fields.prompt is not UNSET:
        return "completion"
    if fields.input is UNSET:
        return "other"
    is_response = any(getattr(fields, name) is not UNSET for name in ("instructions", "previous_response_id", "conversation", "max_output_tokens"))
    return "response" if is_response or _starts(fields.input, b"[{") else "embedding"


def _chat(fields: Any, model: str) -> _Read:
    if fields.messages is UNSET:
        raise _NoPromptError("no_prompt")
    check_field_sizes(fields)
    chat = {name: json_field(name, getattr(fields, name), JSON) for name in _CHAT_FIELDS if getattr(fields, name) is not UNSET}
    request = ScoreRequest(
        model,
        cache_salt=_text(fields, "cache_salt", TEXT_LENGTH_MAX),
        add_generation_prompt=_flag(fields, "add_generation_prompt"),
        continue_final_message=_flag(fields, "continue_final_message"),
        reasoning_effort=_text(fields, "reasoning_effort", TEXT_LENGTH_MAX),
        chat_template=_text(fields, "chat_template"),
    )
    request = msgspec.structs.replace(request, **chat)
    return request, None


def _completion(fields: Any, model: str) -> _Read:
    return _of_prompt(fields, fields.prompt, model)


def _embedding(fields: Any, model: str) -> _Read:
    return _chat(fields, model) if fields.input is UNSET else _of_prompt(fields, fields.input, model)


def _of_prompt(fields: Any, prompt: Raw | UnsetType, model: str) -> _Read:
    """A text, tokens, or a list of either: the first one stands for all of them."""
    if prompt is UNSET:
        raise _NoPromptError("no_prompt")
    content = bytes(prompt).strip()
    if _starts(content, b'["') or _starts(content, b"[["):
        first = _decode_first(content).first
        content = bytes(first).strip()
    salt = _text(fields, "cache_salt", TEXT_LENGTH_MAX)
    if content.startswith(b'"'):
        return ScoreRequest(model, prompt=msgspec.json.decode(content, type=str), cache_salt=salt), None
    if content.startswith(b"["):
        return ScoreRequest(model, token_ids=[], cache_salt=salt), content
    raise _NoPromptError("no_prompt")


def _response(fields: Any, model: str) -> _Read:
    """A chat that the engine remembers the beginning of cannot be looked up here."""
    remembered = (fields.previous_response_id, fields.conversation)
    if fields.input is UNSET or any(field is not UNSET and bytes(field) != b"null" for field in remembered):
        raise _NoPromptError("no_prompt")
    return _converted(chat_of_responses, model, fields.input, fields.instructions, fields.tools), None


def _anthropic(fields: Any, model: str) -> _Read:
    if fields.messages is UNSET:
        raise _NoPromptError("no_prompt")
    return _converted(chat_of_anthropic, model, fields.messages, fields.system, fields.tools), None


def _converted(convert: Callable[..., tuple[list[Any], list[Any] | None]], model: str, *fields: Raw | UnsetType) -> ScoreRequest:
    if sum(0 if field is UNSET else len(bytes(field)) for field in fields) > CONVERTED_BYTES_MAX:
        raise _NoPromptError("over_limit")
    try:
        messages, tools = convert(*(None if field is UNSET else msgspec.json.decode(field) for field in fields))
    except NoChatError:
        raise _NoPromptError("no_prompt") from None
    encoded_tools = UNSET if tools is None else Raw(msgspec.json.encode(tools))
    return ScoreRequest(model, messages=Raw(msgspec.json.encode(messages)), tools=encoded_tools)


def _other(fields: Any, model: str) -> _Read:
    raise _NoPromptError("other_api")


_READERS: Mapping[Api, Callable[[Any, str], _Read]] = {
    "chat": _chat,
    "completion": _completion,
    "embedding": _embedding,
    "response": _response,
    "anthropic": _anthropic,
    "other": _other,
}


def tokens_of(content: bytes) -> list[int]:
    """The tokens of a short list in JSON. Raises Problem 422."""
    try:
        return _decode_tokens(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Problem(422, f"prompt: {error}") from None


def with_model(body: bytes, model: str) -> bytes:
    """A body that could be read, with another model. Raises what msgspec raises for one that cannot be read."""
    fields = msgspec.json.decode(body, type=dict[str, Raw])
    fields["model"] = Raw(msgspec.json.encode(model))
    return msgspec.json.encode(fields)


def _starts(field: Raw | bytes, begin: bytes) -> bool:
    """Whether a value begins with these two characters, white space aside."""
    content = bytes(field).lstrip()
    return content[:1] == begin[:1] and content[1:].lstrip()[:1] == begin[1:]


def _text(fields: Any, name: str, length_max: int | None = None) -> str | None:
    """Raises what msgspec raises, or Problem 422."""
    field = getattr(fields, name)
    text = None if field is UNSET else msgspec.json.decode(field, type=str | None)
    if text is not None and length_max is not None and len(text) > length_max:
        raise Problem(422, f"{name}: more than {length_max} characters")
    return text


def _flag(fields: Any, name: str) -> bool | None:
    field = getattr(fields, name)
    return None if field is UNSET else msgspec.json.decode(field, type=bool | None)


def _session(fields: Any) -> str | None:
    return _text(fields, "session_id", TEXT_LENGTH_MAX)


def _output_tokens(fields: Any) -> int | None:
    for name in _OUTPUT_TOKENS:
        field = getattr(fields, name)
        tokens: int | None = None if field is UNSET else _or_none(lambda field: msgspec.json.decode(field, type=int | None), field)
        if tokens is not None:
            return min(max(tokens, 0), OUTPUT_TOKENS_MAX)
    return None


def _or_none(read: Callable[[Any], Any], value: Any) -> Any:
    """What `read` finds, None where that is of another type: it only helps."""
    try:
        return read(value)
    except (Problem, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None

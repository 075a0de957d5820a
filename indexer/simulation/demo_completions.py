"""The demo engine's completions and chat completions, in the form of OpenAI's API.

An answer tells which pod it is from, and how much of the prompt the pod had in its cache, in the text and in `usage`.
"""

import time
from collections.abc import Iterator
from typing import Any, Literal

import msgspec
from msgspec import Struct

from indexer.simulation.demo_tokenizer import text_of, tokenize

Kind = Literal["chat", "text"]
KINDS: dict[str, Kind] = {"/v1/chat/completions": "chat", "/v1/completions": "text"}
"""Path → kind."""
ANSWER_WORDS_MAX = 64
_OBJECTS = {"chat": ("chat.completion", "chat.completion.chunk"), "text": ("text_completion", "text_completion")}


class _StreamOptions(Struct):
    include_usage: bool = False


class CompletionRequest(Struct):
    """What is read of a request; engines' other fields are passed over. `prompt`: text, tokens, or a list of one of either."""

    model: str
    prompt: Any = None
    messages: list[dict[str, Any]] = []
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stream: bool = False
    stream_options: _StreamOptions | None = None

    def tokens(self, kind: Kind) -> list[int]:
        """The prompt's tokens. Raises msgspec.ValidationError for a prompt of another shape."""
        if kind == "chat":
            return tokenize(text_of(self.messages))
        prompt = self.prompt[0] if isinstance(self.prompt, list) and len(self.prompt) == 1 and not isinstance(self.prompt[0], int) else self.prompt
        return tokenize(prompt) if isinstance(prompt, str) else msgspec.convert(prompt, list[int])

    @property
    def answer_tokens_max(self) -> int:
        """How many words the answer may have, one or more."""
        given = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return max(1, min(ANSWER_WORDS_MAX, ANSWER_WORDS_MAX if given is None else given))


class Completion(Struct):
    """`words`: of the answer, `is_cut`: whether it has more of them than were asked for. The others: numbers of tokens."""

    id: str
    model: str
    kind: Kind
    words: list[str]
    is_cut: bool
    prompt_tokens: int
    cached_tokens: int


def answer_words(pod: str, prompt_tokens: int, cached_tokens: int) -> list[str]:
    """What the demo engine answers to everything."""
    return f"This is {pod}, which had {cached_tokens} of {prompt_tokens} tokens in its cache.".split()


def complete_body(completion: Completion) -> bytes:
    """The answer in one piece."""
    text = " ".join(completion.words)
    choice = {"message": {"role": "assistant", "content": text}} if completion.kind == "chat" else {"text": text}
    return msgspec.json.encode({**_head(completion, 0), "choices": [_choice(choice, _reason(completion))], "usage": _usage(completion)})


def events(completion: Completion, *, with_usage: bool) -> Iterator[bytes]:
    """The answer as server-sent events, one for each word."""
    head = _head(completion, 1)
    for number, word in enumerate(completion.words):
        text = f" {word}" if number else word
        delta: dict[str, Any] = {"content": text} if number else {"role": "assistant", "content": text}
        yield _event({**head, "choices": [_choice({"delta": delta} if completion.kind == "chat" else {"text": text})]})
    yield _event({**head, "choices": [_choice({"delta": {}} if completion.kind == "chat" else {"text": ""}, _reason(completion))]})
    if with_usage:
        yield _event({**head, "choices": [], "usage": _usage(completion)})
    yield b"data: [DONE]\n\n"


def _head(completion: Completion, form: int) -> dict[str, Any]:
    return {"id": completion.id, "object": _OBJECTS[completion.kind][form], "created": int(time.time()), "model": completion.model}


def _choice(content: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": 0, **content, "logprobs": None, "finish_reason": reason}


def _reason(completion: Completion) -> str:
    return "length" if completion.is_cut else "stop"


def _usage(completion: Completion) -> dict[str, Any]:
    answered = len(completion.words)
    return {
        "prompt_tokens": completion.prompt_tokens,
        "completion_tokens": answered,
        "total_tokens": completion.prompt_tokens + answered,
        "prompt_tokens_details": {"cached_tokens": completion.cached_tokens},
    }


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"


def models_body(model: str) -> bytes:
    """The answer of `/v1/models`."""
    served = {"id": model, "object": "model", "created": 0, "owned_by": "kv-indexer", "root": model}
    return msgspec.json.encode({"object": "list", "data": [served]})


def error_body(status: int, message: str) -> bytes:
    """An error as vLLM says it."""
    kind = "NotFoundError" if status == 404 else "BadRequestError"
    return msgspec.json.encode({"error": {"message": message, "type": kind, "param": None, "code": status}})

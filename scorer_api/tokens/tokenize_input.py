"""A prompt or a chat that is to be tokenized."""

from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Raw, Struct

DIGEST_BYTES = 16


class TokenizeInput(Struct, frozen=True):
    """`model`: the name that the engine serves it by, an adapter's where the request names one. Either `prompt`, or `messages` with `tools` and
    `chat_template_kwargs`, each in JSON as the client sent it, None where it sent none.
    """

    model: str
    prompt: str | None = None
    messages: bytes | None = None
    tools: bytes | None = None
    chat_template_kwargs: bytes | None = None
    add_generation_prompt: bool = True

    @property
    def source(self) -> str:
        """The request field that it came from."""
        return "prompt" if self.messages is None else "messages"

    def request(self) -> bytes:
        """The body of `POST /tokenize` in vLLM's form; SGLang accepts the one of a prompt.

        Defaults are written out. They are vLLM's own for a completion and for a chat, whose template contains the special tokens.
        """
        if self.messages is None:
            return msgspec.json.encode({"model": self.model, "prompt": self.prompt, "add_special_tokens": True})
        body: dict[str, Any] = {
            "model": self.model,
            "messages": Raw(self.messages),
            "add_generation_prompt": self.add_generation_prompt,
            "add_special_tokens": False,
        }
        if self.tools is not None:
            body["tools"] = Raw(self.tools)
        if self.chat_template_kwargs is not None:
            body["chat_template_kwargs"] = Raw(self.chat_template_kwargs)
        return msgspec.json.encode(body)


def digest(request: bytes) -> bytes:
    """A key for a request body: equal bodies have equal tokens."""
    return blake2b(request, digest_size=DIGEST_BYTES).digest()

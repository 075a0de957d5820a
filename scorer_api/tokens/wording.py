"""What is to be tokenized: a prompt or a chat, as an engine is asked for its tokens."""

from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Raw, Struct

DIGEST_BYTES = 16


class Wording(Struct, frozen=True):
    """`model`: the name by which the engine knows it, that of the adapter where there is one. Either `prompt`, or `messages` with what belongs to
    them, each in JSON as the client sent it, None where it did not.
    """

    model: str
    prompt: str | None = None
    messages: bytes | None = None
    tools: bytes | None = None
    chat_template_kwargs: bytes | None = None
    add_generation_prompt: bool = True

    @property
    def source(self) -> str:
        """The field of a request that it came from."""
        return "prompt" if self.messages is None else "messages"

    def request(self) -> bytes:
        """The body of `POST /tokenize`, as vLLM has it; SGLang takes the one of a prompt. Defaults are written out: they are what vLLM does with a
        completion and with a chat, whose template has the special tokens in it.
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
    """Stands for a request: equal ones have equal tokens."""
    return blake2b(request, digest_size=DIGEST_BYTES).digest()

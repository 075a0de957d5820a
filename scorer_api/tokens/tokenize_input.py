"""A prompt or a chat that is to be tokenized."""

from hashlib import blake2b
from typing import Any

import msgspec
from msgspec import Raw, Struct

from scorer_api.index.prompt import Placeholder

DIGEST_BYTES = 16
# Parts of a message other than text, as they are in JSON.
PLACEHOLDER_BYTES = 128
MEDIA = tuple(f'"{kind}"'.encode() for kind in ("image_url", "input_image", "image_embeds", "image_pil", "video_url", "audio_url", "input_audio"))

_decode_kwargs = msgspec.json.Decoder(dict[str, Raw]).decode


class TokenizedInput(Struct, frozen=True):
    """`tokens`: as little-endian uint32. `media`: the images and others in them, as far as the engine says so."""

    tokens: bytes
    media: tuple[Placeholder, ...] = ()

    def __len__(self) -> int:
        """Its size in memory, in bytes."""
        return len(self.tokens) + sum(PLACEHOLDER_BYTES + len(each.identifier) for each in self.media)


class TokenizeInput(Struct, frozen=True):
    """`model`: the name that the engine serves it by, an adapter's where the request names one. Either `prompt`, or `messages` with what else of a
    chat decides its tokens: `messages`, `tools`, `documents` and the keyword arguments each in JSON as the client sent it, None where it sent none.
    """

    model: str
    prompt: str | None = None
    messages: bytes | None = None
    tools: bytes | None = None
    chat_template_kwargs: bytes | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    documents: bytes | None = None
    reasoning_effort: str | None = None
    chat_template: str | None = None
    mm_processor_kwargs: bytes | None = None

    @property
    def source(self) -> str:
        """The request field that it came from."""
        return "prompt" if self.messages is None else "messages"

    @property
    def has_media(self) -> bool:
        """Whether the chat has parts other than text; it may say so of one that mentions them."""
        return self.messages is not None and any(kind in self.messages for kind in MEDIA)

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
        for name in ("tools", "documents", "mm_processor_kwargs"):
            if (given := getattr(self, name)) is not None:
                body[name] = Raw(given)
        for name in ("reasoning_effort", "chat_template"):
            if (text := getattr(self, name)) is not None:
                body[name] = text
        if self.continue_final_message:
            body["continue_final_message"] = True
        if (kwargs := self.template_kwargs()) is not None:
            body["chat_template_kwargs"] = Raw(kwargs)
        return msgspec.json.encode(body)

    def template_kwargs(self) -> bytes | None:
        """The keyword arguments of the chat template, in JSON: vLLM's chat completions add the documents and the effort, its `/tokenize` does not."""
        if self.documents is None and self.reasoning_effort is None:
            return self.chat_template_kwargs
        kwargs: dict[str, Any] = {} if self.chat_template_kwargs is None else _decode_kwargs(self.chat_template_kwargs)
        if self.documents is not None:
            kwargs["documents"] = Raw(self.documents)
        if self.reasoning_effort is not None:
            kwargs["reasoning_effort"] = self.reasoning_effort
        return msgspec.json.encode(kwargs)


def digest(request: bytes) -> bytes:
    """A key for a request body: equal bodies have equal tokens."""
    return blake2b(request, digest_size=DIGEST_BYTES).digest()

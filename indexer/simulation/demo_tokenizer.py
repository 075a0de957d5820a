"""The demo engine's tokenizer, which is easy to follow by hand: one token for each word.

The token of a number is the number itself, since the demo's prompts are numbers; the token of any other word comes from a digest of it. A chat is the
words of its messages.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Any

NUMBER_MAX = 10**6
# The tokens of words start above those of numbers.
WORDS_FROM = 2 * 10**6
WORDS = 10**6


def tokenize(text: str) -> list[int]:
    """One token for each word."""
    return [int(word) if word.isascii() and word.isdigit() and int(word) < NUMBER_MAX else _token(word) for word in text.split()]


def text_of(messages: Iterable[Mapping[str, Any]]) -> str:
    """The words of a chat."""
    return " ".join(str(message.get("content", "")) for message in messages)


def _token(word: str) -> int:
    return WORDS_FROM + int.from_bytes(blake2b(word.encode(errors="replace"), digest_size=8).digest(), "big") % WORDS

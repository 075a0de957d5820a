"""The prompt of a request, and what else belongs to it, from the command line and from files."""

import argparse
import sys
from pathlib import Path
from typing import cast

import msgspec

from indexer.core.block_keys import pack_tokens
from indexer.errors import SettingError
from scorer_api.client import Asked

CHAT = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt")


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """Declare the prompt and the other fields of a request."""
    parser.add_argument("--model", required=True, help="the model that the prompt is for")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokens-file", metavar="FILE", help="the prompt's tokens: a JSON list or white-space separated ints; - for standard input")
    source.add_argument("--prompt", metavar="TEXT", help="the prompt as text, which the service turns into tokens")
    source.add_argument(
        "--messages-file", metavar="FILE", help=f"a chat in JSON: a list of messages, or an object with {', '.join(CHAT)}; - for standard input"
    )
    parser.add_argument("--lora-name", help="the LoRA adapter that the prompt is for")
    parser.add_argument("--cache-salt", help="the cache salt of the request")
    parser.add_argument("--limit", type=int, help="list this many pods at most")


def prompt_of(parsed: argparse.Namespace) -> tuple[bytes | None, Asked]:
    """The tokens, packed, and the other fields of the request. Raises SettingError for a file that cannot be used."""
    asked: Asked = {"lora_name": parsed.lora_name, "cache_salt": parsed.cache_salt, "limit": parsed.limit, "prompt": parsed.prompt}
    if parsed.messages_file is not None:
        asked |= read_chat(parsed.messages_file)
    return None if parsed.tokens_file is None else read_tokens(parsed.tokens_file), asked


def read_tokens(file: str) -> bytes:
    """A file's tokens, packed. Raises SettingError."""
    text = _read(file, "--tokens-file")
    try:
        tokens = msgspec.json.decode(text, type=list[int]) if text.lstrip().startswith("[") else [int(word) for word in text.split()]
        return pack_tokens(tokens)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise SettingError("--tokens-file", file, f"should hold a JSON list or white-space separated ints from 0 to 2^32 - 1: {error}") from None


def read_chat(file: str) -> Asked:
    """A file's messages, and what else belongs to the chat. Raises SettingError."""
    allowed = f"should hold JSON: a list of messages, or an object with {', '.join(CHAT)}"
    try:
        found = msgspec.json.decode(_read(file, "--messages-file"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise SettingError("--messages-file", file, f"{allowed}: {error}") from None
    chat = {"messages": found} if isinstance(found, list) else found
    if not isinstance(chat, dict) or not isinstance(chat.get("messages"), list) or not chat.keys() <= set(CHAT):
        raise SettingError("--messages-file", file, allowed)
    return cast(Asked, chat)


def _read(file: str, flag: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(flag, file, f"cannot be read: {error}") from None

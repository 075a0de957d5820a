"""What the commands that ask a running service have in common: where it is, what is asked, and how a failure is told."""

import argparse
import ssl
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, cast

import msgspec

from indexer.config.auth_tokens import read_tokens as read_bearer_tokens
from indexer.core.block_keys import pack_tokens
from indexer.errors import SettingError
from indexer.masking import masked
from scorer_api.client import Asked, Client, ClientError, NoAnswerError, ProblemError

TIMEOUT_S = 30.0
CHAT = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt")
HINTS = {401: ", see --token-file"}


class Connection(NamedTuple):
    """How to speak to the service."""

    url: str
    token: str | None
    verify: bool | ssl.SSLContext


def add_service(parser: argparse.ArgumentParser) -> None:
    """Where the service is."""
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the service is (default: %(default)s)")
    parser.add_argument("--token-file", metavar="FILE", help="the service's bearer token, if it wants one: the first in this file")
    parser.add_argument("--ca-file", metavar="FILE", help="PEM file of the authority that an https service's certificate is to be from")


def connection_of(parsed: argparse.Namespace) -> Connection:
    """Raises SettingError for a file that cannot be used."""
    token = None if parsed.token_file is None else read_bearer_tokens(parsed.token_file, "--token-file")[0]
    return Connection(parsed.url, token, True if parsed.ca_file is None else trusting(parsed.ca_file))


def trusting(ca_file: str) -> ssl.SSLContext:
    """For talking to services whose certificate this file vouches for. Raises SettingError."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        why = f"cannot be read: {error.strerror}" if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) else "is no PEM file"
        raise SettingError("--ca-file", ca_file, f"{why}; it should hold certificates in PEM form") from None


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """The prompt, and what else a request says."""
    parser.add_argument("--model", required=True, help="the model that the prompt is for")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--tokens-file", metavar="FILE", help="the prompt's tokens: a JSON list or white-space separated ints; - for standard input")
    source.add_argument("--prompt", metavar="TEXT", help="the prompt as text, which the service turns into tokens")
    source.add_argument(
        "--messages-file", metavar="FILE", help=f"a chat in JSON: a list of messages, or an object with {', '.join(CHAT)}; - for standard input"
    )
    parser.add_argument("--lora-name", help="the LoRA adapter that the prompt is for")
    parser.add_argument("--cache-salt", help="the cache salt of the request")
    parser.add_argument("--limit", type=int, help="only the first so many pods")


def prompt_of(parsed: argparse.Namespace) -> tuple[bytes | None, Asked]:
    """The tokens, packed, and the rest of the request. Raises SettingError for a file that cannot be used."""
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


def ask(parsed: argparse.Namespace, question: Callable[[Client], str]) -> int:
    """Print what comes of a question. Returns the exit code. Raises SettingError for words or files that cannot be used."""
    connection = connection_of(parsed)
    try:
        client = Client(connection.url, token=connection.token, verify=connection.verify, timeout_s=TIMEOUT_S)
    except ValueError as error:
        raise SettingError("--url", connection.url, str(error).removeprefix("url: ")) from None
    with client:
        try:
            print(question(client))  # noqa: T201 - the command's output
        except ClientError as error:
            print(f"kv-indexer: {told(error, connection.url)}", file=sys.stderr)  # noqa: T201 - the command's one line of error
            return 1
    return 0


def told(error: ClientError, url: str) -> str:
    """A failure in one line, as the user named the service."""
    if isinstance(error, ProblemError):
        return error.detail + HINTS.get(error.status, "")
    if isinstance(error, NoAnswerError):
        return f"no answer from {masked(url)}: {masked(error.why)}"
    return masked(str(error))


def printable(text: str) -> str:
    """A text from elsewhere without what would move a terminal's cursor, or worse."""
    return "".join(character if character.isprintable() else "\ufffd" for character in text)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as what is in them."""
    lines = [heads, *([printable(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)

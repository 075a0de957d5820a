"""`kv-indexer score`: ask a running service, print a table."""

import argparse
import ssl
import sys
from pathlib import Path
from typing import Any

import httpx
import msgspec

from indexer.errors import SettingError
from indexer.http.negotiation import MSGPACK
from indexer.http.problems import ProblemDetails
from indexer.masking import masked
from indexer.tokens import read_tokens as read_bearer_tokens
from indexer.wire import pack_tokens
from scorer_api.schemas import ScoreAnswer

TIMEOUT_S = 30.0
CHAT = ("messages", "tools", "chat_template_kwargs", "add_generation_prompt")
HINTS = {401: ", see --token-file"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags."""
    parser.add_argument("--url", default="http://127.0.0.1:8080", help="where the service is (default: %(default)s)")
    parser.add_argument("--model", required=True)
    prompt = parser.add_mutually_exclusive_group(required=True)
    prompt.add_argument("--tokens-file", metavar="FILE", help="the prompt's tokens: a JSON list or white-space separated ints; - for standard input")
    prompt.add_argument("--prompt", metavar="TEXT", help="the prompt as text; an engine of the model tokenizes it, or the service does")
    prompt.add_argument(
        "--messages-file", metavar="FILE", help=f"the prompt as a chat, in JSON: a list of messages, or an object with {', '.join(CHAT)}"
    )
    parser.add_argument("--token-file", metavar="FILE", help="the service's bearer token, if it wants one: the first in this file")
    parser.add_argument("--ca-file", metavar="FILE", help="PEM file of the authority that an https service's certificate is to be from")
    parser.add_argument("--lora-name")
    parser.add_argument("--cache-salt")
    parser.add_argument("--limit", type=int)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit code. Raises SettingError for a file that cannot be used."""
    asked = {
        "model": parsed.model,
        **source_of(parsed),
        "lora_name": parsed.lora_name,
        "cache_salt": parsed.cache_salt,
        "limit": parsed.limit,
    }
    headers = {"Content-Type": MSGPACK}
    if parsed.token_file is not None:
        headers["Authorization"] = f"Bearer {read_bearer_tokens(parsed.token_file, '--token-file')[0]}"
    url, verify = masked(parsed.url), True if parsed.ca_file is None else trusting(parsed.ca_file)
    try:
        response = httpx.post(
            parsed.url.rstrip("/") + "/v1/score", content=msgspec.msgpack.encode(asked), headers=headers, timeout=TIMEOUT_S, verify=verify
        )
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _fail(f"no answer from {url}: {masked(str(error))}")
    try:
        if response.status_code != 200:
            return _fail(msgspec.json.decode(response.content, type=ProblemDetails).detail + HINTS.get(response.status_code, ""))
        answer = msgspec.msgpack.decode(response.content, type=ScoreAnswer)
    except msgspec.MsgspecError:
        return _fail(f"{url} answered {response.status_code} with something that no kv-indexer says; is it the service's address?")
    print(table(answer))  # noqa: T201 - the command's output
    return 0


def _fail(why: str) -> int:
    print(f"kv-indexer: {why}", file=sys.stderr)  # noqa: T201 - the command's one line of error
    return 1


def trusting(ca_file: str) -> ssl.SSLContext:
    """For talking to services whose certificate this file vouches for. Raises SettingError."""
    try:
        return ssl.create_default_context(cafile=ca_file)
    except (OSError, ssl.SSLError) as error:
        why = f"cannot be read: {error.strerror}" if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError) else "is no PEM file"
        raise SettingError("--ca-file", ca_file, f"{why}; it should hold certificates in PEM form") from None


def source_of(parsed: argparse.Namespace) -> dict[str, Any]:
    """The fields of the request that say what the prompt is. Raises SettingError."""
    if parsed.prompt is not None:
        return {"prompt": parsed.prompt}
    return {"token_ids": read_tokens(parsed.tokens_file)} if parsed.messages_file is None else read_chat(parsed.messages_file)


def read_chat(file: str) -> dict[str, Any]:
    """A file's messages, and what else belongs to the chat. Raises SettingError."""
    allowed = f"should hold JSON: a list of messages, or an object with {', '.join(CHAT)}"
    try:
        found = msgspec.json.decode(_text_of(file, "--messages-file"))
    except (msgspec.DecodeError, RecursionError) as error:
        raise SettingError("--messages-file", file, f"{allowed}: {error}") from None
    chat = {"messages": found} if isinstance(found, list) else found
    if not isinstance(chat, dict) or not isinstance(chat.get("messages"), list) or not chat.keys() <= set(CHAT):
        raise SettingError("--messages-file", file, allowed)
    return chat


def _text_of(file: str, flag: str) -> str:
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(flag, file, f"cannot be read: {error}") from None


def read_tokens(file: str) -> bytes:
    """A file's tokens, packed. Raises SettingError."""
    text = _text_of(file, "--tokens-file")
    try:
        tokens = msgspec.json.decode(text, type=list[int]) if text.lstrip().startswith("[") else [int(word) for word in text.split()]
        return pack_tokens(tokens)
    except (msgspec.DecodeError, ValueError, OverflowError) as error:
        raise SettingError("--tokens-file", file, f"should hold a JSON list or white-space separated ints from 0 to 2^32 - 1: {error}") from None


def table(answer: ScoreAnswer) -> str:
    """The answer as people read it."""
    heads = ("POD", "SCORE", "TOKENS", "BLOCKS", "TIERS", "RANK", "TRUST")
    rows = [
        (
            pod.pod,
            f"{pod.score:.4f}",
            str(pod.matched_tokens),
            f"{pod.matched_blocks}/{pod.usable_blocks}",
            " ".join(f"{tier}:{count}" for tier, count in pod.tiers.items()) or "-",
            str(pod.rank),
            str(pod.trust),
        )
        for pod in answer.pods
    ]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (heads, *rows)]
    return "\n".join([f"model {answer.model}, {answer.tokens} tokens, best: {answer.best or 'none, nothing matches'}", *lines])

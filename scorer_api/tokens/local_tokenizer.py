"""Tokenizes here with a model's files: tokenizer.json, and for chats tokenizer_config.json, special_tokens_map.json, chat_template.jinja."""

import asyncio
import json
import re
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from indexer.core.block_keys import pack_tokens
from indexer.errors import SettingError
from indexer.http.problems import Problem
from indexer.limits import TokenizeLimits
from scorer_api.tokens.cache import TokenCache
from scorer_api.tokens.segments import Cuts, cuts_of
from scorer_api.tokens.tokenize_input import TokenizeInput, digest

try:
    from jinja2 import TemplateError
    from tokenizers import Tokenizer

    from scorer_api.tokens.chat_template import ChatTemplate
except ImportError:
    IS_AVAILABLE = False
else:
    IS_AVAILABLE = True
if TYPE_CHECKING:
    from scorer_api.tokens.chat_template import ChatTemplate

SOURCE = "--tokenizer"
NEEDED = "needs the packages tokenizers and jinja2: pip install 'kv-event-indexer[tokenizers]'"
FILE_BYTES_MAX = 256 * 2**20
SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Tokenizing keeps a core busy; requests that bring their tokens must not wait for it.
THREADS = 2
# Of longer texts one is tokenized at a time: the library takes up to 150 bytes for each byte of a text.
LONG_TEXT_BYTES = 262_144
PACKED_TOKENS = 65_536
# Pieces of chats whose tokens are remembered, of each tokenizer. A text of more than so many pieces is tokenized as a whole.
PIECES_MAX, PIECES_BYTES_MAX, TEXT_PIECES_MAX = 10_000, 32 * 2**20, 1_000
# The files of a tokenizer do not change, so all is put and asked for at one time.
NEVER_EXPIRES = 0.0
REFUSAL_LENGTH_MAX = 300
# msgspec builds up to 80 times the bytes of JSON that is no text.
UNCOUNTED_BYTES_MAX = 2_097_152
_TEXTS = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)


class LocalTokenizer:
    """One model's tokenizer. `folder`: where its files are. Raises SettingError for files that cannot be used."""

    def __init__(self, folder: str, timeout_s: float, text_bytes_max: int = TokenizeLimits().tokenize_text_bytes_max) -> None:
        if not IS_AVAILABLE:
            raise SettingError(SOURCE, folder, NEEDED)
        self._timeout_s = timeout_s
        self._text_bytes_max = text_bytes_max
        self._long_texts = threading.Lock()
        self._tokenizer, self._cuts = _read_tokenizer(folder)
        self._pieces: TokenCache[bytes] = TokenCache(PIECES_MAX, PIECES_BYTES_MAX)
        self._pieces_lock = threading.Lock()
        self._templates = _read_templates(folder)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="tokenizer")
        self._turns = asyncio.Semaphore(THREADS)

    async def tokens(self, tokenize_input: TokenizeInput) -> bytes:
        """The tokens as little-endian uint32. Raises Problem: 422 for a chat that the template rejects, 502 after the time limit."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._turns.acquire()
                # After the time limit the work goes on in its thread, and keeps its turn until it ends.
                work = asyncio.get_running_loop().run_in_executor(self._threads, self.tokenize, tokenize_input)
                work.add_done_callback(self._done)
                return await asyncio.shield(work)
        except TimeoutError:
            raise Problem(
                502, f"{tokenize_input.source}: our own tokenizer did not finish within {self._timeout_s:g} s (tokenize_timeout_s)"
            ) from None

    def _done(self, work: "asyncio.Future[bytes]") -> None:
        self._turns.release()
        if not work.cancelled():
            work.exception()  # marks it as retrieved: the caller may have left

    def close(self) -> None:
        """Take no more work. What is running ends by itself."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def tokenize(self, tokenize_input: TokenizeInput) -> bytes:
        """The same, in the calling thread and without a time limit."""
        # A chat's template contains its special tokens.
        text, adds_special = (tokenize_input.prompt or "", True) if tokenize_input.messages is None else (self._render(tokenize_input), False)
        try:
            size = len(text.encode())
            if size > self._text_bytes_max:
                detail = f"{size} bytes of text; our own tokenizer takes at most {self._text_bytes_max} (tokenize_text_bytes_max), send token_ids"
                raise Problem(422, f"{tokenize_input.source}: {detail}")
            with self._long_texts if size > LONG_TEXT_BYTES else nullcontext():
                if self._cuts is None or adds_special:
                    return self._encode(text, adds_special)
                return self._encode_pieces(self._cuts.pieces(text))
        except (TypeError, ValueError) as error:
            raise Problem(422, f"{tokenize_input.source}: should be text that can be written as UTF-8: {error}") from None

    def _encode(self, text: str, adds_special: bool) -> bytes:
        # Of one text `encode` holds the interpreter, for seconds where the text is long; this does not.
        (encoded,) = self._tokenizer.encode_batch_fast([text], add_special_tokens=adds_special)
        ids = encoded.ids
        del encoded  # some 150 bytes for each token
        return b"".join(pack_tokens(ids[start : start + PACKED_TOKENS]) for start in range(0, len(ids), PACKED_TOKENS))

    def _encode_pieces(self, pieces: list[str]) -> bytes:
        """The tokens of all pieces. The last one goes on in the next turn, so it is not worth remembering."""
        if len(pieces) > TEXT_PIECES_MAX:
            return self._encode("".join(pieces), False)
        *whole, last = pieces
        return b"".join([*map(self._piece, whole), self._encode(last, False) if last else b""])

    def _piece(self, piece: str) -> bytes:
        key = digest(piece.encode())
        with self._pieces_lock:
            tokens = self._pieces.get(key, NEVER_EXPIRES)
        if tokens is None:
            tokens = self._encode(piece, False)
            with self._pieces_lock:
                self._pieces.put(key, tokens, NEVER_EXPIRES)
        return tokens

    def _render(self, tokenize_input: TokenizeInput) -> str:
        if tokenize_input.chat_template is not None:
            raise Problem(422, "chat_template: our own tokenizer renders the model's own template only; send prompt or token_ids")
        messages, tools = (_decoded(name, getattr(tokenize_input, name)) for name in ("messages", "tools"))
        kwargs = _decoded("chat_template_kwargs", tokenize_input.template_kwargs())
        if not all(isinstance(message, dict) for message in messages):
            raise Problem(422, "messages: should be a list of messages, each an object")
        template = (self._templates.get("tool_use") if tools else None) or self._templates.get("default")
        if template is None:
            raise Problem(422, "messages: the model's files have no chat template; send prompt or token_ids")
        try:
            return template.render(
                messages,
                tools,
                kwargs or {},
                add_generation_prompt=tokenize_input.add_generation_prompt,
                continue_final_message=tokenize_input.continue_final_message,
            )
        except (TemplateError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:REFUSAL_LENGTH_MAX]
            raise Problem(422, f"messages: the chat template refuses it: {reason or type(error).__name__}") from None


def read_tokenizers(folders: Mapping[str, str], limits: TokenizeLimits) -> dict[str, LocalTokenizer]:
    """Model → tokenizer. Raises SettingError."""
    return {model: LocalTokenizer(folder, limits.tokenize_timeout_s, limits.tokenize_text_bytes_max) for model, folder in folders.items()}


def _decoded(name: str, content: bytes | None) -> Any:
    if content is not None and len(content) > UNCOUNTED_BYTES_MAX and len(_TEXTS.sub(b"", content)) > UNCOUNTED_BYTES_MAX:
        raise Problem(
            422, f"{name}: more than {UNCOUNTED_BYTES_MAX} of its {len(content)} bytes are no text, which is too much for our own tokenizer"
        )
    try:
        return None if content is None else msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError):
        raise Problem(422, f"{name}: is nested too deeply, or no JSON") from None


def _read_tokenizer(folder: str) -> "tuple[Tokenizer, Cuts | None]":
    path = Path(folder) / "tokenizer.json"
    text = _read(folder, path)
    if text is None:
        raise SettingError(SOURCE, folder, f"should be a folder with tokenizer.json; there is no {path}")
    try:
        tokenizer = Tokenizer.from_str(text)
    except Exception as error:  # noqa: BLE001 - tokenizers raises plain Exception
        raise SettingError(SOURCE, folder, f"{path} is no tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    # As the library has read it: with its defaults written out.
    return tokenizer, cuts_of(json.loads(tokenizer.to_str()))


def _read_templates(folder: str) -> "dict[str, ChatTemplate]":
    """The chat templates by name. `default` is the one for chats without tools."""
    config = _read_json(folder, "tokenizer_config.json")
    special = {name: text for name, value in (_read_json(folder, "special_tokens_map.json") | config).items() if (text := _special(name, value))}
    given = config.get("chat_template")
    texts: dict[str, Any] = {"default": given}
    if isinstance(given, list):
        texts = {str(each.get("name")): each.get("template") for each in given if isinstance(each, dict)}
    if (file := _read(folder, Path(folder) / "chat_template.jinja")) is not None:
        texts["default"] = file
    templates = {}
    for name, text in texts.items():
        if text is None:
            continue
        try:
            templates[name] = ChatTemplate(text, special)
        except (TemplateError, TypeError, AttributeError) as error:
            raise SettingError(SOURCE, folder, f"its chat template {name} is none that jinja2 can read: {error}") from None
    return templates


def _special(name: str, value: Any) -> str | None:
    text = value.get("content") if isinstance(value, dict) else value
    return text if name in SPECIAL and isinstance(text, str) else None


def _read_json(folder: str, name: str) -> dict[str, Any]:
    text = _read(folder, Path(folder) / name)
    try:
        found = json.loads(text or "{}")
    except (ValueError, RecursionError) as error:
        raise SettingError(SOURCE, folder, f"{name} is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise SettingError(SOURCE, folder, f"{name} should be an object")
    return found


def _read(folder: str, path: Path) -> str | None:
    """A file's text, None if there is no such file."""
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise SettingError(SOURCE, folder, f"{path} has more than {FILE_BYTES_MAX} bytes")
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(SOURCE, folder, f"{path} cannot be read: {error}") from None

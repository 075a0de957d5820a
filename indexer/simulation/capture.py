"""Capture files: `NAME.frames.msgpack` has the messages of streams, `NAME.replays.msgpack` their replays.

Each is one msgpack list. The count is in a header of fixed size that is rewritten after each flush, so a file whose writer was killed is complete up
to its last flush. A reader also takes what follows, up to the first incomplete entry.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from indexer.errors import IndexerError, SettingError
from indexer.wire.splitter import split_list

FRAMES = ".frames.msgpack"
REPLAYS = ".replays.msgpack"
# array32: this byte and a count of four bytes, big-endian.
ARRAY32 = 0xDD
HEADER_BYTES = 5
# The files contain the tokens of prompts.
MODE = 0o600
BUFFER_BYTES_MAX = 2**20

T = TypeVar("T", bound=Struct)


class Message(Struct, frozen=True, array_like=True):
    """One message as it was received. `received_at_s`: Unix time. `frames`: [topic, sequence number, payload] of a well-behaved engine."""

    received_at_s: float
    engine: str
    frames: list[bytes]


class Exchange(Struct, frozen=True):
    """One replay request and its replies. `t` and `t_end`: Unix time. `start`: the number asked for. `ended`: whether the end marker came."""

    t: float
    engine: str
    start: bytes
    note: str
    ended: bool
    replies: list[tuple[float, list[bytes]]]
    t_end: float = 0.0


class CaptureError(IndexerError):
    """A capture cannot be written any more. Attributes: `path`."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(f"{path} cannot be written: {why}")
        self.path = path


class CaptureWriter:
    """Writes one such file, which must not exist. `add`, and `flush` now and then; `close` flushes. Raises SettingError, and later CaptureError."""

    def __init__(self, path: str, source: str) -> None:
        self.path = path
        self.items = 0
        self._pending = bytearray()
        self._written_items = 0
        self._end = HEADER_BYTES
        try:
            self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)
        except FileExistsError:
            raise SettingError(source, path, "exists already and is not overwritten; name another file") from None
        except OSError as error:
            raise SettingError(source, path, f"cannot be written: {error.strerror}") from None
        try:
            self._write(self._header(0), 0)
        except CaptureError as error:
            os.close(self._file)
            raise SettingError(source, path, str(error).partition(": ")[2]) from None

    @property
    def size(self) -> int:
        """How many bytes the file has, with what waits to be written."""
        return self._end + len(self._pending)

    def add(self, item: Struct) -> None:
        """One more item of the list."""
        self._pending += msgspec.msgpack.encode(item)
        self.items += 1
        if len(self._pending) >= BUFFER_BYTES_MAX:
            self.flush()

    def flush(self) -> None:
        """All that was added is in the file when this returns. Where it does not fit, the file stays as it was."""
        if not self._pending:
            return
        try:
            self._write(bytes(self._pending), self._end)
        except CaptureError:
            with suppress(OSError):  # of no use where even that fails; the header says how much is good
                os.truncate(self._file, self._end)
            self._pending.clear()
            self.items = self._written_items
            raise
        self._end += len(self._pending)
        self._pending.clear()
        self._write(self._header(self.items), 0)
        self._written_items = self.items

    def close(self) -> None:
        """Idempotent."""
        if self._file < 0:
            return
        try:
            self.flush()
        finally:
            os.close(self._file)
            self._file = -1

    @staticmethod
    def _header(count: int) -> bytes:
        return bytes([ARRAY32]) + count.to_bytes(HEADER_BYTES - 1, "big")

    def _write(self, data: bytes, at: int) -> None:
        left = memoryview(data)
        try:
            while left:
                count = os.pwrite(self._file, left, at)
                left, at = left[count:], at + count
        except OSError as error:
            raise CaptureError(self.path, error.strerror or str(error)) from None


def read_messages(path: str) -> tuple[list[Message], int]:
    """A file of frames, and how many bytes at its end are cut short. Raises SettingError."""
    return _read(path, Message, "[received_at_s, engine, [topic, sequence number, payload]]")


def read_exchanges(path: str) -> list[Exchange]:
    """A file of replays. Raises SettingError."""
    return _read(path, Exchange, "{t, engine, start, note, ended, replies}")[0]


def replays_beside(path: str) -> str | None:
    """The file of replays that belongs to a file of frames, if there is one."""
    beside = path.removesuffix(FRAMES) + REPLAYS
    return beside if path.endswith(FRAMES) and Path(beside).exists() else None


def _read(path: str, kind: type[T], shape: str) -> tuple[list[T], int]:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise SettingError("FILE", path, f"cannot be read: {error.strerror}") from None
    try:
        items, cut = split_list(content)
    except ValueError as error:
        raise SettingError("FILE", path, f"is no capture: {error}; it should be a msgpack list of {shape}") from None
    return _decoded(path, items, msgspec.msgpack.Decoder(kind), shape), cut


def _decoded(path: str, items: Sequence[bytes], decoder: "msgspec.msgpack.Decoder[Any]", shape: str) -> list[Any]:
    decoded = []
    for number, item in enumerate(items):
        try:
            decoded.append(decoder.decode(item))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise SettingError("FILE", path, f"entry {number} should be {shape}: {error}") from None
    return decoded

"""A cache of tokenized prompts and chats. Pure: the caller passes the time."""

from collections import OrderedDict
from collections.abc import Sized
from typing import Generic, TypeVar

T = TypeVar("T", bound=Sized)

# Memory of an entry besides its tokens.
ENTRY_BYTES = 256
# A pod may be replaced by one of another release with another chat template, so entries expire.
AGE_MAX_S = 300.0


class TokenCache(Generic[T]):
    """The most recently used entries, limited in number and in bytes. The length of an entry is its size in bytes."""

    def __init__(self, entries_max: int, bytes_max: int) -> None:
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._entries: OrderedDict[bytes, tuple[T, float]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes, now_s: float) -> T | None:
        """The tokens, None where there is no entry or it has expired."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        tokens, since_s = entry
        if now_s - since_s > AGE_MAX_S:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return tokens

    def put(self, key: bytes, tokens: T, now_s: float) -> None:
        """Add an entry, unless it alone exceeds the limit, and evict the least recently used ones."""
        if key in self._entries:
            self._drop(key)
        if len(tokens) + ENTRY_BYTES > self._bytes_max:
            return
        self._entries[key] = (tokens, now_s)
        self.bytes += len(tokens) + ENTRY_BYTES
        while self.bytes > self._bytes_max or len(self._entries) > self._entries_max:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        tokens, _ = self._entries.pop(key)
        self.bytes -= len(tokens) + ENTRY_BYTES

"""Tokens that were asked for before. Pure: the caller brings the time."""

from collections import OrderedDict

# What an entry costs besides its tokens.
ENTRY_BYTES = 256
# A pod may be replaced by one of another release, with another chat template: after so long it is asked again.
AGE_MAX_S = 300.0


class TokenCache:
    """The most recently used results, bounded in number and in bytes."""

    def __init__(self, entries_max: int, bytes_max: int) -> None:
        self._entries_max = entries_max
        self._bytes_max = bytes_max
        self._found: OrderedDict[bytes, tuple[bytes, float]] = OrderedDict()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._found)

    def get(self, key: bytes, now_s: float) -> bytes | None:
        """Packed tokens."""
        entry = self._found.get(key)
        if entry is None:
            return None
        tokens, since_s = entry
        if now_s - since_s > AGE_MAX_S:
            self._drop(key)
            return None
        self._found.move_to_end(key)
        return tokens

    def put(self, key: bytes, tokens: bytes, now_s: float) -> None:
        """Remember them, unless they alone are too large."""
        if key in self._found:
            self._drop(key)
        if len(tokens) + ENTRY_BYTES > self._bytes_max:
            return
        self._found[key] = (tokens, now_s)
        self.bytes += len(tokens) + ENTRY_BYTES
        while self.bytes > self._bytes_max or len(self._found) > self._entries_max:
            self._drop(next(iter(self._found)))

    def _drop(self, key: bytes) -> None:
        tokens, _ = self._found.pop(key)
        self.bytes -= len(tokens) + ENTRY_BYTES

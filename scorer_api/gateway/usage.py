"""How much of a prompt the engine took from its cache, by the `usage` at the end of its response."""

import re

# `usage` is the last field of a response, or of the last chunk of a streamed one, but for a few small ones.
TAIL_BYTES = 4_096
# In a text of the model each quote is escaped, so this is a field.
_CACHED = re.compile(rb'"cached_tokens"\s*:\s*(\d{1,9})\b')


class Tail:
    """The last bytes of a response's body."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, piece: memoryview) -> None:
        """The next piece."""
        if len(piece) >= TAIL_BYTES:
            self._bytes = bytearray(piece[-TAIL_BYTES:])
            return
        self._bytes += piece
        if len(self._bytes) > 2 * TAIL_BYTES:
            del self._bytes[:-TAIL_BYTES]

    def cached_tokens(self) -> int | None:
        """`usage.prompt_tokens_details.cached_tokens`; None where the engine does not tell."""
        found = _CACHED.findall(self._bytes)
        return int(found[-1]) if found else None

"""The highest token id that a stream announced, for explanations only: so it is taken from a sample of the events."""

import sys
from array import array

from indexer.core.block_keys import TOKEN_BYTES

# All tokens are looked at up to this number, then those of every SAMPLED_EVENTS-th event.
SAMPLED_TOKENS_MIN = 4_096
SAMPLED_EVENTS = 64
# So many tokens of an event are looked at: 30 ns each.
SAMPLED_TOKENS_MAX = 65_536


class TokenSample:
    """`highest`: the highest token id of the sampled events, None before the first one. `until_next`: events until the
    next one, which the caller counts."""

    __slots__ = ("_tokens", "highest", "until_next")

    def __init__(self) -> None:
        self.highest: int | None = None
        self.until_next = 1
        self._tokens = 0

    def add(self, tokens: bytes) -> None:
        """`tokens`: those of one event, little-endian uint32, at least one."""
        packed = array("I", tokens[: SAMPLED_TOKENS_MAX * TOKEN_BYTES])
        if sys.byteorder == "big":
            packed.byteswap()
        self.highest = max(self.highest or 0, max(packed))
        self._tokens += len(packed)
        self.until_next = 1 if self._tokens < SAMPLED_TOKENS_MIN else SAMPLED_EVENTS

"""One request of a workload, and what it got."""

import random
from functools import lru_cache

from msgspec import Struct
from xxhash import xxh3_64_intdigest

from indexer.core.block_keys import TOKEN_BYTES

Segment = tuple[int, int]
"""A text by its number, and how many tokens of it. Equal numbers begin with equal tokens."""


@lru_cache(maxsize=2_048)
def segment_tokens(number: int, length: int) -> bytes:
    """The tokens of a text, little-endian uint32: any numbers, the same ones at each call."""
    return random.Random(number).randbytes(length * TOKEN_BYTES)


class Request(Struct):
    """One prompt and its answer. Times in seconds since the start of the run, tokens as little-endian uint32.

    `segments`: of the prompt. `output`: the answer's text and its length. `user`: of one session all requests have the same.
    """

    number: int
    arrives_s: float
    segments: tuple[Segment, ...]
    output: Segment
    user: int = 0

    # What became of it.
    pod: int = -1
    cached_tokens: int = 0
    predicted_tokens: int = 0
    first_token_s: float | None = None
    done_s: float | None = None
    produced: int = 0
    preemptions: int = 0
    _hashes: list[int] | None = None

    @property
    def prompt_length(self) -> int:
        return sum(length for _, length in self.segments)

    @property
    def output_length(self) -> int:
        return self.output[1]

    def prompt(self) -> bytes:
        """The prompt's tokens."""
        return b"".join(segment_tokens(*segment) for segment in self.segments)

    def sequence(self) -> bytes:
        """The tokens of prompt and answer."""
        return self.prompt() + segment_tokens(*self.output)

    def hashes(self, block_size: int) -> list[int]:
        """Of all blocks of its sequence, computed once."""
        if self._hashes is None:
            self._hashes = block_hashes(self.sequence(), block_size)
        return self._hashes


def block_hashes(tokens: bytes, block_size: int) -> list[int]:
    """An engine's hashes of the whole blocks, each chained to the one before."""
    width = block_size * TOKEN_BYTES
    last = 0
    return [last := xxh3_64_intdigest(tokens[start : start + width], last ^ 0x9E3779B9) for start in range(0, len(tokens) - width + 1, width)]

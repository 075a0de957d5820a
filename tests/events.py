"""Events as the decoder hands them on.

The content of a block is a number, or a letter that stands for its own; its tokens are that number over and over. Unless a test says otherwise,
the content is the same number as the engine's hash.
"""

import struct
from collections.abc import Iterable, Mapping

from indexer.core.events import Removed, Stored, Tier

BLOCK_SIZE = 4


def tokens_of(contents: Iterable[int] | str, block_size: int = BLOCK_SIZE) -> bytes:
    """A prompt of these blocks."""
    numbers = map(ord, contents) if isinstance(contents, str) else contents
    return b"".join(struct.pack("<I", number) * block_size for number in numbers)


def stored(
    hashes: Iterable[int],
    contents: Iterable[int] | str | None = None,
    parent: int | None = None,
    tier: Tier = Tier.GPU,
    block_size: int = BLOCK_SIZE,
    *,
    lora_name: str | None = None,
    extra_keys: Mapping[int, bytes] | None = None,
    announces_extra_keys: bool = True,
    group: int | None = 0,
    kind: str | None = "full_attention",
    window: int | None = None,
    lists_extra_keys: bool = True,
) -> Stored:
    """A chain of blocks behind `parent`. `lists_extra_keys`: whether the event says which there are, be it none."""
    hashes = list(hashes)
    tokens = tokens_of(hashes if contents is None else contents, block_size)
    return Stored(
        hashes,
        parent,
        tokens,
        block_size,
        tier,
        lora_name,
        extra_keys,
        announces_extra_keys,
        group,
        kind,
        window,
        lists_extra_keys=lists_extra_keys and announces_extra_keys,
    )


def sparse(
    hashes: Iterable[int],
    blocks: int,
    parent: int | None = None,
    block_size: int = BLOCK_SIZE,
    *,
    group: int = 1,
    kind: str | None = "sliding_window",
    window: int | None = None,
    state_tokens: bytes = b"",
) -> Stored:
    """Some blocks of a chain of so many, named by their hashes alone."""
    more = {"window": window, "sparse_tokens": blocks * block_size, "state_tokens": state_tokens}
    return Stored(list(hashes), parent, b"", block_size, Tier.GPU, None, None, True, group, kind, **more)  # type: ignore[arg-type]


def offloaded(
    hashes: Iterable[int],
    tier: Tier = Tier.CPU,
    block_size: int = 0,
    *,
    announces_extra_keys: bool = True,
    group: int | None = 0,
    kind: str | None = None,
) -> Stored:
    """A tier update: no tokens, no parent. With a `block_size` of several blocks a hash stands for the run that ends with its own."""
    return Stored(list(hashes), None, b"", block_size, tier, None, None, announces_extra_keys, group, kind)


def removed(hashes: Iterable[int], tier: Tier = Tier.GPU, group: int | None = 0) -> Removed:
    return Removed(list(hashes), tier, group)

"""Block keys: our own chained 64-bit names of blocks.

    root                = H(scheme, hash seed, model, LoRA name)
    key of block 0      = H(tokens of block 0 + extra keys of block 0; seeded with the root)
    key of block i      = H(tokens of block i + extra keys of block i; seeded with the key of block i - 1)

Where an engine's hashes take in the tokens behind a block (lookahead, for drafters), these come between the block's tokens and its extra keys.

H is XXH3-64: a fifth of the time of the fastest cryptographic hash of the standard library for a 64-byte block, and what a
collision could do is send one request to the wrong pod. A block of `block_size` tokens always has `4 * block_size` bytes, so
bytes behind them can only be extra keys. Engine hashes differ from release to release and from process to process; these keys
need only the tokens (docs/explanation/wire-format.md, "Engine hashes and block keys").
"""

import sys
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any

import msgspec
from xxhash import xxh3_64_intdigest

from indexer.compiled import core

KEY_SCHEME = 1
TOKEN_BYTES = 4
TOKEN_MAX = 2**32 - 1
# Number of blocks that are cut out of a prompt at a time.
PIECE_BLOCKS = 64

_canonical = msgspec.msgpack.Encoder(order="deterministic")


def root_key(model: str, lora_name: str | None, hash_seed: str) -> int:
    """The key that the first block of a prompt chains from."""
    return xxh3_64_intdigest(_canonical.encode([KEY_SCHEME, hash_seed, model, lora_name or None]))


def chain_keys_in_python(
    parent: int,
    tokens: bytes,
    block_size: int,
    extra_keys: Mapping[int, bytes] | None = None,
    start: int = 0,
    stop: int | None = None,
    lookahead: int = 0,
) -> list[int]:
    """The keys of blocks `start` to `stop` (default: all whole blocks) of `tokens`, where `parent` is the key before block `start`.

    `tokens` are little-endian uint32; `extra_keys` maps block numbers to folded extra keys. `lookahead`: so many tokens behind each block are
    part of its key; `stop` leaves room for them.
    """
    width = block_size * TOKEN_BYTES
    if stop is None:
        if len(tokens) == width and not start and not extra_keys:
            return [xxh3_64_intdigest(tokens, parent)]  # what an engine announces while it generates
        stop = len(tokens) // width
    key = parent
    keys: list[int] = []
    for first in range(start, stop, PIECE_BLOCKS):
        blocks = _cutter(width, min(PIECE_BLOCKS, stop - first))(tokens, first * width)
        if extra_keys or lookahead:
            extra_keys = extra_keys or {}
            for number, block in enumerate(blocks, first):
                ahead = tokens[(number + 1) * width : (number + 1) * width + lookahead * TOKEN_BYTES]
                key = xxh3_64_intdigest(block + ahead + extra_keys.get(number, b""), key)
                keys.append(key)
        else:
            keys += [key := xxh3_64_intdigest(block, key) for block in blocks]
    return keys


chain_keys = chain_keys_in_python if core is None else core.chain_keys


def key_array(
    parent: int,
    tokens: bytes,
    block_size: int,
    extra_keys: Mapping[int, bytes] | None = None,
    start: int = 0,
    stop: int | None = None,
    lookahead: int = 0,
) -> "array[int]":
    """The same keys as `chain_keys`, in an array: the compiled core makes and follows one without an object for each key."""
    if core is None:
        return array("Q", chain_keys_in_python(parent, tokens, block_size, extra_keys, start, stop, lookahead))
    return array("Q", core.chain_packed(parent, tokens, block_size, extra_keys, start, stop, lookahead))


@lru_cache(maxsize=1024)
def _cutter(width: int, count: int) -> Callable[[bytes, int], tuple[bytes, ...]]:
    """Cuts a number of blocks out of tokens, from an offset on: at a quarter of the cost of a slice for each."""
    return Struct(f"{width}s" * count).unpack_from


def read_extra_keys(entry: Sequence[Any] | None, lora_name: str | None, *, first: bool) -> tuple[list[Any], str | None]:
    """One block's entry as an engine announces it, split into its extra keys and the cache salt.

    vLLM puts the LoRA name into every entry (the root has it already: one occurrence is dropped) and the cache salt as a bare
    string into the first block's of a prompt (docs/explanation/wire-format.md, "Extra keys").
    """
    own: list[Any] = []
    salt: str | None = None
    lora_left = lora_name
    for item in entry or ():
        if lora_left is not None and item == lora_left:
            lora_left = None
        elif first and salt is None and isinstance(item, str):
            salt = item
        else:
            own.append(item)
    return own, salt


def fold_extra_keys(own: Sequence[Any], salt: str | None) -> bytes:
    """The encoding of a block's extra keys that follows its tokens; empty when it has none."""
    if not own and not salt:
        return b""
    return _canonical.encode([own, salt or None])


def is_salt(folded: bytes) -> bool:
    """Whether folded extra keys are a cache salt and nothing else."""
    own, _salt = msgspec.msgpack.decode(folded)
    return not own


def pack_tokens(token_ids: list[int]) -> bytes:
    """Token ids as little-endian uint32. Raises OverflowError where one does not fit."""
    packed = array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()

"""Dynamo's local block hashes: XXH3-64 of a block's tokens alone, with a seed that the LoRA adapter and the cache salt of the request add to.

Unlike block keys they say nothing of the blocks before. Pure.
"""

from functools import lru_cache

from xxhash import xxh3_64_intdigest

from indexer.core.block_keys import TOKEN_BYTES
from indexer.core.events import HASH_MASK

SEED = 1337


@lru_cache(maxsize=4096)
def seed_of(lora_name: str | None, cache_salt: str | None) -> int:
    """The seed for the blocks of a request. Empty texts are none."""
    seed = SEED
    if lora_name:
        seed += xxh3_64_intdigest(lora_name.encode(), 0)
    if cache_salt:
        seed += xxh3_64_intdigest(cache_salt.encode(), 1)
    return seed & HASH_MASK


def local_hashes(tokens: bytes, block_size: int, seed: int) -> list[int]:
    """The hashes of all whole blocks. `tokens`: little-endian uint32."""
    width = block_size * TOKEN_BYTES
    return [xxh3_64_intdigest(tokens[start : start + width], seed) for start in range(0, len(tokens) - width + 1, width)]

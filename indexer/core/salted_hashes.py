"""Hashes of engines that leave the cache salt out of them (SGLang): blocks of two tenants with the same tokens have one hash.

Inside, a block goes by a hash of its own, made of the engine's and the salt. A removal names the engine's: it means all of them, since which one is
gone is not told. What was removed in vain is announced again when it is used again.
"""

from collections.abc import Callable, Iterable

from msgspec import structs
from xxhash import xxh3_64_intdigest

from indexer.core.events import Stored

# So many more than blocks are noted before any is forgotten.
SPARE = 1_024


def salted_hash(engine_hash: int, salt: str) -> int:
    """The hash by which a block goes that was announced with this salt."""
    return xxh3_64_intdigest(engine_hash.to_bytes(8, "little"), xxh3_64_intdigest(salt.encode()))


class SaltedHashes:
    """The engine's hashes of salted ones, and back. `engine_hashes`: salted → the engine's; to read."""

    def __init__(self) -> None:
        self.engine_hashes: dict[int, int] = {}
        self._salted: dict[int, dict[int, None]] = {}

    def rename(self, event: Stored, salt: str, most: int, is_known: Callable[[int], bool]) -> Stored:
        """The event by the hashes of its salted blocks. Where more than `most` are noted, those of blocks that are not known go first."""
        if len(self.engine_hashes) > most + SPARE:
            self.keep_only(is_known)
        hashes = [salted_hash(engine_hash, salt) for engine_hash in event.hashes]
        for salted, engine_hash in zip(hashes, event.hashes, strict=True):
            self.add(salted, engine_hash)
        return structs.replace(event, hashes=hashes, parent=None if event.parent is None else salted_hash(event.parent, salt))

    def add(self, salted: int, engine_hash: int) -> None:
        """Note that the engine means this block by that hash."""
        self.engine_hashes[salted] = engine_hash
        self._salted.setdefault(engine_hash, {})[salted] = None

    def engine_hash_of(self, block_hash: int) -> int | None:
        """The engine's hash of a salted block; None for a block that has the engine's own."""
        return self.engine_hashes.get(block_hash)

    def forget(self, salted: int) -> None:
        """The block is not known any more. Idempotent."""
        engine_hash = self.engine_hashes.pop(salted, None)
        if engine_hash is not None:
            hashes = self._salted[engine_hash]
            del hashes[salted]
            if not hashes:
                del self._salted[engine_hash]

    def keep_only(self, is_known: Callable[[int], bool]) -> None:
        """Forget the hashes of blocks that are not known any more."""
        for salted in [salted for salted in self.engine_hashes if not is_known(salted)]:
            self.forget(salted)

    def all_of(self, engine_hashes: Iterable[int]) -> list[int]:
        """These hashes, and those of the salted blocks that the engine means by them."""
        return [block_hash for engine_hash in engine_hashes for block_hash in (engine_hash, *self._salted.get(engine_hash, ()))]

"""Blocks by engine hash, in the order in which they came."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Protocol

from msgspec import Struct

from indexer.compiled import core


class Block(Struct, gc=False):
    """A block known by its engine hash. `copies`: physical copies of the lead group on the gpu. A block that is its own `parent` was not announced,
    and its key was inferred from tokens. The parent's key is the one before, but not of blocks in `BlockTable.large`; there is no parent where the
    distance is not known. There are millions, so the garbage collector does not track them."""

    key: int
    parent: int | None
    copies: int = 1


class Blocks(Protocol):
    """A dict of blocks. The compiled one packs them, and what it returns is a copy: who changes a block puts it back."""

    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...
    def __contains__(self, engine_hash: object, /) -> bool: ...
    def __getitem__(self, engine_hash: int, /) -> Block: ...
    def __setitem__(self, engine_hash: int, block: Block, /) -> None: ...
    def __delitem__(self, engine_hash: int, /) -> None: ...
    def get(self, engine_hash: int, /) -> Block | None: ...
    def pop(self, engine_hash: int, default: None, /) -> Block | None: ...
    def items(self) -> Iterable[tuple[int, Block]]: ...
    def clear(self) -> None: ...

    def hashes_with_copies(self) -> Sequence[int]:
        """The engine hashes of blocks that have copies, as they are now."""

    def count_with_copies(self) -> int:
        """How many these are."""

    def key_of(self, engine_hash: int) -> int | None:
        """The block key of an engine hash."""


class BlocksInPython(dict[int, Block]):
    """See `Blocks`."""

    def hashes_with_copies(self) -> Sequence[int]:
        return [engine_hash for engine_hash, block in self.items() if block.copies]

    def count_with_copies(self) -> int:
        return sum(block.copies > 0 for block in self.values())

    def key_of(self, engine_hash: int) -> int | None:
        block = self.get(engine_hash)
        return None if block is None else block.key


make_blocks: Callable[[], Blocks] = BlocksInPython if core is None else lambda: core.BlockMap(Block)

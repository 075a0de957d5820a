"""What one stream holds in an index: it can be built apart, exchanged for what the stream held, and freed in pieces."""

from indexer.core.change import Change
from scorer_api.index.engine_hashes import FollowedHashes
from scorer_api.index.prefix_index import PrefixIndex


class Holding:
    """A separate holder in the index of its block size. Until it replaces what a stream holds, it is in no answer."""

    def __init__(self, indexes: dict[int, PrefixIndex], block_size: int, holder: int | None = None, hashes: FollowedHashes | None = None) -> None:
        """`indexes`: block size → index, of one model. `holder`: one that is there, else a new one. `hashes`: where engine hashes are kept."""
        self.hashes = hashes
        self.block_size = block_size
        self._indexes = indexes
        self._index = indexes.setdefault(block_size, PrefixIndex())
        self.holder = self._index.add_holder() if holder is None else holder

    def apply(self, change: Change) -> None:
        """Apply a change to what is held."""
        self._index.apply(self.holder, change)
        if self.hashes is not None:
            self.hashes.apply(change, self._index, self.holder)

    def give_back(self, blocks_max: int) -> bool:
        """Remove at most `blocks_max` blocks. Returns whether there are more; after the last one the holder is released."""
        if self._index.shrink(self.holder, blocks_max):
            return True
        self._index.remove_holder(self.holder)
        if self._index.is_empty and self._indexes.get(self.block_size) is self._index:
            del self._indexes[self.block_size]
        return False

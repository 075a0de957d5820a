"""What one stream holds in an index, with its engine hashes: it can be built apart, exchanged for what the stream held, and freed in pieces."""

from indexer.core.change import Change
from indexer.core.groups import CacheShape
from scorer_api.index.engine_hashes import FollowedHashes
from scorer_api.index.holders import Holders


class Holding:
    """`holders` of its own: until they replace those of a stream, they are in no answer. `hashes`: where engine hashes are kept."""

    def __init__(self, holders: Holders, hashes: FollowedHashes | None = None) -> None:
        self.holders = holders
        self.hashes = hashes

    def apply(self, change: Change, shape: CacheShape) -> None:
        """Apply a change to what is held. `shape`: of the stream after it."""
        self.holders.follow(shape)
        self.holders.apply(change)
        if self.hashes is not None:
            self.hashes.apply(change, self.holders)

    def give_back(self, blocks_max: int) -> bool:
        """Remove at most `blocks_max` blocks. Returns whether there are more; after the last one the holders are released."""
        return self.holders.shrink(blocks_max)

"""What an explanation needs to know of each pod: where the match of each rank ends, and what is known of the block there."""

from msgspec import Struct

from indexer.core.names import Trust
from scorer_api.index.hits import Limit
from scorer_api.index.removals import Removal


class RankTrace(Struct, frozen=True):
    """What a rank holds of a query. `runs`: its matched blocks in order, by best tier.

    Of the block at which the match ends: `is_remote`, whether it is held in remote storage, and its `removal`, where that is remembered.
    """

    rank: int
    trust: Trust
    block_size: int | None
    usable_blocks: int
    runs: list[tuple[str, int]]
    score: float
    is_remote: bool = False
    removal: Removal | None = None
    dropped_blocks: int = 0
    """How many of the last matched blocks the engine computes again: they are not in `runs`."""
    cut_blocks: int = 0
    """How many of them were held."""
    limit: Limit | None = None
    """Which KV-cache group keeps the match from being longer, where there are several."""
    missing: int | None = None
    """The block that it lacks, in blocks of this rank."""
    has_other_seed: bool = False
    """Whether the stream's owner makes block keys with another hash seed than this scorer."""

    @property
    def matched_blocks(self) -> int:
        return sum(blocks for _, blocks in self.runs)

    @property
    def end(self) -> int:
        """The first block that is not held, or that one group lacks."""
        return self.matched_blocks + self.cut_blocks if self.missing is None else self.missing


class PodTrace(Struct, frozen=True):
    """A pod's ranks, the best one first."""

    pod: str
    ranks: list[RankTrace]

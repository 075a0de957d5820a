"""The models, pods and streams that a scorer knows, and their prefix indexes.

    model ─┬─ pods      pod → rank → IndexedStream(block size, holder, trust, engine hashes, removals)
           └─ indexes   block size → PrefixIndex, which has one holder for each stream with that block size

An index is there as long as it has a holder.
"""

import math
from collections.abc import Iterable, Mapping

from msgspec import Struct

from indexer.core.names import Trust
from scorer_api.index.engine_hashes import HashKeys
from scorer_api.index.holding import Holding
from scorer_api.index.prefix_index import PrefixIndex
from scorer_api.index.removals import Removals


class IndexedStream(Struct):
    """One rank of a pod. `block_size` and `holder` are None while it holds nothing.

    `trust` counts until `trusted_until_s`, by the monotonic clock. `hashes`: its engine hashes, None where requests by engine hashes are off.
    `has_other_seed`: its owner computes block keys with another hash seed. `dropped_blocks`: how many of the last matched blocks its engine computes
    again.
    """

    removals: Removals
    hashes: HashKeys | None
    trust: Trust = Trust.STALE
    trusted_until_s: float = math.inf
    block_size: int | None = None
    holder: int | None = None
    has_other_seed: bool = False
    dropped_blocks: int = 0

    def trust_at(self, now_s: float) -> Trust:
        """How far its content can be relied on at this time of the monotonic clock."""
        return self.trust if now_s < self.trusted_until_s or self.trust is Trust.EXPIRED else Trust.STALE


Pods = Mapping[str, Mapping[int, IndexedStream]]
"""Pod → rank → stream."""


class IndexedModel:
    """One model's streams and indexes. `prompts`: how many were scored. `unmatched`: how many of them since the last one that matched."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[int, IndexedStream]] = {}
        self.indexes: dict[int, PrefixIndex] = {}
        self.prompts = self.unmatched = 0

    def index_for(self, stream: IndexedStream, block_size: int) -> tuple[PrefixIndex, int]:
        """The index of a stream whose blocks have this size, and its holder there, which is made where it held nothing."""
        if stream.block_size is None:
            stream.block_size = block_size
            stream.holder = self.indexes.setdefault(block_size, PrefixIndex()).add_holder()
        assert stream.holder is not None and stream.block_size == block_size, "a stream holds blocks of one size"  # noqa: PT018
        return self.indexes[block_size], stream.holder

    def empty(self, stream: IndexedStream) -> None:
        """Let the stream hold nothing."""
        if stream.block_size is None or stream.holder is None:
            return
        index = self.indexes[stream.block_size]
        index.remove_holder(stream.holder)
        if index.is_empty:
            del self.indexes[stream.block_size]
        stream.block_size = stream.holder = None

    def exchange(self, stream: IndexedStream, new: Holding | None) -> Holding | None:
        """Let the stream hold this, or nothing, and return what it held before."""
        before = None
        if stream.block_size is not None and stream.holder is not None:
            before = Holding(self.indexes, stream.block_size, stream.holder)
        stream.block_size, stream.holder = (None, None) if new is None else (new.block_size, new.holder)
        return before

    def count_held(self, stream: IndexedStream, keys: Iterable[int]) -> int:
        """How many of these blocks the stream holds in its own tiers."""
        if stream.block_size is None or stream.holder is None:
            return 0
        return self.indexes[stream.block_size].count_held(stream.holder, keys)

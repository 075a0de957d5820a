"""The models, pods and streams that a scorer knows, and their prefix indexes.

    model ─┬─ pods      pod → rank → IndexedStream(shape, holders, trust, engine hashes, removals)
           └─ indexes   (key size, lookahead) → PrefixIndex, which has a holder for each KV-cache group of each stream whose blocks are cut so

The key size is the number of tokens between two block keys: the block size of a plain model. An index is there as long as it has a holder.
"""

import math
from collections.abc import Iterable, Mapping

from msgspec import Struct

from indexer.core.groups import CacheShape
from indexer.core.names import Trust
from scorer_api.index.engine_hashes import HashKeys
from scorer_api.index.holders import Holders, Indexes
from scorer_api.index.removals import Removals


class IndexedStream(Struct):
    """One rank of a pod. `holders` is None while it holds nothing.

    `trust` counts until `trusted_until_s`, by the monotonic clock. `hashes`: its engine hashes, None where requests by engine hashes are off.
    `has_other_seed`: its owner computes block keys with another hash seed. `dropped_blocks`: how many of the last matched blocks its engine computes
    again.
    """

    removals: Removals
    hashes: HashKeys | None
    trust: Trust = Trust.STALE
    trusted_until_s: float = math.inf
    holders: Holders | None = None
    has_other_seed: bool = False
    dropped_blocks: int = 0

    @property
    def cut(self) -> tuple[int, int] | None:
        """How its blocks are cut, see `CacheShape.cut`; None while it holds nothing."""
        return None if self.holders is None else self.holders.cut

    @property
    def block_size(self) -> int | None:
        """Hits are multiples of so many tokens; None while it holds nothing."""
        return None if self.holders is None else self.holders.block_size

    def trust_at(self, now_s: float) -> Trust:
        """How far its content can be relied on at this time of the monotonic clock."""
        return self.trust if now_s < self.trusted_until_s or self.trust is Trust.EXPIRED else Trust.STALE


Pods = Mapping[str, Mapping[int, IndexedStream]]
"""Pod → rank → stream."""


class IndexedModel:
    """One model's streams and indexes. `prompts`: how many were scored. `unmatched`: how many of them since the last one that matched."""

    def __init__(self) -> None:
        self.pods: dict[str, dict[int, IndexedStream]] = {}
        self.indexes: Indexes = {}
        self.prompts = self.unmatched = 0
        self.plain: object = None
        """What `plain_pods` found of the present pods, if it `knows_plain`."""
        self.knows_plain = False
        self.trusts = 0
        """How often it was said how far a stream can be relied on."""

    def forget_plain(self) -> None:
        """The pods are others now, or hold something else: what was found of them goes, and the index with it where nobody else needs that."""
        self.plain, self.knows_plain = None, False

    def holders_for(self, stream: IndexedStream, shape: CacheShape) -> Holders:
        """The holders of a stream whose blocks are cut like this, which are made where it held nothing, or less."""
        holders = stream.holders
        if holders is None:
            holders = stream.holders = Holders(self.indexes, shape)
            self.forget_plain()
        elif holders.shape != shape:
            holders.follow(shape)
            self.forget_plain()
        return holders

    def empty(self, stream: IndexedStream) -> None:
        """Let the stream hold nothing."""
        self.forget_plain()
        if stream.holders is not None:
            stream.holders.release()
            stream.holders = None

    def exchange(self, stream: IndexedStream, new: Holders | None) -> Holders | None:
        """Let the stream hold this, or nothing, and return what it held before."""
        before, stream.holders = stream.holders, new
        self.forget_plain()
        return before

    def count_held(self, stream: IndexedStream, keys: Iterable[int]) -> int:
        """How many of these blocks the stream holds in its own tiers."""
        return 0 if stream.holders is None else stream.holders.count_held(keys)

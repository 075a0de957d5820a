"""What a stream removed last, to say of a block that it was there: read by explanations only."""

from collections import deque
from collections.abc import Collection
from itertools import chain

from msgspec import Struct

from indexer.core.change import Change, KeyLog


class Removal(Struct, frozen=True):
    """A block was removed. `sequence`: of the engine's batch that said so, where that is known."""

    sequence: int | None


class Removals:
    """Keeps the last changes that removed anything, as they are: noting one costs a look at each of its tiers, and nothing per block.

    `blocks_max`: the blocks that all kept changes may touch, removed or not.
    """

    __slots__ = ("_blocks", "_blocks_max", "_kept")

    def __init__(self, blocks_max: int) -> None:
        self._blocks_max = blocks_max
        self._blocks = 0
        self._kept: deque[tuple[int | None, dict[int, bool] | KeyLog]] = deque()

    @property
    def blocks(self) -> int:
        """How many blocks the kept changes touch."""
        return self._blocks

    def note(self, change: Change, cleared: Collection[int] = ()) -> None:
        """Take note of a change. `cleared`: the blocks that it cleared."""
        if change.reload:
            self.forget()
        if cleared and len(cleared) <= self._blocks_max:
            self._keep(change.sequence, dict.fromkeys(cleared, False))
        tiers = (*change.tiers, *chain.from_iterable(change.touched_in.values())) if change.touched_in else change.tiers
        for touched in tiers:
            if touched and (False in touched.values() if isinstance(touched, dict) else touched.has_removed):
                self._keep(change.sequence, touched)

    def _keep(self, sequence: int | None, touched: dict[int, bool] | KeyLog) -> None:
        self._kept.append((sequence, touched))
        self._blocks += len(touched)
        while self._blocks > self._blocks_max:
            self._blocks -= len(self._kept.popleft()[1])

    def find(self, key: int) -> Removal | None:
        """The last removal of a block that is not held now, if that is still known."""
        return next((Removal(sequence) for sequence, touched in reversed(self._kept) if touched.get(key) is False), None)

    def forget(self) -> None:
        """Forget all removals: the engine was restarted, or the stream was loaded again."""
        self._kept.clear()
        self._blocks = 0

"""What one stream holds, for a reader that goes through it in pieces while it changes.

Each piece is as it is when it is read; what changes meanwhile is in the `Change` of each batch.
"""

from collections.abc import Iterable, Sequence

from indexer.core.block_table import HashRecord
from indexer.core.groups import CacheShape
from indexer.core.places import FOREIGN, PARKED, REMOVED
from indexer.core.stream_state import Counting, StreamState
from indexer.core.traits import Traits


class Snapshot:
    """Reads a stream's state, and changes nothing of it. A place is as in `block_table`, or PARKED, FOREIGN or REMOVED."""

    def __init__(self, state: StreamState) -> None:
        self._state = state

    @property
    def counting(self) -> Counting:
        """How the stream counts copies."""
        return self._state.counting

    @property
    def shape(self) -> CacheShape | None:
        """How the blocks are cut; None before any block."""
        return self._state.shape

    @property
    def is_amid_batch(self) -> bool:
        """Whether a batch is applied in part: then all of it together is no state that the stream ever had."""
        return self._state.is_amid_batch

    def traits(self) -> Traits:
        """What reading further events depends on, besides the blocks."""
        return self._state.traits()

    def places(self) -> list[int]:
        """Where anything is held, PARKED, FOREIGN and REMOVED among them."""
        return [*self._state.table.places(), PARKED, FOREIGN, REMOVED]

    def hashes(self, place: int) -> Sequence[int]:
        """The engine hashes that a place holds."""
        if place == PARKED:
            return list(self._state.orphans)
        if place == FOREIGN:
            return list(self._state.foreign)
        return self._state.table.removed_hashes() if place == REMOVED else self._state.table.hashes(place)

    def count(self, place: int) -> int:
        """How many these are."""
        return len(self.hashes(place)) if place in (PARKED, FOREIGN, REMOVED) else self._state.table.count(place)

    def records(self, place: int, hashes: Iterable[int]) -> dict[int, HashRecord | None]:
        """What a place holds for these engine hashes; None where it holds nothing."""
        return self._state.records(place, hashes)

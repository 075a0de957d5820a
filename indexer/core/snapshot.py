"""What one stream holds, for a reader that goes through it in pieces while it changes.

Each piece is as it is when it is read; what changes meanwhile is in the `Change` of each batch.
"""

from collections.abc import Iterable

from indexer.core.block_table import HashRecord
from indexer.core.events import Tier
from indexer.core.parts import PARKED, REMOVED
from indexer.core.stream_state import Counting, StreamState
from indexer.core.traits import Traits


class Snapshot:
    """Reads a stream's state, and changes nothing of it. A part is a tier, PARKED or REMOVED."""

    def __init__(self, state: StreamState) -> None:
        self._state = state

    @property
    def counting(self) -> Counting:
        """How the stream counts copies."""
        return self._state.counting

    @property
    def block_size(self) -> int | None:
        """Tokens per block."""
        return self._state.block_size

    def traits(self) -> Traits:
        """What reading further events depends on, besides the blocks."""
        return self._state.traits()

    def hashes(self, part: int) -> list[int]:
        """The engine hashes that a part holds."""
        if part == PARKED:
            return list(self._state.orphans)
        return self._state.table.removed_hashes() if part == REMOVED else self._state.table.hashes(Tier(part))

    def records(self, part: int, hashes: Iterable[int]) -> dict[int, HashRecord | None]:
        """What a part holds for these engine hashes; None where it holds nothing."""
        return self._state.records(part, hashes)

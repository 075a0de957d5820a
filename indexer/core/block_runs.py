"""What an event of the lead group does to many blocks on the gpu at once. What is not done here is done block by block: see `held_blocks`."""

from collections.abc import Callable, Collection
from typing import Any, Protocol, cast

from indexer.compiled import core
from indexer.core.block_table import BlockTable, HashRecord
from indexer.core.blocks import Block, BlocksInPython
from indexer.core.events import Tier
from indexer.core.held_keys import HeldKeysInPython
from indexer.core.indexed_keys import IndexedKeys
from indexer.core.key_claims import KeyClaimsInPython

# Shorter runs are faster one block at a time.
RUN_MIN = 4

LeadRecords = dict[int, HashRecord | None]


Played = tuple[int, int, int, int, int]
"""How far the compiled core applied a batch: the position of the first event that is left, and how many of its blocks are done; of the events before,
how many stored blocks, how many blocks these were, and how many were removed."""


class BlockRuns(Protocol):
    """Each method returns the position of the first block that it does not take, or their number: that block is the caller's, and where `goes_on` is
    set it then calls again for those behind it. `start`: 0 for a new event. `touched`: of the gpu in the change. `records`: where to note what
    becomes of each hash, None for nowhere."""

    goes_on: bool

    def add(
        self,
        start: int,
        hashes: list[int],
        keys: list[int],
        parent: int | None,
        touched: dict[int, bool],
        records: LeadRecords | None,
        revived: list[int] | None,
        is_claimed: bool,
        /,
    ) -> int:
        """One more copy of each block. `parent`: of the first one. `revived`: where to note the hashes that were among the removed ones.
        `is_claimed`: whether each hash claims its key."""

    def remove(
        self,
        start: int,
        hashes: list[int],
        not_held: list[int],
        touched: dict[int, bool],
        records: LeadRecords | None,
        gone: list[int] | None,
        is_plain: bool,
        is_all: bool,
        /,
    ) -> int:
        """One copy less of each, or with `is_all` all of them. `not_held`: where to note the hashes of which nothing is held. `gone`: where to note
        those that come to be among the removed ones or go from there. `is_plain`: see `BlockTable.has_plain_blocks`."""

    def play(
        self,
        events: Any,
        first: int,
        leads: int,
        root: int,
        stored_max: int,
        announces: bool,
        log: Any,
        touched: dict[int, bool] | None,
        records: LeadRecords | None,
        moved: list[int] | None,
        is_plain: bool,
        parked: Collection[int],
        awaited: Collection[int],
        /,
    ) -> Played:
        """Apply packed events from the one at `first` on, as far as that is done here: see `Played`.

        `leads`: bits of what in `events.said` is said of the lead group. `root`: key before the first block of a prompt. `stored_max`: how many
        events may store blocks. `announces`: whether the engine announces extra keys. `log`: in place of `touched`, or None. `moved`: where to note
        the hashes that come to be among the removed ones or go from there. `parked`, `awaited`: hashes that wait for their keys, and those they wait
        for.
        """


class BlockRunsInPython:
    """Takes only blocks that are all new, without a loop in Python."""

    goes_on = False

    def __init__(self, table: BlockTable, indexed: IndexedKeys) -> None:
        self._table = table
        self._indexed = indexed

    def add(
        self,
        start: int,
        hashes: list[int],
        keys: list[int],
        parent: int | None,
        touched: dict[int, bool],
        records: LeadRecords | None,
        revived: list[int] | None,
        is_claimed: bool,
        /,
    ) -> int:
        """All blocks or none."""
        if len(hashes) < RUN_MIN or self._indexed.claims.ambiguous:
            return 0
        held, removed = cast(BlocksInPython, self._table.held), cast(BlocksInPython, self._table.removed)
        claims = cast(KeyClaimsInPython, self._indexed.claims) if is_claimed else None
        new_keys = dict.fromkeys(keys, True)
        if len(new_keys) != len(hashes) or len(set(hashes)) != len(hashes) or not held.keys().isdisjoint(hashes):
            return 0
        if (claims is not None and not claims.are_free(keys)) or not cast(HeldKeysInPython, self._indexed.held[Tier.GPU]).add_new(new_keys):
            return 0
        if claims is not None:
            claims.claim_free(hashes, keys)
        for engine_hash in removed.keys() & hashes:
            del removed[engine_hash]
            self._table.large.pop(engine_hash, None)
            if revived is not None:
                revived.append(engine_hash)
        blocks = zip(hashes, map(Block, keys, (parent, *hashes)), strict=True)
        if records is None:
            held.update(blocks)
        else:
            records.update(new := dict(blocks))
            held.update(new)
        touched.update(new_keys)
        return len(hashes)

    def remove(self, start: int, *_: Any) -> int:
        """None."""
        return start

    def play(self, _events: object, first: int, *_: Any) -> Played:
        """None."""
        return first, 0, 0, 0, 0


def packed(table: BlockTable, indexed: IndexedKeys, copies_max: int, held_max: int) -> BlockRuns:
    """On packed tables. `held_max`: where more than so many blocks are held, `play` leaves an event."""
    held, removed = cast(Any, table.held), cast(Any, table.removed)
    gpu, claims = cast(Any, indexed.held[Tier.GPU]), cast(Any, indexed.claims)
    return core.BlockRuns(held, removed, table.more, table.large, gpu, claims, copies_max, *table.removed_limits, held_max)


def in_python(table: BlockTable, indexed: IndexedKeys, _copies_max: int, _held_max: int) -> BlockRuns:
    return BlockRunsInPython(table, indexed)


make_block_runs: Callable[[BlockTable, IndexedKeys, int, int], BlockRuns] = in_python if core is None else packed

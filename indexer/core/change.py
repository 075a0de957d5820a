"""What one applied batch does to a stream."""

from msgspec import Struct

from indexer.core.block_table import Records
from indexer.core.events import Tier


class HashMapping(Struct, frozen=True):
    """The block keys of engine hashes after a change. `keys`: engine hash → block key. `removed_hashes`: those that no longer have one."""

    keys: dict[int, int]
    removed_hashes: list[int]

    def __len__(self) -> int:
        return len(self.keys) + len(self.removed_hashes)


class Change:
    """Final values, not steps: applying a change twice is the same as applying it once.

    `reload`: all that the stream held is invalid. `cleared`: the gpu tier is emptied. Both come before `touched`: per tier, block key → held
    afterwards or not. `sequence`: of the engine's batch, where that is known. `records`: None where the store does not need them, and with `reload`.
    `hash_mapping`: None where the owner does not hand it on; beside `records` also where no block is offloaded: an engine hash then stands for the
    key of the block that its gpu record holds, or for none.
    """

    __slots__ = ("cleared", "hash_mapping", "records", "reload", "sequence", "touched")

    def __init__(self) -> None:
        self.reload = False
        self.cleared = False
        self.sequence: int | None = None
        self.hash_mapping: HashMapping | None = None
        self.records: Records | None = None
        self.touched: tuple[dict[int, bool], ...] = ({}, {}, {}, {}, {})  # one per tier, written out: made for every batch

    def clear_gpu(self) -> None:
        """Empty the gpu tier; what this change said of it before no longer counts."""
        self.cleared = True
        self.touched[Tier.GPU].clear()
        if self.records is not None:
            self.records[Tier.GPU].clear()

    def __bool__(self) -> bool:
        return self.reload or self.cleared or any(self.touched)

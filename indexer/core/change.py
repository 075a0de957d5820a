"""What one applied batch does to a stream."""

from collections.abc import Callable, Iterable
from typing import Protocol

from msgspec import Struct

from indexer.core.block_table import Records
from indexer.core.events import Tier
from indexer.core.groups import LEAD
from indexer.core.places import LEAD_GPU

Touched = tuple[dict[int, bool], ...]
"""Per tier, block key → held afterwards or not."""


class KeyLog(Protocol):
    """The same of one tier as the compiled core packs it: a key may be there several times, and the last time counts."""

    @property
    def has_removed(self) -> bool:
        """Whether any key is not held afterwards, or was not in between."""

    def __len__(self) -> int: ...
    def items(self) -> Iterable[tuple[int, bool]]: ...
    def get(self, key: int, /) -> bool | None: ...


class HashMapping(Struct, frozen=True):
    """The block keys of engine hashes after a change. `keys`: engine hash → block key. `removed_hashes`: those that no longer have one."""

    keys: dict[int, int]
    removed_hashes: list[int]

    def __len__(self) -> int:
        return len(self.keys) + len(self.removed_hashes)


class Change:
    """Final values, not steps: applying a change twice is the same as applying it once.

    `reload`: all that the stream held is invalid. `cleared`: the gpu tier is emptied, in every group. Both come before `touched`, what became of
    the blocks of the lead group, and `touched_in`, the same of each other slot. `sequence`: of the engine's batch, if known. `records`: None
    where the store does not need them, and with `reload`. `hash_mapping`: None where the owner does not hand it on; beside `records` also where
    there is one group and no block is offloaded: an engine hash then stands for the key of the block that its gpu record holds, or for none.
    `spans`: those of the batches in traces, packed as `indexer.tracing.current` says; empty where none is kept.
    """

    __slots__ = ("_touched", "cleared", "hash_mapping", "log", "records", "reload", "sequence", "spans", "touched_in")

    def __init__(self) -> None:
        self.reload = False
        self.cleared = False
        self.sequence: int | None = None
        self.hash_mapping: HashMapping | None = None
        self.records: Records | None = None
        self.spans = b""
        self._touched: Touched = ({}, {}, {}, {}, {})  # one per tier, written out: made for every batch
        self.touched_in: dict[int, Touched] = {}
        self.log: KeyLog | None = None
        """What became of the lead group's blocks on the gpu, packed by the compiled core. As long as it is there, `touched` has none of them."""

    @property
    def touched(self) -> Touched:
        """To be read or added to."""
        if self.log is not None:
            self._touched[Tier.GPU].update(self.log.items())
            self.log = None
        return self._touched

    @property
    def tiers(self) -> tuple[dict[int, bool] | KeyLog, ...]:
        """What `touched` says, to read: without a dict of what is packed."""
        return self._touched if self.log is None else (self.log, *self._touched[1:])

    def make_log(self, log: Callable[[], KeyLog]) -> KeyLog | None:
        """Where the compiled core notes what becomes of blocks on the gpu; None where `touched` has some of them already."""
        if self.log is None and not self._touched[Tier.GPU]:
            self.log = log()
        return self.log

    def touched_of(self, slot: int) -> Touched:
        """What became of the blocks of a slot's group; to be added to."""
        if slot == LEAD:
            return self._touched if self.log is None else self.touched  # a property costs a call
        touched = self.touched_in.get(slot)
        if touched is None:
            touched = self.touched_in[slot] = ({}, {}, {}, {}, {})
        return touched

    def clear_gpu(self) -> None:
        """Empty the gpu tier; what this change said of it before no longer counts."""
        self.cleared = True
        if self.records is not None:
            self.records[LEAD_GPU].clear()
        self.log = None
        self._touched[Tier.GPU].clear()
        for touched in self.touched_in.values():
            touched[Tier.GPU].clear()

    def __bool__(self) -> bool:
        return (
            self.reload or self.cleared or bool(self.log) or any(self._touched) or (bool(self.touched_in) and any(map(any, self.touched_in.values())))
        )

    def __len__(self) -> int:
        """How many blocks it touches."""
        touched = sum(map(len, self.touched))
        return touched + sum(len(keys) for tiers in self.touched_in.values() for keys in tiers) if self.touched_in else touched

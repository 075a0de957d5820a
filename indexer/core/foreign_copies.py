"""Copies below the gpu under hashes that are not the engine's own: a cache connector names its chunks itself (LMCache).

Their events have tokens and no extra keys, so whose blocks they are is not told: a copy of a salted block looks like one of an unsalted. A copy
counts where the gpu announced blocks of the same tokens without any; until then it waits, within the limit for parked blocks.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from itertools import islice

from indexer.core.block_keys import TOKEN_BYTES, chain_keys
from indexer.core.blocks import Block
from indexer.core.change import Change
from indexer.core.event_pieces import Steps
from indexer.core.events import Stored, Tier
from indexer.core.foreign_copy import ForeignCopy
from indexer.core.groups import CacheShape
from indexer.core.held_blocks import HeldBlocks
from indexer.core.places import FOREIGN, Touched
from indexer.core.waiting_list import WaitingList
from indexer.limits import StateLimits

# How many copies without keys are looked at after a batch: those that were looked at longest ago.
LOOKED_AT_MAX = 256
STEP_HASHES = 256


class ForeignCopies:
    """Those of one stream that wait.

    `waiting`: by their hashes, in the order in which they came; to read. `touched`: where to note the hashes that come, go or get their keys; None
    for nowhere.
    """

    def __init__(self, blocks: HeldBlocks, limits: StateLimits, touched: Touched | None = None) -> None:
        self._blocks = blocks
        self._touched = touched
        self._list: WaitingList[ForeignCopy] = WaitingList(limits.parked_max, limits.parked_bytes_max)
        self.waiting = self._list.entries
        self._missing: dict[int, dict[int, None]] = {}
        """Block key → the hashes of copies that wait for the gpu to announce it."""
        self._without_keys: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self.waiting)

    def __iter__(self) -> Iterator[int]:
        return iter(self.waiting)

    def get(self, engine_hash: int) -> ForeignCopy | None:
        """The copy that waits by this hash."""
        return self.waiting.get(engine_hash)

    def restore(self, engine_hash: int, copy: ForeignCopy) -> None:
        """Let a copy wait that a former owner of the stream recorded. Those that came first are restored first, after all blocks."""
        self._list.add(engine_hash, copy)
        if copy.keys is None:
            self._without_keys[engine_hash] = None
        else:
            self._try(engine_hash, copy, copy.keys)

    def _touch(self, engine_hash: int) -> None:
        if self._touched is not None:
            self._touched[FOREIGN].append(engine_hash)

    def add(self, event: Stored, root: int, place: int, now_s: float, key_size: int | None) -> Steps[int]:
        """Keep the chunks of an event. `key_size`: None while it is unknown. Returns how many had to go, the oldest first."""
        width = event.block_size * TOKEN_BYTES
        parent, dropped = event.parent, 0
        for position, engine_hash in enumerate(event.hashes):
            self.remove(engine_hash)
            tokens = event.tokens[position * width : (position + 1) * width]
            self._list.add(engine_hash, ForeignCopy(parent, root, tokens, place, now_s))
            self._without_keys[engine_hash] = None
            self._touch(engine_hash)
            parent = engine_hash
            if position % STEP_HASHES == STEP_HASHES - 1:
                dropped += self._list.drop_excess(self.remove)
                yield
        if key_size is not None:
            for start in range(0, len(event.hashes), STEP_HASHES):
                self._find_keys(key_size, event.hashes[start : start + STEP_HASHES])
                yield
        return dropped + self._list.drop_excess(self.remove)

    def _find_keys(self, key_size: int, hashes: Iterable[int]) -> None:
        """Compute the keys of those of these copies that have none, where their parents' are known."""
        for engine_hash in hashes:
            if engine_hash not in self._without_keys:
                continue
            self._without_keys.move_to_end(engine_hash)
            copy = self.waiting[engine_hash]
            if copy.parent is None:
                before: int | None = copy.root
            elif (waiting := self.waiting.get(copy.parent)) is not None:
                before = None if waiting.keys is None else waiting.keys[0]
            else:
                before = self._blocks.table.key_of(copy.parent)
            if before is None or not copy.tokens or len(copy.tokens) % (key_size * TOKEN_BYTES):
                continue
            former_size = copy.size
            copy.keys, copy.tokens = tuple(reversed(chain_keys(before, copy.tokens, key_size))), b""
            self._list.resized(former_size, copy.size)
            del self._without_keys[engine_hash]
            self._touch(engine_hash)
            self._try(engine_hash, copy, copy.keys)

    def follow(self, change: Change, shape: CacheShape | None) -> Steps[None]:
        """Count the copies that a batch makes countable."""
        if shape is None:
            return
        self._find_keys(shape.block_size, list(islice(self._without_keys, LOOKED_AT_MAX)))
        for tiers in (change.touched, *change.touched_in.values()):
            yield from self.settle(tiers[Tier.GPU])

    def settle(self, announced: Iterable[int]) -> Steps[None]:
        """These block keys were announced on the gpu: count the copies that waited for them."""
        for key in self._missing.keys() & announced:
            for engine_hash in self._missing.pop(key):
                copy = self.waiting[engine_hash]
                if copy.keys is not None:
                    self._try(engine_hash, copy, copy.keys)
                yield

    def _try(self, engine_hash: int, copy: ForeignCopy, keys: tuple[int, ...]) -> None:
        missing = next((key for key in keys if not self._blocks.keys.is_on_gpu(key)), None)
        if missing is not None:
            self._missing.setdefault(missing, {})[engine_hash] = None
            return
        self._list.pop(engine_hash)
        self._touch(engine_hash)
        self._blocks.add_known(engine_hash, Block(keys[0], copy.parent, 0), copy.place, keys, is_foreign=True)

    def remove(self, engine_hash: int) -> bool:
        """Forget a copy that waits. Returns whether there was one."""
        copy = self._list.pop(engine_hash)
        if copy is None:
            return False
        self._touch(engine_hash)
        self._without_keys.pop(engine_hash, None)
        for key in copy.keys or ():
            waiting = self._missing.get(key)
            if waiting is not None:
                waiting.pop(engine_hash, None)
                if not waiting:
                    del self._missing[key]
        return True

    def drop_before(self, since_s: float) -> Steps[int]:
        """Drop what came before this time. Returns how many went."""
        return self._list.drop_before(since_s, self.remove)

    def clear(self) -> None:
        """The lower tiers were emptied."""
        for engine_hash in self.waiting:
            self._touch(engine_hash)
        self._list.clear()
        self._missing.clear()
        self._without_keys.clear()

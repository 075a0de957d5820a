"""Blocks that wait for their key, and how they get it: from their parent's announcement, or from their own in another group or tier."""

from collections import Counter
from collections.abc import Callable, Iterable

from indexer.core.block_keys import TOKEN_BYTES, chain_keys
from indexer.core.blocks import Block
from indexer.core.change import Change
from indexer.core.event_pieces import Steps
from indexer.core.events import Stored, Tier
from indexer.core.groups import Groups
from indexer.core.held_blocks import HeldBlocks
from indexer.core.orphans import Orphans, group_and_tier, number_and_tier
from indexer.core.places import place_of

STEP_HASHES = 1_024

Covered = Callable[[int, Block, int, Tier], tuple[int, ...]]
"""The keys that a block covers in a slot and tier, its own first."""


class WaitingBlocks:
    """`orphans`: those that wait. `expected`: block key → the hashes of those that have it if the gpu announces it; to read. `tally`: where to count
    what becomes of them, by reason."""

    def __init__(self, orphans: Orphans, blocks: HeldBlocks, groups: Groups, covered: Covered, count_max: int, tally: Counter[str]) -> None:
        self.orphans = orphans
        self._blocks = blocks
        self._groups = groups
        self._covered = covered
        self._count_max = count_max
        self._tally = tally
        self.expected: dict[int, dict[int, None]] = {}

    def park(self, event: Stored, slot: int, now_s: float) -> None:
        """Keep blocks whose parent is unknown, one by one, until the parent appears."""
        assert event.parent is not None, "a block without a parent has its key at once"
        bytes_of_block = event.block_size * TOKEN_BYTES
        extra_keys = event.extra_keys or {}
        parent = event.parent
        of = group_and_tier(self._groups.number_in(slot), event.tier)
        for position, engine_hash in enumerate(event.hashes):
            parked = self.orphans.get(engine_hash)
            if parked is None or not parked.tokens:
                tokens, extra = event.tokens[position * bytes_of_block : (position + 1) * bytes_of_block], extra_keys.get(position, b"")
                if parked is None:
                    self.orphans.park(engine_hash, parent, tokens, extra, now_s)
                    self._tally["orphan"] += 1
                else:
                    self.orphans.announce(engine_hash, parked, parent, tokens, extra)
            self.orphans.add_copies(engine_hash, of)
            parent = engine_hash
        self._drop_over()

    def place_states(self, event: Stored, parent_key: int | None) -> Steps[None]:
        """Recurrent states that no other group of the batch names: the last one ends with the event's tokens. Whose they are is not told, so they
        count where the gpu announced a block of the same tokens. `parent_key`: the one before the event's first block, None where it is not known."""
        size = self._groups.key_size
        if not size or parent_key is None or not event.block_size or event.block_size % size:
            return
        keys = chain_keys(parent_key, event.state_tokens, size)
        for number, (engine_hash, key) in enumerate(zip(reversed(event.hashes), keys[:: -(event.block_size // size)], strict=False), 1):
            self.expect(engine_hash, key)
            if number % STEP_HASHES == 0:
                yield

    def wait(self, hashes: Iterable[int], number: int, tier: Tier, now_s: float) -> None:
        """Keep copies of blocks until an announcement with tokens says which keys they have. `number`: of their group."""
        of = group_and_tier(number, tier)
        for engine_hash in hashes:
            if engine_hash not in self.orphans:
                self.orphans.park(engine_hash, None, b"", b"", now_s)
                self._tally["orphan"] += 1
            self.orphans.add_copies(engine_hash, of)
        self._drop_over()

    def _drop_over(self) -> None:
        if dropped := self.orphans.drop_excess():
            self._tally["orphan_dropped"] += dropped

    def remove(self, hashes: Iterable[int], number: int, tier: Tier) -> None:
        """One copy less of each that waits."""
        of = group_and_tier(number, tier)
        for engine_hash in hashes:
            parked = self.orphans.get(engine_hash)
            if parked is not None and parked.copies.get(of):
                parked.copies[of] -= 1
                self.orphans.touch(engine_hash)

    def clear(self, *, of_gpu: bool) -> Steps[None]:
        """Their copies on the gpu are gone, or those below it."""
        return self.orphans.clear_copies(of_gpu=of_gpu)

    def adopt(self, hashes: Iterable[int]) -> Steps[None]:
        """These hashes have keys now: give keys to everything that waited for them, and to what waited for that."""
        for engine_hash in hashes:
            if engine_hash in self.orphans:
                self._settle(engine_hash)
            waiting = self.orphans.children(engine_hash)
            while waiting:
                child = waiting.pop()
                waiting.extend(self.orphans.children(child))
                self._settle(child)
                yield

    def expect(self, engine_hash: int, key: int) -> None:
        """A block that waits for its announcement has this key if the gpu announces it."""
        if self._blocks.keys.is_on_gpu(key):
            self._give_key(engine_hash, key)
            return
        if len(self.expected) >= self._count_max:
            self.expected.clear()
        self.expected.setdefault(key, {})[engine_hash] = None

    def follow(self, change: Change) -> Steps[None]:
        """Give keys to the blocks for which a batch announced the expected ones."""
        if not self.expected:
            return
        for tiers in (change.touched, *change.touched_in.values()):
            for key in self.expected.keys() & tiers[Tier.GPU]:
                for engine_hash in self.expected.pop(key):
                    self._give_key(engine_hash, key)
                    yield

    def _give_key(self, engine_hash: int, key: int) -> None:
        if engine_hash in self.orphans:
            self._settle(engine_hash, Block(key, engine_hash, 0))

    def _settle(self, engine_hash: int, block: Block | None = None) -> None:
        parked = self.orphans.pop(engine_hash)
        block = self._blocks.table.known(engine_hash) or block
        if block is None:
            parent_key = None if parked.parent is None else self._blocks.table.key_before(parked.parent)
            if parent_key is None:  # the parent was itself only remembered, and has just been forgotten
                self._tally["orphan_dropped"] += 1
                return
            parts = tuple(reversed(chain_keys(parent_key, parked.tokens, self._groups.key_size, {0: parked.extra})))
            block = Block(parts[0], None, 0)
            self._blocks.table.link(engine_hash, block, parked.parent, parts)
        copies: dict[int, tuple[int, tuple[int, ...]]] = {}
        for of, count in parked.copies.items():
            number, tier = number_and_tier(of)
            slot = self._groups.slot_of(number)
            if slot is not None:
                copies[place_of(slot, tier)] = count, self._covered(engine_hash, block, slot, tier)
        self._blocks.add_adopted(engine_hash, block, copies)
        self._tally["orphan_adopted"] += 1

"""What one stream holds, changed event by event.

    blocks    copies by engine hash, and the block keys that they hold: see `held_blocks`
    orphans   blocks whose parent is not known yet; bounded in number and time

An engine announces each physical block, so the same hash can be stored twice and has to be removed twice ("copies"); where that does
not hold (SGLang), one removal is enough ("set").
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from indexer.core.block_keys import TOKEN_BYTES, chain_keys, root_key
from indexer.core.block_table import (
    LEAD_GPU,
    PARKED,
    REMOVED,
    Block,
    BlockRecord,
    BlockTable,
    HashRecord,
    Touched,
    is_gpu,
    place_of,
)
from indexer.core.change import Change, HashMapping
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.groups import LEAD, CacheShape, Group, Groups
from indexer.core.held_blocks import HeldBlocks
from indexer.core.orphans import Orphans, Parked, group_and_tier, number_and_tier
from indexer.core.token_sample import TokenSample
from indexer.core.traits import Traits
from indexer.errors import Refused
from indexer.limits import StateLimits

Counting = Literal["copies", "set"]

# An enum's member costs as much to name as a look-up in a dict.
GPU = Tier.GPU

# How many names of adapters are remembered, and the longest. They are written to Redis with each batch.
ADAPTERS_MAX = 2_048
ADAPTER_LENGTH_MAX = 256
# Root keys that are cached, one for each adapter, and KV-cache groups that are remembered.
ROOTS_MAX = 4_096
GROUPS_MAX = 255


class StreamState:
    """Applies events in order and says, per batch, what changed. Pure: the caller brings the time.

    `tally` counts, by reason, the events and blocks that could not be used since it was last taken.
    """

    def __init__(
        self,
        model: str,
        hash_seed: str,
        counting: Counting = "copies",
        limits: StateLimits | None = None,
        offload_block_size: int | None = None,
        *,
        with_records: bool = False,
        with_hash_mapping: bool = False,
    ) -> None:
        """`with_records`: whether changes say what became of each engine hash. `with_hash_mapping`: and what it stands for where the record does not
        say it."""
        self._model = model
        self._hash_seed = hash_seed
        self._limits = limits or StateLimits()
        self.counting = counting
        self._copies_max = 1 if counting == "set" else self._limits.copies_max
        self._offload_block_size = offload_block_size
        self._with_records = with_records
        self._with_hash_mapping = with_hash_mapping
        self.tally: Counter[str] = Counter()
        self.removed: Counter[Tier] = Counter()
        self._sample = TokenSample()
        self._blocks = HeldBlocks(self._copies_max, self._limits.removed_max, self.tally)
        self._orphans = Orphans()
        self._reset()

    def _reset(self) -> None:
        self._groups = Groups(GROUPS_MAX)
        self._roots: dict[str | None, int] = {}
        self._batch: Sequence[Event] = ()
        self._clears = 0
        self.adapters: dict[str, None] = {}
        """Names of LoRA adapters that were announced, the longest ago first."""
        self._orphans = Orphans(self._orphans.touched)

    @property
    def shape(self) -> CacheShape | None:
        """How the blocks are cut; None before any block."""
        return self._groups.shape

    @property
    def other_block_size(self) -> int | None:
        """Of blocks that were passed over since their group's are of another size."""
        return self._groups.other_block_size

    @property
    def groups(self) -> list[Group]:
        """The KV-cache groups that were announced."""
        return list(self._groups.known)

    @property
    def stored(self) -> Counter[Tier]:
        """Copies added by tier, since it was last taken."""
        return self._blocks.stored

    @property
    def highest_token(self) -> int | None:
        """The highest token announced, in a sample of the events."""
        return self._sample.highest

    @property
    def parked(self) -> int:
        """How many blocks wait for their parent."""
        return len(self._orphans)

    @property
    def ambiguous(self) -> int:
        """How many keys are not indexed because two engine hashes claim them and nothing distinguishes their content."""
        return len(self._blocks.keys.claims.ambiguous)

    def count(self, tier: Tier, slot: int | None = None) -> int:
        """How many block keys a group holds in a tier, as the index should show them: the one in this slot, or that which has most."""
        return self._blocks.keys.count(tier, slot)

    def held(self, tier: Tier, slot: int = LEAD) -> set[int]:
        """The block keys that a group holds in a tier, as the index should show them."""
        return self._blocks.keys.shown(tier, slot)

    def forget(self) -> None:
        """Start again from nothing: the engine was restarted."""
        self._blocks.forget()
        self._reset()

    def drop_held(self) -> None:
        """Drop all blocks, but remember which hash had which key: the same engine goes on, but its removals were missed."""
        groups, adapters = self._groups, self.adapters
        self._blocks.drop_held()
        self._reset()
        self._groups, self.adapters = groups, adapters

    def apply(self, events: Sequence[Event], now_s: float) -> Change:
        """Apply one batch. Never raises for what a network can send: what cannot be used is tallied."""
        self._blocks.keys.change = Change()
        touched = self._note_touched() if self._with_records else None
        self._batch, self._clears = events, 0
        for event in events:
            try:
                match event:
                    case Stored():
                        self._store(event, now_s)
                    case Removed():
                        self._remove(event)
                    case Cleared():
                        self._clear()
            except Refused as refused:
                self.tally[refused.reason] += 1
        self._batch = ()
        if self._orphans:
            self.tally["orphan_dropped"] += self._orphans.drop_before(now_s - self._limits.parked_max_s)
        change = self._blocks.keys.change
        if touched is not None:
            self._describe(change, touched)
        return change

    def slot_of(self, number: int) -> int | None:
        """The slot of a KV-cache group; None for one that holds nothing."""
        return self._groups.slot_of(number)

    # A copy kept elsewhere

    def _note_touched(self) -> Touched:
        """From now on, note which engine hashes are touched."""
        touched = self._blocks.table.touched = {LEAD_GPU: {}, PARKED: {}}
        self._orphans.touched = touched[PARKED]
        return touched

    def _describe(self, change: Change, touched: Touched) -> None:
        """Say in a change what became of the engine hashes that it touched."""
        self._blocks.table.touched = self._orphans.touched = None
        change.records = {place: self.records(place, hashes) for place, hashes in touched.items() if hashes}
        if self._with_hash_mapping and (self._blocks.table.offloads or self._groups.are_several):
            mapped_key = self._blocks.table.mapped_key
            mapped = {engine_hash: mapped_key(engine_hash) for place, hashes in touched.items() if place != PARKED for engine_hash in hashes}
            keys = {engine_hash: key for engine_hash, key in mapped.items() if key is not None}
            change.hash_mapping = HashMapping(keys, [engine_hash for engine_hash, key in mapped.items() if key is None])

    def records(self, place: int, hashes: Iterable[int]) -> dict[int, HashRecord | None]:
        """What a place holds for these engine hashes; None where it holds nothing."""
        if place == LEAD_GPU:
            held = self._blocks.table.held
            return {engine_hash: block if (block := held.get(engine_hash)) is not None and block.copies else None for engine_hash in hashes}
        if place == PARKED:
            return {engine_hash: self._orphans.get(engine_hash) for engine_hash in hashes}
        if place == REMOVED:
            return {engine_hash: self._blocks.table.removed_record(engine_hash) for engine_hash in hashes}
        return {engine_hash: self._blocks.table.record(place, engine_hash) for engine_hash in hashes}

    @property
    def table(self) -> BlockTable:
        """The blocks by engine hash; to read, not to change."""
        return self._blocks.table

    @property
    def orphans(self) -> Orphans:
        """The blocks that wait for their parent."""
        return self._orphans

    def traits(self) -> Traits:
        """What reading further events depends on, besides the blocks."""
        return Traits(
            shape=self._groups.shape,
            announces_extra_keys=self._blocks.announces_extra_keys,
            offloads=self._blocks.table.offloads,
            unsized=self._groups.unsized,
            adapters=tuple(self.adapters),
        )

    def restore(
        self, traits: Traits, places: Iterable[tuple[int, Iterable[tuple[int, BlockRecord]]]], removed: Iterable[tuple[int, BlockRecord]] = ()
    ) -> None:
        """Hold what a former owner of the stream recorded, in place of everything. Orphans are parked by the caller."""
        self.forget()
        self._groups.restore(traits.shape, traits.unsized)
        self._blocks.announces_extra_keys, self._blocks.table.offloads = traits.announces_extra_keys, traits.offloads
        self.adapters = dict.fromkeys(traits.adapters)
        self._blocks.restore(places, removed)
        self._blocks.keys.change = Change()
        self.tally.clear()

    # Groups

    def _learn(self, event: Stored) -> None:
        """This event says something new of its group. The whole batch is looked at, once: what comes later in it may say more."""
        events, self._batch = self._batch or (event,), ()
        former = self._groups.learn(events)
        if former is None:
            return
        sizes = {group.number: group.block_size for group in self._groups.known}
        if any(sizes.get(group.number) == group.block_size and self._blocks.keys.holds(slot) for slot, group in enumerate(former.groups)):
            self.tally["block_size_changed"] += 1
        groups, adapters, announces_extra_keys = self._groups, self.adapters, self._blocks.announces_extra_keys
        self.forget()
        self._groups, self.adapters, self._blocks.announces_extra_keys = groups, adapters, announces_extra_keys
        self._blocks.keys.change.reload = True
        for hashes in (self._blocks.table.touched or {}).values():
            hashes.clear()

    def _covered(self, block: Block, slot: int, tier: Tier, block_size: int = 0) -> tuple[int, ...]:
        """The keys that a hash covers in a place: its own and those before it, by its block size."""
        width = self._groups.width(slot, 0 if tier is GPU else block_size or self._offload_block_size or 0)
        return (block.key,) if width == 1 else self._blocks.table.covered(block, width)

    # Storing

    def _store(self, event: Stored, now_s: float) -> None:
        if event.announces_extra_keys:
            self._blocks.announces_extra_keys = True
        if event.lora_name is not None:
            self._note_adapter(event.lora_name)
        if event.tier is not GPU or not event.tokens:
            self._store_by_hash(event, now_s)
            return
        slot = self._groups.seen(event)
        if slot is None:
            self._learn(event)
            slot = self._groups.settle(event)
        self._sample.until_next -= 1
        if not self._sample.until_next:
            self._sample.add(event.tokens)
        self._store_announced(event, slot, now_s)

    def _store_announced(self, event: Stored, slot: int, now_s: float) -> None:
        """Blocks on the gpu, with their tokens."""
        key_size = self._groups.key_size
        run = event.block_size // key_size
        if run > 1 and event.extra_keys:
            # In which of the block's parts they belong is not told. A group of smaller blocks announces the same hash.
            self._store_by_hash(event, now_s)
            return
        table = self._blocks.table
        place = place_of(slot, GPU)
        table.touch(place, event.hashes)
        parent_key = self._root(event.lora_name) if event.parent is None else table.key_of(event.parent)
        if parent_key is not None:
            keys = chain_keys(parent_key, event.tokens, key_size, event.extra_keys)
        else:
            first = table.key_of(event.hashes[0])
            if first is None:
                self._park(event, slot, now_s)
                return
            keys = [*[first] * run, *chain_keys(first, event.tokens, key_size, event.extra_keys, start=run)]
        if slot == LEAD:
            self._blocks.add(event, keys)
        else:
            self._blocks.add_in(place, event, keys, run, self._groups.width(slot))
        if self._orphans:
            for engine_hash in event.hashes:
                self._adopt(engine_hash)

    def _store_by_hash(self, event: Stored, now_s: float) -> None:
        """Blocks whose keys are those that their hashes have elsewhere. What has none yet waits for it."""
        if not self._groups.has_heard(event):
            self._learn(event)
        if not event.hashes:
            return
        slot = self._groups.slot_of(event.group)
        of = group_and_tier(self._groups.number_of(event.group), event.tier)
        place = None if slot is None else place_of(slot, event.tier)
        if place is not None:
            self._blocks.table.touch(place, event.hashes)
        for engine_hash in event.hashes:
            block = self._blocks.table.known(engine_hash)
            if block is None or slot is None or place is None:
                self._wait(engine_hash, of, now_s)
            else:
                self._blocks.add_known(engine_hash, block, place, self._covered(block, slot, event.tier, event.block_size))
        self.tally["orphan_dropped"] += self._orphans.drop_over(self._limits.parked_max)

    def _wait(self, engine_hash: int, of: int, now_s: float) -> None:
        """Keep a copy of a block until its own announcement, or its parent's, says which key it has."""
        parked = self._orphans.get(engine_hash)
        if parked is None:
            parked = self._orphans.park(engine_hash, None, b"", b"", now_s)
            self.tally["orphan"] += 1
        parked.copies[of] = min(parked.copies.get(of, 0) + 1, self._copies_max)
        self._orphans.touch(engine_hash)

    def _note_adapter(self, name: str) -> None:
        if len(name) > ADAPTER_LENGTH_MAX:
            return
        self.adapters.pop(name, None)
        if len(self.adapters) >= ADAPTERS_MAX:
            del self.adapters[next(iter(self.adapters))]
        self.adapters[name] = None

    def _root(self, lora_name: str | None) -> int:
        root = self._roots.get(lora_name)
        if root is None:
            root = root_key(self._model, lora_name, self._hash_seed)
            if len(self._roots) >= ROOTS_MAX:
                self._roots.clear()
            self._roots[lora_name] = root
        return root

    # Removing

    def _remove(self, event: Removed) -> None:
        slot = self._groups.slot_of(event.group)
        if slot is None:
            not_held = event.hashes
        else:
            place = place_of(slot, event.tier)
            self._blocks.table.touch(place, event.hashes)
            not_held = self._blocks.remove(event.hashes, place)
        if not_held and self._orphans:
            of = group_and_tier(self._groups.number_of(event.group), event.tier)
            for engine_hash in not_held:
                self._remove_parked(engine_hash, of)
        self.removed[event.tier] += len(event.hashes)

    def _remove_parked(self, engine_hash: int, of: int) -> None:
        parked = self._orphans.get(engine_hash)
        if parked is not None and parked.copies.get(of):
            parked.copies[of] -= 1
            self._orphans.touch(engine_hash)

    def _clear(self) -> None:
        """The gpu pool was reset. The lower tiers survive it; a second reset in the same batch is theirs."""
        self._clears += 1
        of_gpu = self._clears == 1
        if of_gpu:
            self._blocks.clear_gpu()
            for place, hashes in (self._blocks.table.touched or {}).items():
                if is_gpu(place):
                    hashes.clear()
        else:
            self._blocks.clear_lower()
        for engine_hash, parked in self._orphans.items():
            for of in [of for of in parked.copies if (number_and_tier(of)[1] is GPU) is of_gpu]:
                del parked.copies[of]
                self._orphans.touch(engine_hash)

    # Orphans

    def _park(self, event: Stored, slot: int, now_s: float) -> None:
        """Keep blocks whose parent is unknown, one by one, until the parent appears."""
        assert event.parent is not None, "a block without a parent has its key at once"
        bytes_of_block = event.block_size * TOKEN_BYTES
        extra_keys = event.extra_keys or {}
        parent = event.parent
        of = group_and_tier(self._groups.number_in(slot), event.tier)
        for position, engine_hash in enumerate(event.hashes):
            parked = self._orphans.get(engine_hash)
            if parked is None or not parked.tokens:
                tokens, extra = event.tokens[position * bytes_of_block : (position + 1) * bytes_of_block], extra_keys.get(position, b"")
                if parked is None:
                    parked = self._orphans.park(engine_hash, parent, tokens, extra, now_s)
                    self.tally["orphan"] += 1
                else:
                    self._orphans.announce(engine_hash, parked, parent, tokens, extra)
            parked.copies[of] = min(parked.copies.get(of, 0) + 1, self._copies_max)
            self._orphans.touch(engine_hash)
            parent = engine_hash
        self.tally["orphan_dropped"] += self._orphans.drop_over(self._limits.parked_max)

    def _adopt(self, engine_hash: int) -> None:
        """Give keys to everything that waited for this hash, and to what waited for that."""
        if engine_hash in self._orphans:
            self._settle(engine_hash, self._orphans.pop(engine_hash))
        for child, parked in self._orphans.pop_descendants(engine_hash):
            self._settle(child, parked)

    def _settle(self, engine_hash: int, parked: Parked) -> None:
        block = self._blocks.table.known(engine_hash)
        if block is None:
            parent_key = None if parked.parent is None else self._blocks.table.key_of(parked.parent)
            if parent_key is None:  # the parent was itself only remembered, and has just been forgotten
                self.tally["orphan_dropped"] += 1
                return
            block = Block(chain_keys(parent_key, parked.tokens, self._groups.key_size, {0: parked.extra})[-1], parked.parent, 0)
        copies: dict[int, tuple[int, tuple[int, ...]]] = {}
        for of, count in parked.copies.items():
            number, tier = number_and_tier(of)
            slot = self._groups.slot_of(number)
            if slot is not None:
                copies[place_of(slot, tier)] = count, self._covered(block, slot, tier)
        self._blocks.add_adopted(engine_hash, block, copies)
        self.tally["orphan_adopted"] += 1

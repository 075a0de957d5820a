"""What one stream holds, changed event by event.

    blocks    copies by engine hash, and the block keys that they hold: see `held_blocks`
    orphans   blocks whose parent is not known yet; bounded in number and time

An engine announces each physical block, so the same hash can be stored twice and has to be removed twice ("copies"); where that does
not hold (SGLang), one removal is enough ("set").
"""

from collections import Counter, defaultdict
from collections.abc import Iterable
from typing import Literal

from indexer.core.attention_groups import AttentionGroups
from indexer.core.block_keys import TOKEN_BYTES, chain_keys, root_key
from indexer.core.block_table import Block, BlockRecord, BlockTable, HashRecord
from indexer.core.change import Change, HashMapping
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.held_blocks import HeldBlocks
from indexer.core.orphans import Orphans, Parked
from indexer.core.parts import PARKED, REMOVED, Touched
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
GROUPS_MAX = 256


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
        self._with_hash_mapping = with_hash_mapping
        self.tally: Counter[str] = Counter()
        self.removed: Counter[Tier] = Counter()
        self._sample = TokenSample()
        self._touched: Touched | None = defaultdict(list) if with_records else None
        self._blocks = HeldBlocks(self._copies_max, self._limits.removed_max, self.tally, self._touched)
        self._orphans = Orphans(self._touched)
        self._reset()

    def _reset(self) -> None:
        self.block_size: int | None = None
        self.other_block_size: int | None = None
        """Of blocks that were passed over since the stream's are of another size."""
        self._block_size_is_gpu = False
        self._groups = AttentionGroups(GROUPS_MAX)
        self._roots: dict[str | None, int] = {}
        self.adapters: dict[str, None] = {}
        """Names of LoRA adapters that were announced, the longest ago first."""
        self._orphans = Orphans(self._touched)

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

    def count(self, tier: Tier) -> int:
        """How many block keys are held in a tier, as the index should show them."""
        return self._blocks.keys.count(tier)

    def held(self, tier: Tier) -> set[int]:
        """The block keys that are held in a tier, as the index should show them."""
        return self._blocks.keys.shown(tier)

    def forget(self) -> None:
        """Start again from nothing: the engine was restarted."""
        self._blocks.forget()
        self._reset()

    def drop_held(self) -> None:
        """Drop all blocks, but remember which hash had which key: the same engine goes on, but its removals were missed."""
        block_size, by_gpu, adapters = self.block_size, self._block_size_is_gpu, self.adapters
        self._blocks.drop_held()
        self._reset()
        self.block_size, self._block_size_is_gpu, self.adapters = block_size, by_gpu, adapters

    def apply(self, events: Iterable[Event], now_s: float) -> Change:
        """Apply one batch. Never raises for what a network can send: what cannot be used is tallied."""
        self._blocks.keys.change = Change()
        if self._touched is not None:
            self._blocks.keys.change.records = {GPU: {}}
            self._touched.clear()
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
        if self._orphans:
            self.tally["orphan_dropped"] += self._orphans.drop_before(now_s - self._limits.parked_max_s)
        change = self._blocks.keys.change
        if self._touched or self._blocks.table.offloads:
            self._describe(change)
        return change

    # A copy kept elsewhere

    def _touch(self, tier: Tier, hashes: Iterable[int]) -> None:
        """Say in the change what these engine hashes hold in a tier, even where that is nothing."""
        records = self._blocks.keys.change.records
        if tier is not GPU:
            self._blocks.table.touch_lower(tier, hashes)
        elif records is not None:
            records[GPU].update(self.records(GPU, hashes))

    def _describe(self, change: Change) -> None:
        """Say in a change what became of the engine hashes that it touched below the gpu, and what those of all tiers stand for."""
        if self._touched is None or change.records is None:
            return
        for part, touched in self._touched.items():
            change.records[part] = self.records(part, touched)
        if self._with_hash_mapping and self._blocks.table.offloads:
            mapped_key = self._blocks.table.mapped_key
            mapped = {engine_hash: mapped_key(engine_hash) for part, records in change.records.items() if part != PARKED for engine_hash in records}
            keys = {engine_hash: key for engine_hash, key in mapped.items() if key is not None}
            change.hash_mapping = HashMapping(keys, [engine_hash for engine_hash, key in mapped.items() if key is None])

    def records(self, part: int, hashes: Iterable[int]) -> dict[int, HashRecord | None]:
        """What a part holds for these engine hashes; None where it holds nothing."""
        if part == GPU:
            held = self._blocks.table.held
            return {engine_hash: block if (block := held.get(engine_hash)) is not None and block.copies else None for engine_hash in hashes}
        if part == PARKED:
            return {engine_hash: self._orphans.get(engine_hash) for engine_hash in hashes}
        if part == REMOVED:
            return {engine_hash: self._blocks.table.removed_record(engine_hash) for engine_hash in hashes}
        return {engine_hash: self._blocks.table.record(Tier(part), engine_hash) for engine_hash in hashes}

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
            block_size=self.block_size,
            block_size_is_gpu=self._block_size_is_gpu,
            announces_extra_keys=self._blocks.announces_extra_keys,
            indexed_group=self._groups.indexed,
            groups=dict(self._groups.is_full),
            offloads=self._blocks.table.offloads,
            adapters=tuple(self.adapters),
        )

    def restore(
        self, traits: Traits, tiers: Iterable[tuple[Tier, Iterable[tuple[int, BlockRecord]]]], removed: Iterable[tuple[int, BlockRecord]] = ()
    ) -> None:
        """Hold what a former owner of the stream recorded, in place of everything. Orphans are parked by the caller."""
        self.forget()
        self.block_size, self._block_size_is_gpu = traits.block_size, traits.block_size_is_gpu
        self._groups = AttentionGroups(GROUPS_MAX, traits.indexed_group, dict(traits.groups))
        self._blocks.announces_extra_keys, self._blocks.table.offloads = traits.announces_extra_keys, traits.offloads
        self.adapters = dict.fromkeys(traits.adapters)
        self._blocks.restore(tiers, removed)
        self._blocks.keys.change = Change()
        self.tally.clear()

    # Storing

    def _store(self, event: Stored, now_s: float) -> None:
        if not self._groups.is_indexed(event):
            raise Refused("other_attention")
        if event.announces_extra_keys:
            self._blocks.announces_extra_keys = True
        if event.lora_name is not None:
            self._note_adapter(event.lora_name)
        if not event.hashes:
            return
        if not event.tokens or (event.tier is not GPU and self._covers_many(event)):
            self._store_known(event)
            return
        self._settle_block_size(event)
        self._sample.until_next -= 1
        if not self._sample.until_next:
            self._sample.add(event.tokens)
        parent_key = self._root(event.lora_name) if event.parent is None else self._blocks.table.key_of(event.parent)
        if parent_key is not None:
            keys = chain_keys(parent_key, event.tokens, event.block_size, event.extra_keys)
        else:
            first = self._blocks.table.key_of(event.hashes[0])
            if first is None:
                self._park(event, now_s)
                return
            keys = [first, *chain_keys(first, event.tokens, event.block_size, event.extra_keys, start=1)]
        self._blocks.add(event, keys)
        if self._orphans:
            for engine_hash in event.hashes:
                self._adopt(engine_hash)

    def _covers_many(self, event: Stored) -> bool:
        """Whether each hash of a lower tier covers several gpu blocks."""
        return self.block_size is not None and event.block_size > self.block_size and event.block_size % self.block_size == 0

    def _settle_block_size(self, event: Stored) -> None:
        if event.block_size == self.block_size:
            self._block_size_is_gpu |= event.tier is GPU
        elif self.block_size is None:
            self.block_size = event.block_size
            self._block_size_is_gpu = event.tier is GPU
        elif event.tier is GPU and not self._block_size_is_gpu:
            # What a lower tier called a block was a run of them: its keys were of the wrong length.
            groups, adapters = self._groups, self.adapters
            self.forget()
            self._groups, self.adapters = groups, adapters
            self.block_size, self._block_size_is_gpu = event.block_size, True
            self._blocks.announces_extra_keys = event.announces_extra_keys
            self._blocks.keys.change.reload = True
        else:
            self.other_block_size = event.block_size
            raise Refused("block_size")

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

    def _store_known(self, event: Stored) -> None:
        """A tier update for hashes that were announced with their tokens before."""
        self._touch(event.tier, event.hashes)
        for engine_hash in event.hashes:
            block = self._blocks.table.known(engine_hash)
            if block is None:
                parked = self._orphans.get(engine_hash)
                if parked is None:
                    self.tally["unknown_hash"] += 1
                else:
                    parked.copies[event.tier] = min(parked.copies.get(event.tier, 0) + 1, self._copies_max)
                    self._orphans.touch(engine_hash)
                continue
            self._blocks.add_known(engine_hash, block, event.tier, () if event.tier is GPU else self._covered(block, event.block_size))

    def _covered(self, block: Block, block_size: int) -> tuple[int, ...]:
        """The keys that an offloaded hash covers: its own and those before it, by its block size."""
        size = block_size or self._offload_block_size or 0
        return self._blocks.table.covered(block, size // self.block_size if self.block_size and size % self.block_size == 0 else 1)

    # Removing

    def _remove(self, event: Removed) -> None:
        if event.group is not None and self._groups.indexed is not None and event.group != self._groups.indexed:
            raise Refused("other_attention")
        for engine_hash in self._blocks.remove(event.hashes, event.tier):
            self._remove_parked(engine_hash, event.tier)
        self.removed[event.tier] += len(event.hashes)

    def _remove_parked(self, engine_hash: int, tier: Tier) -> None:
        parked = self._orphans.get(engine_hash)
        if parked is not None and parked.copies.get(tier):
            parked.copies[tier] -= 1
            self._orphans.touch(engine_hash)

    def _clear(self) -> None:
        """The gpu pool was reset; the lower tiers survive it."""
        self._blocks.clear_gpu()
        for engine_hash, parked in self._orphans.items():
            if parked.copies.pop(Tier.GPU, None):
                self._orphans.touch(engine_hash)

    # Orphans

    def _park(self, event: Stored, now_s: float) -> None:
        """Keep blocks whose parent is unknown, one by one, until the parent appears."""
        assert event.parent is not None, "a block without a parent has its key at once"
        self._touch(event.tier, event.hashes)
        width = event.block_size * TOKEN_BYTES
        extra_keys = event.extra_keys or {}
        parent = event.parent
        for position, engine_hash in enumerate(event.hashes):
            parked = self._orphans.get(engine_hash)
            if parked is None:
                tokens = event.tokens[position * width : (position + 1) * width]
                parked = self._orphans.park(engine_hash, parent, tokens, extra_keys.get(position, b""), now_s)
                self.tally["orphan"] += 1
            parked.copies[event.tier] = min(parked.copies.get(event.tier, 0) + 1, self._copies_max)
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
            parent_key = self._blocks.table.key_of(parked.parent)
            if parent_key is None:  # the parent was itself only remembered, and has just been forgotten
                self.tally["orphan_dropped"] += 1
                return
            (key,) = chain_keys(parent_key, parked.tokens, len(parked.tokens) // TOKEN_BYTES, {0: parked.extra})
            block = Block(key, parked.parent, 0)
        self._blocks.add_adopted(engine_hash, block, parked.copies)
        self.tally["orphan_adopted"] += 1

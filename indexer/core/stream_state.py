"""What one stream holds: engine hashes, their block keys, and how many copies lie in which tier.

    blocks    engine hash → Block(key, parent, copies on the gpu)     everything held in any tier
    lower     tier → engine hash → LowerCopy(count, keys it covers)   the tiers below the gpu
    held      tier → HeldKeys                                         a key is held while any engine hash of it is
    removed   engine hash → Block                                     bounded memory of what was held: parents, late offload announcements
    orphans   blocks whose parent is not known yet                    bounded in number and time

An engine announces per physical block, so the same hash can be stored twice and has to be removed twice ("copies"); where that does
not hold (SGLang), one removal is enough ("set").
"""

import sys
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from msgspec import Struct

from indexer.core.block_keys import TOKEN_BYTES, chain_keys, root_key
from indexer.core.change import Change
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.held_keys import HeldKeys
from indexer.core.orphans import Orphans, Parked
from indexer.errors import Refused
from indexer.limits import StateLimits

Counting = Literal["copies", "set"]

# An enum's member costs as much to name as a look-up in a dict.
GPU = Tier.GPU

# Shorter runs are faster one by one.
RUN_MIN = 4

# All tokens are looked at until there were so many, then those of every so many-th event: the highest one is for explanations only.
SAMPLED_TOKENS_MIN = 4_096
SAMPLED_EVENTS = 64
# Names of adapters that are remembered, and the longest of them. They go with each batch to Redis.
ADAPTERS_MAX = 128
ADAPTER_LENGTH_MAX = 256

MAIN_ATTENTION = frozenset({"full_attention", "mla_attention", "sink_full_attention"})


class Block(Struct, gc=False):
    """A block known by its engine hash. `copies`: physical copies on the gpu. There are millions: no garbage collector looks at them."""

    key: int
    parent: int | None
    copies: int = 1


class LowerCopy(Struct, gc=False):
    """What one engine hash holds in a lower tier: the keys of the gpu blocks that it covers."""

    keys: tuple[int, ...]
    count: int = 0


Touched = tuple[dict[int, None], ...]
"""Engine hashes by tier, and behind the tiers those of parked and of removed blocks."""
PARKED = len(Tier)
REMOVED = PARKED + 1


class BlockRecord(Struct, frozen=True, gc=False):
    """One engine hash in one tier. `keys`: its own block key, then those of the blocks before it that it covers."""

    copies: int
    parent: int | None
    keys: tuple[int, ...]


class Traits(Struct, frozen=True, omit_defaults=True):
    """What reading a stream's events depends on, besides the blocks that it holds. `adapters`: names of LoRA adapters that were announced."""

    block_size: int | None
    block_size_is_gpu: bool
    announces_extra_keys: bool
    indexed_group: int | None
    groups: dict[int, bool]
    offloads: bool
    adapters: tuple[str, ...] = ()


class StreamState:
    """Applies events in order and says, per batch, what changed. Pure: the caller brings the time.

    `tally` counts, by reason, the events and blocks that could not be used since it was last taken.
    """

    def __init__(
        self, model: str, hash_seed: str, counting: Counting = "copies", limits: StateLimits | None = None, offload_block_size: int | None = None
    ) -> None:
        self._model = model
        self._hash_seed = hash_seed
        self._limits = limits or StateLimits()
        self.counting = counting
        self._copies_max = 1 if counting == "set" else self._limits.copies_max
        self._offload_block_size = offload_block_size
        self.tally: Counter[str] = Counter()
        self.stored: Counter[Tier] = Counter()
        self.removed: Counter[Tier] = Counter()
        self._removed: dict[int, Block] = {}
        self.highest_token: int | None = None
        """The highest token announced, about: of a sample."""
        self._sampled_tokens = 0
        self._until_sample = 1
        self._offloads = False
        """Whether any tier below the gpu was seen: then a removed block may yet be announced there."""
        self.touched: Touched | None = None
        """Where somebody keeps a copy of this state: the engine hashes whose records may have changed since it was last looked at."""
        self._reset()

    def _reset(self) -> None:
        self.block_size: int | None = None
        self.other_block_size: int | None = None
        """Of blocks that were passed over since the stream's are of another size."""
        self._block_size_is_gpu = False
        self._announces_extra_keys = False
        self._indexed_group: int | None = None
        self._groups: dict[int, bool] = {}
        self._roots: dict[str | None, int] = {}
        self.adapters: dict[str, None] = {}
        """Names of LoRA adapters that were announced, the oldest first."""
        self._blocks: dict[int, Block] = {}
        self._lower: tuple[dict[int, LowerCopy], ...] = tuple({} for _ in Tier)
        self._held: tuple[HeldKeys, ...] = tuple(HeldKeys() for _ in Tier)
        self._claims: dict[int, set[int]] = {}
        self._ambiguous: set[int] = set()
        self._orphans = Orphans(None if self.touched is None else self.touched[PARKED])
        self._change = Change()

    @property
    def parked(self) -> int:
        """How many blocks wait for their parent."""
        return len(self._orphans)

    @property
    def ambiguous(self) -> int:
        """How many keys are not indexed because two engine hashes claim them and nothing tells their content apart."""
        return len(self._ambiguous)

    def count(self, tier: Tier) -> int:
        """How many block keys are held in a tier, as the index should show them."""
        held = self._held[tier].keys
        return len(held) - sum(key in held for key in self._ambiguous)

    def held(self, tier: Tier) -> set[int]:
        """The block keys that are held in a tier, as the index should show them."""
        return self._held[tier].keys - self._ambiguous

    def forget(self) -> None:
        """Start again from nothing: the engine was restarted."""
        self._removed.clear()
        self._offloads = False
        self._reset()

    def lose(self) -> None:
        """Hold nothing any more, but remember which hash had which key: the same engine goes on, but what it removed was missed."""
        block_size, by_gpu, announces, adapters = self.block_size, self._block_size_is_gpu, self._announces_extra_keys, self.adapters
        for engine_hash, block in self._blocks.items():
            block.copies = 0
            self._remember(engine_hash, block)
        self._reset()
        self.block_size, self._block_size_is_gpu, self._announces_extra_keys, self.adapters = block_size, by_gpu, announces, adapters

    def apply(self, events: Iterable[Event], now_s: float) -> Change:
        """Apply one batch. Never raises for what a network can send: what cannot be used is tallied."""
        self._change = Change()
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
        return self._change

    # A copy kept elsewhere

    def track(self) -> Touched:
        """Begin a new record of what is touched. Returns the former one, of nothing where there was none."""
        before = self.touched
        self.touched = tuple({} for _ in range(REMOVED + 1))
        self._orphans.touched = self.touched[PARKED]
        return before or tuple({} for _ in range(REMOVED + 1))

    def untrack(self) -> None:
        """Nobody will ask what was touched."""
        self.touched = self._orphans.touched = None

    def hashes(self, tier: Tier) -> list[int]:
        """The engine hashes that are held in a tier."""
        if tier is Tier.GPU:
            return [engine_hash for engine_hash, block in self._blocks.items() if block.copies]
        return list(self._lower[tier])

    @property
    def blocks(self) -> Mapping[int, Block]:
        """Engine hash → block, for all that is held in any tier."""
        return self._blocks

    @property
    def orphans(self) -> Orphans:
        """The blocks that wait for their parent."""
        return self._orphans

    def removed_hashes(self) -> list[int]:
        """The engine hashes that are remembered although nothing holds them; none where nothing is offloaded: then nobody asks for them."""
        return list(self._removed) if self._offloads else []

    def removed_record(self, engine_hash: int) -> BlockRecord | None:
        """What is remembered of a block that nothing holds."""
        block = self._removed.get(engine_hash)
        return None if block is None else BlockRecord(0, block.parent, (block.key,))

    def record(self, tier: Tier, engine_hash: int) -> BlockRecord | None:
        """What is held for an engine hash in a tier."""
        block = self._blocks.get(engine_hash)
        if block is None:
            return None
        if tier is Tier.GPU:
            return BlockRecord(block.copies, block.parent, (block.key,)) if block.copies else None
        lower = self._lower[tier].get(engine_hash)
        return None if lower is None else BlockRecord(lower.count, block.parent, lower.keys)

    def traits(self) -> Traits:
        """What reading further events depends on, besides the blocks."""
        groups, adapters = dict(self._groups), tuple(self.adapters)
        return Traits(self.block_size, self._block_size_is_gpu, self._announces_extra_keys, self._indexed_group, groups, self._offloads, adapters)

    def restore(
        self, traits: Traits, tiers: Iterable[tuple[Tier, Iterable[tuple[int, BlockRecord]]]], removed: Iterable[tuple[int, BlockRecord]] = ()
    ) -> None:
        """Hold what a former owner of the stream recorded, in place of everything. Orphans are parked by the caller."""
        self.forget()
        self.block_size, self._block_size_is_gpu, self._announces_extra_keys = (
            traits.block_size,
            traits.block_size_is_gpu,
            traits.announces_extra_keys,
        )
        self._indexed_group, self._groups, self._offloads = traits.indexed_group, dict(traits.groups), traits.offloads
        self.adapters = dict.fromkeys(traits.adapters)
        self._removed.update((engine_hash, Block(record.keys[0], record.parent, 0)) for engine_hash, record in removed)
        for tier, records in tiers:
            for engine_hash, record in records:
                block = self._blocks.get(engine_hash)
                if block is None:
                    block = self._blocks[engine_hash] = Block(record.keys[0], record.parent, 0)
                    self._claim(engine_hash, block.key)
                if tier is Tier.GPU:
                    block.copies = record.copies
                else:
                    self._lower[tier][engine_hash] = LowerCopy(record.keys, record.copies)
                self._hold_keys(tier, record.keys)
        self._change = Change()
        self.tally.clear()

    # Storing

    def _store(self, event: Stored, now_s: float) -> None:
        if not self._is_main(event):
            raise Refused("other_attention")
        if event.announces_extra_keys:
            self._announces_extra_keys = True
        if event.lora_name is not None:
            self._note_adapter(event.lora_name)
        if not event.hashes:
            return
        if self.touched is not None:
            self.touched[event.tier].update(dict.fromkeys(event.hashes))
        if not event.tokens or (event.tier is not GPU and self._covers_many(event)):
            self._store_known(event)
            return
        self._settle_block_size(event)
        self._until_sample -= 1
        if not self._until_sample:
            self._sample(event.tokens)
        parent_key = self._root(event.lora_name) if event.parent is None else self._key_of(event.parent)
        if parent_key is not None:
            keys = chain_keys(parent_key, event.tokens, event.block_size, event.extra_keys)
        else:
            first = self._key_of(event.hashes[0])
            if first is None:
                self._park(event, now_s)
                return
            keys = [first, *chain_keys(first, event.tokens, event.block_size, event.extra_keys, start=1)]
        self._hold(event, keys)
        if self._orphans:
            for engine_hash in event.hashes:
                self._adopt(engine_hash)

    def _is_main(self, event: Stored) -> bool:
        """Only one group of the main attention is indexed; which one, the first announcement says."""
        if event.group is None and event.kind is None:
            return True
        group = event.group or 0
        is_main = event.kind in MAIN_ATTENTION or (event.kind is None and self._groups.get(group, group == 0))
        if len(self._groups) < self._limits.groups_max:
            self._groups[group] = is_main
        if is_main and self._indexed_group is None:
            self._indexed_group = group
        return is_main and group == self._indexed_group

    def _covers_many(self, event: Stored) -> bool:
        """Whether each hash of a lower tier stands for several gpu blocks."""
        return self.block_size is not None and event.block_size > self.block_size and event.block_size % self.block_size == 0

    def _settle_block_size(self, event: Stored) -> None:
        if event.block_size == self.block_size:
            self._block_size_is_gpu |= event.tier is GPU
        elif self.block_size is None:
            self.block_size = event.block_size
            self._block_size_is_gpu = event.tier is GPU
        elif event.tier is GPU and not self._block_size_is_gpu:
            # What a lower tier called a block was a run of them: its keys were of the wrong length.
            groups, indexed_group, adapters = self._groups, self._indexed_group, self.adapters
            self.forget()
            self._groups, self._indexed_group, self.adapters = groups, indexed_group, adapters
            self.block_size, self._block_size_is_gpu = event.block_size, True
            self._announces_extra_keys = event.announces_extra_keys
            self._change.reload = True
        else:
            self.other_block_size = event.block_size
            raise Refused("block_size")

    def _note_adapter(self, name: str) -> None:
        if name in self.adapters or len(name) > ADAPTER_LENGTH_MAX:
            return
        if len(self.adapters) >= ADAPTERS_MAX:
            del self.adapters[next(iter(self.adapters))]
        self.adapters[name] = None

    def _sample(self, tokens: bytes) -> None:
        """Look for the highest token."""
        packed = array("I", tokens)
        if sys.byteorder == "big":
            packed.byteswap()
        self.highest_token = max(self.highest_token or 0, max(packed))
        self._sampled_tokens += len(packed)
        self._until_sample = 1 if self._sampled_tokens < SAMPLED_TOKENS_MIN else SAMPLED_EVENTS

    def _root(self, lora_name: str | None) -> int:
        root = self._roots.get(lora_name)
        if root is None:
            root = root_key(self._model, lora_name, self._hash_seed)
            if len(self._roots) >= self._limits.roots_max:
                self._roots.clear()
            self._roots[lora_name] = root
        return root

    def _known(self, engine_hash: int) -> Block | None:
        return self._blocks.get(engine_hash) or self._removed.get(engine_hash)

    def mapped_key(self, engine_hash: int) -> int | None:
        """The block key that an engine hash stands for when somebody asks by it; None where it stands for none.

        A hash counts while a tier holds a block by it. Where blocks are offloaded it also counts as long as the removed block is remembered: its key
        may be held by the offloaded run of a later hash, which covers the blocks before it.
        """
        block = self._blocks.get(engine_hash) or (self._removed.get(engine_hash) if self._offloads else None)
        return None if block is None else block.key

    def _key_of(self, engine_hash: int) -> int | None:
        block = self._known(engine_hash)
        return None if block is None else block.key

    def _hold(self, event: Stored, keys: Sequence[int]) -> None:
        """Add one copy of each block. This and what it calls is the hot path of ingestion."""
        if self._hold_new(event, keys):
            return
        blocks, tier, copies_max = self._blocks, event.tier, self._copies_max
        held = self._held[GPU]
        touched = self._change.touched[GPU]
        plain = tier is GPU and self._announces_extra_keys
        parent = event.parent
        for engine_hash, key in zip(event.hashes, keys, strict=True):
            block = blocks.get(engine_hash)
            if block is None:
                block = blocks[engine_hash] = Block(key, parent, 0)
                self._revive(engine_hash)
            elif block.key != key:
                self.tally["key_conflict"] += 1
                parent = engine_hash
                continue
            if not plain:
                self._claim(engine_hash, key)
            if tier is not GPU:
                self._hold_lower(engine_hash, tier, (key,))
            elif not block.copies:
                block.copies = 1
                held.add(key)
                if key not in self._ambiguous:
                    touched[key] = True  # also where another hash holds it: see _hold_keys
            elif block.copies < copies_max:
                block.copies += 1
            parent = engine_hash
        self.stored[tier] += len(keys)

    def _hold_new(self, event: Stored, keys: Sequence[int]) -> bool:
        """The same, without a loop of ours, for a run of blocks that are all new on the gpu. Returns whether it was that."""
        hashes = event.hashes
        if len(hashes) < RUN_MIN or event.tier is not GPU or not self._announces_extra_keys or self._ambiguous:
            return False
        touched = dict.fromkeys(keys, True)
        if len(touched) != len(hashes) or len(set(hashes)) != len(hashes) or not self._blocks.keys().isdisjoint(hashes):
            return False
        if not self._held[GPU].add_new(touched):
            return False
        if self._removed:
            for engine_hash in self._removed.keys() & hashes:
                self._revive(engine_hash)
        self._blocks.update(zip(hashes, map(Block, keys, (event.parent, *hashes)), strict=True))
        self._change.touched[GPU].update(touched)
        self.stored[GPU] += len(hashes)
        return True

    def _hold_lower(self, engine_hash: int, tier: Tier, keys: tuple[int, ...]) -> None:
        if not self._offloads:
            self._offloads = True
            self._touch_removed(self._removed)
        copy = self._lower[tier].get(engine_hash)
        if copy is None:
            copy = self._lower[tier][engine_hash] = LowerCopy(keys)
            self._hold_keys(tier, keys)
        copy.count = min(copy.count + 1, self._copies_max)

    def _hold_keys(self, tier: Tier, keys: Iterable[int]) -> None:
        """A key that another hash holds already is told of again: who reads in pieces, while one takes the place of the other, may see neither."""
        held, touched = self._held[tier], self._change.touched[tier]
        for key in keys:
            held.add(key)
            if key not in self._ambiguous:
                touched[key] = True

    def _release_keys(self, tier: Tier, keys: Iterable[int]) -> None:
        held, touched = self._held[tier], self._change.touched[tier]
        for key in keys:
            if held.remove(key):
                touched[key] = False

    def _store_known(self, event: Stored) -> None:
        """A tier update for hashes that were announced with their tokens before."""
        for engine_hash in event.hashes:
            block = self._known(engine_hash)
            if block is None:
                parked = self._orphans.get(engine_hash)
                if parked is None:
                    self.tally["unknown_hash"] += 1
                else:
                    parked.copies[event.tier] = min(parked.copies.get(event.tier, 0) + 1, self._copies_max)
                    self._orphans.touch(engine_hash)
                continue
            if engine_hash not in self._blocks:
                self._blocks[engine_hash] = block
                self._revive(engine_hash)
            if not self._announces_extra_keys:
                self._claim(engine_hash, block.key)
            if event.tier is GPU:
                if not block.copies:
                    self._hold_keys(GPU, (block.key,))
                block.copies = min(block.copies + 1, self._copies_max)
            else:
                self._hold_lower(engine_hash, event.tier, self._covered(engine_hash, block, event.block_size))
            self.stored[event.tier] += 1

    def _covered(self, engine_hash: int, block: Block, block_size: int) -> tuple[int, ...]:
        """The keys that an offloaded hash stands for: its own and, by the parent links, those before it."""
        size = block_size or self._offload_block_size or 0
        blocks = size // self.block_size if self.block_size and size % self.block_size == 0 else 1
        keys = [block.key]
        link: Block | None = block
        while len(keys) < blocks and link is not None and link.parent is not None:
            link = self._known(link.parent)
            if link is not None:
                keys.append(link.key)
        return tuple(keys)

    # Two engine hashes, one key

    def _claim(self, engine_hash: int, key: int) -> None:
        """Where an engine announces no extra keys, two hashes for one key may be two images: such a key is not indexed."""
        if self._announces_extra_keys:
            return
        claims = self._claims.setdefault(key, set())
        claims.add(engine_hash)
        if len(claims) > 1 and key not in self._ambiguous:
            self._ambiguous.add(key)
            self.tally["ambiguous_key"] += 1
            for tier in Tier:
                if key in self._held[tier].keys:
                    self._change.touched[tier][key] = False

    def _unclaim(self, engine_hash: int, key: int) -> None:
        claims = self._claims.get(key)
        if claims is None:
            return
        claims.discard(engine_hash)
        if not claims:
            del self._claims[key]
            if key in self._ambiguous:
                self._ambiguous.remove(key)
                for tier in Tier:
                    if key in self._held[tier].keys:  # an offloaded run of another hash covers it
                        self._change.touched[tier][key] = True

    # Removing

    def _remove(self, event: Removed) -> None:
        if event.group is not None and self._indexed_group is not None and event.group != self._indexed_group:
            raise Refused("other_attention")
        if self.touched is not None:
            self.touched[event.tier].update(dict.fromkeys(event.hashes))
        for engine_hash in event.hashes:
            block = self._blocks.get(engine_hash)
            if block is None:
                self._remove_parked(engine_hash, event.tier)
            elif event.tier is not GPU:
                self._remove_lower(engine_hash, block, event.tier)
            elif block.copies > 1:
                block.copies -= 1
            elif block.copies:
                block.copies = 0
                self._release_keys(GPU, (block.key,))
                self._retire(engine_hash, block)
        self.removed[event.tier] += len(event.hashes)

    def _remove_lower(self, engine_hash: int, block: Block, tier: Tier) -> None:
        copy = self._lower[tier].get(engine_hash)
        if copy is None:
            return
        copy.count -= 1
        if not copy.count:
            del self._lower[tier][engine_hash]
            self._release_keys(tier, copy.keys)
            self._retire(engine_hash, block)

    def _remove_parked(self, engine_hash: int, tier: Tier) -> None:
        parked = self._orphans.get(engine_hash)
        if parked is not None and parked.copies.get(tier):
            parked.copies[tier] -= 1
            self._orphans.touch(engine_hash)

    def _retire(self, engine_hash: int, block: Block) -> None:
        """Move a block that no tier holds any more to the memory of removed ones."""
        if block.copies or any(engine_hash in lower for lower in self._lower if lower):
            return
        del self._blocks[engine_hash]
        self._unclaim(engine_hash, block.key)
        self._remember(engine_hash, block)

    def _remember(self, engine_hash: int, block: Block) -> None:
        self._removed.pop(engine_hash, None)
        self._removed[engine_hash] = block
        self._touch_removed((engine_hash,))
        if len(self._removed) > self._limits.removed_max:
            self._revive(next(iter(self._removed)))

    def _revive(self, engine_hash: int) -> None:
        """Remember it no longer as removed."""
        if self._removed.pop(engine_hash, None) is not None:
            self._touch_removed((engine_hash,))

    def _touch_removed(self, hashes: Iterable[int]) -> None:
        if self._offloads and self.touched is not None:
            self.touched[REMOVED].update(dict.fromkeys(hashes))

    def _clear(self) -> None:
        """The gpu pool was reset; the lower tiers survive it."""
        self._change.clear_gpu()
        self._held[GPU].clear()
        for engine_hash, block in list(self._blocks.items()):
            if block.copies:
                block.copies = 0
                self._retire(engine_hash, block)
        for engine_hash, parked in self._orphans.items():
            if parked.copies.pop(Tier.GPU, None):
                self._orphans.touch(engine_hash)
        if self.touched is not None:
            self.touched[Tier.GPU].clear()

    # Orphans

    def _park(self, event: Stored, now_s: float) -> None:
        """Keep blocks whose parent is unknown, one by one, until the parent appears."""
        assert event.parent is not None, "a block without a parent has its key at once"
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
        waiting = self._orphans.children(engine_hash)
        while waiting:
            child = waiting.pop()
            self._settle(child, self._orphans.pop(child))
            waiting.extend(self._orphans.children(child))

    def _settle(self, engine_hash: int, parked: Parked) -> None:
        block = self._known(engine_hash)
        if block is None:
            parent_key = self._key_of(parked.parent)
            if parent_key is None:  # the parent was itself only remembered, and has just been forgotten
                self.tally["orphan_dropped"] += 1
                return
            (key,) = chain_keys(parent_key, parked.tokens, len(parked.tokens) // TOKEN_BYTES, {0: parked.extra})
            block = Block(key, parked.parent, 0)
        self._revive(engine_hash)
        self._blocks[engine_hash] = block
        if self.touched is not None:
            for tier in parked.copies:
                self.touched[tier][engine_hash] = None
        if not self._announces_extra_keys and any(parked.copies.values()):
            self._claim(engine_hash, block.key)
        for tier, copies in parked.copies.items():
            if not copies:
                continue
            if tier is GPU:
                if not block.copies:
                    self._hold_keys(tier, (block.key,))
                block.copies = min(block.copies + copies, self._copies_max)
            else:
                for _ in range(copies):
                    self._hold_lower(engine_hash, tier, (block.key,))
        self._retire(engine_hash, block)
        self.tally["orphan_adopted"] += 1

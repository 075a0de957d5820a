"""What one stream holds, changed event by event.

    groups    the KV-cache groups, and how blocks are cut
    blocks    copies by engine hash, and the block keys that they hold
    waiting   blocks whose key is not known yet; bounded in number and time
    foreign   copies below the gpu under hashes that are not the engine's; the same

An engine announces each physical block, so the same hash can be stored twice and has to be removed twice ("copies"); where that does
not hold (SGLang), one removal is enough ("set").

It is long: what one event does needs all of these parts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Any, Literal

from msgspec import structs

from indexer.core.adapters import Adapters
from indexer.core.block_keys import chain_keys
from indexer.core.block_table import BlockRecord, HashRecord
from indexer.core.blocks import Block
from indexer.core.change import Change
from indexer.core.change_records import ChangeRecords, records
from indexer.core.event_pieces import Steps, piece_of, pieces_of, result_of
from indexer.core.events import Cleared, Event, Removed, Stored, Tier
from indexer.core.foreign_copies import ForeignCopies
from indexer.core.groups import LEAD, CacheShape, Group, Groups
from indexer.core.held_blocks import HeldBlocks, Roots
from indexer.core.larger_blocks import split_told, told_covers
from indexer.core.orphans import Orphans
from indexer.core.places import FOREIGN, PARKED, place_of
from indexer.core.plain_batches import PACKED, odd_events
from indexer.core.token_sample import TokenSample
from indexer.core.traits import Traits
from indexer.core.waiting_blocks import WaitingBlocks
from indexer.errors import Refused
from indexer.limits import StateLimits

Counting = Literal["copies", "set"]

# An enum's member costs as much to name as a look-up in a dict.
GPU = Tier.GPU

GROUPS_MAX = 255
# A step of a batch that takes several has no more blocks: some milliseconds at worst.
STEP_BLOCKS_MAX = 1_024
# What an event costs besides its blocks, in blocks.
EVENT_BLOCKS = 8
# So many events of a large batch are looked at where the first one says something new of its group.
LEARNED_FROM_MAX = 4_096


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
        self.tally: Counter[str] = Counter()
        self.removed: defaultdict[Tier, int] = defaultdict(int)
        self._sample = TokenSample()
        self.is_amid_batch = False
        """Whether a batch that takes several steps is applied in part: what is held is then neither what it was before nor what it will be."""
        self._adopting: Sequence[int] = ()
        self._records = ChangeRecords(is_wanted=with_records, with_hash_mapping=with_hash_mapping)
        self._blocks = HeldBlocks(self._limits, self._copies_max, self.tally, self._records.touched)
        self.table = self._blocks.table
        """The blocks by engine hash; to read, not to change."""
        self._reset()

    def _reset(self) -> None:
        self._groups = Groups(GROUPS_MAX, self._offload_block_size)
        self._batch: Iterable[Event] = ()
        self.clears = 0
        self._states: list[Stored] = []
        """Events of the batch that name recurrent states."""
        self._adapters = Adapters(self._model, self._hash_seed)
        self.tiers: set[Tier] = set()
        """Those below the gpu of which the engine said anything. `clears`: how many the last batch had."""
        limits, touched = self._limits, self._records.touched
        self.orphans = Orphans(touched, limits, self._copies_max)
        """The blocks that wait for their parent."""
        self._waiting = WaitingBlocks(self.orphans, self._blocks, self._groups, self._covered, limits.parked_max, self.tally)
        self.foreign = ForeignCopies(self._blocks, limits, touched)
        """The copies under foreign hashes that wait for the gpu."""

    @property
    def adapters(self) -> dict[str, None]:
        """Names of LoRA adapters that were announced, the longest ago first."""
        return self._adapters.names

    @property
    def shape(self) -> CacheShape | None:
        """How the blocks are cut; None before any block."""
        return self._groups.shape

    @property
    def other_block_size(self) -> int | None:
        """Of blocks that were passed over since their group's are of another size."""
        return self._groups.other_block_size

    @property
    def undecided(self) -> tuple[str, ...]:
        """What the engine does not tell of its KV-cache groups: words of `groups.UNDECIDED`."""
        return self._groups.undecided

    @property
    def groups(self) -> list[Group]:
        """The KV-cache groups that were announced."""
        return list(self._groups.known)

    @property
    def stored(self) -> defaultdict[Tier, int]:
        """Copies added by tier, since it was last taken."""
        return self._blocks.stored

    @property
    def highest_token(self) -> int | None:
        """The highest token announced, in a sample of the events."""
        return self._sample.highest

    @property
    def parked(self) -> int:
        """How many blocks wait for their parent."""
        return len(self.orphans.parked) + len(self.foreign.waiting)

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
        self.is_amid_batch, self._adopting = False, ()
        self._forget()

    def _forget(self) -> None:
        self._blocks.forget()
        self._reset()

    def drop_held(self) -> Steps[None]:
        """Drop all blocks, but remember which hash had which key: the same engine goes on, but its removals were missed. Nothing else may be done to
        the state until that is done, or all is forgotten."""
        self.is_amid_batch = True
        return self._drop_held()

    def _drop_held(self) -> Steps[None]:
        shape, unsized, adapters, tiers = self._groups.shape, self._groups.unsized, self._adapters, self.tiers
        yield from self._blocks.drop_held()
        self._reset()
        self._groups.restore(shape, unsized)
        self._adapters, self.tiers = adapters, tiers
        self.is_amid_batch = False

    def apply(self, events: Iterable[Event], now_s: float) -> Change:
        """Apply one batch. Never raises for what a network can send: what cannot be used is tallied."""
        change = self.start(events, now_s)
        return change if isinstance(change, Change) else result_of(change)

    def start(self, events: Iterable[Event], now_s: float) -> Change | Steps[Change]:
        """The same, or where it takes long the steps that are left. Until they are carried out nothing else may be done to the state."""
        self._begin(events)
        parked = self.orphans.parked
        left = odd_events(events, self._blocks, self._sample, self.removed, self._plain_roots) if type(events) is PACKED else iter(events)
        at_once = STEP_BLOCKS_MAX
        for event in left:
            at_once -= EVENT_BLOCKS if isinstance(event, Cleared) else EVENT_BLOCKS + len(event.hashes)
            if at_once < 0:
                return self._go_on(chain((event,), left), now_s)
            try:
                if type(event) is Stored:  # a pattern that does not match a Struct costs several look-ups
                    if len(parked) > STEP_BLOCKS_MAX:
                        return self._go_on(chain((event,), left), now_s)
                    if (left_of_it := self._store(event, now_s)) is not None:
                        result_of(left_of_it)
                elif type(event) is Removed:
                    self._remove(event)
                elif len(self.table.held) + sum(map(len, self.table.more.values())) > STEP_BLOCKS_MAX:
                    return self._go_on(chain((event,), left), now_s)
                else:
                    result_of(self._clear())
            except Refused as refused:
                self.tally[refused.reason] += 1
        self._batch, change = (), self._blocks.keys.change
        if self._states or self._waiting.expected or self.orphans.parked or self.foreign.waiting:
            if max(len(self._waiting.expected), len(self.orphans.parked), len(self.foreign.waiting)) > STEP_BLOCKS_MAX:
                return self._go_on((), now_s)
            result_of(self._follow(change, now_s))
        self._records.describe(change, self.table, self.orphans, self.foreign, has_groups=self._groups.are_several)
        return change

    def knows(self, said: tuple[Any, ...]) -> bool:
        """Whether packed events that say this of their groups teach nothing new, and all are of the lead group."""
        roots = self._plain_roots(said)
        return roots is not None and roots[0] == (1 << len(said)) - 1

    def _plain_roots(self, said: tuple[Any, ...]) -> Roots | None:
        """See `odd_events`. Where blocks go by other hashes or more tokens than their own, every event is looked at here."""
        if self.table.salted.engine_hashes or self._groups.lookahead:
            return None
        return self._groups.leads(said), self._adapters.root(None), self.orphans.parked, self.orphans.awaited

    def apply_in_steps(self, events: Iterable[Event | None], batch: Iterable[Event], now_s: float) -> Steps[Change]:
        """The steps of a batch, whatever it takes. `events`: those of `batch`, with what they entail; asked for one by one, None for a step that only
        that took."""
        self._begin(batch)
        return self._go_on(events, now_s)

    def _begin(self, batch: Iterable[Event]) -> None:
        self._blocks.begin(self._records.begin())
        self._batch, self.clears = batch, 0

    def _go_on(self, events: Iterable[Event | None], now_s: float) -> Steps[Change]:
        """The steps of these events, and of what follows a batch."""
        self.is_amid_batch = True
        return self._steps(events, now_s)

    def _steps(self, events: Iterable[Event | None], now_s: float) -> Steps[Change]:
        for event in events:
            if event is None:
                yield
                continue
            try:
                for piece in pieces_of(event, STEP_BLOCKS_MAX, self._groups.key_size if self.shape else 0):
                    if isinstance(piece, Stored):
                        if (left := self._store(piece, now_s)) is not None:
                            yield from left
                    elif isinstance(piece, Removed):
                        self._remove(piece)
                    else:
                        yield from self._clear()
                    yield
                    yield from self._settle_adopted()
            except Refused as refused:
                self.tally[refused.reason] += 1
        self._batch, change = (), self._blocks.keys.change
        yield from self._follow(change, now_s)
        yield from self._records.describe_in_steps(change, self.table, self.orphans, self.foreign, has_groups=self._groups.are_several)
        self.is_amid_batch = False
        return change

    def _adopt(self, hashes: Sequence[int]) -> None:
        """These hashes have keys now, at the end of an event: so have those that waited for them."""
        if self.is_amid_batch:
            self._adopting = hashes
        else:
            result_of(self._waiting.adopt(hashes))

    def _settle_adopted(self) -> Steps[None]:
        if self._adopting:
            adopting, self._adopting = self._adopting, ()
            yield from self._waiting.adopt(adopting)

    def _follow(self, change: Change, now_s: float) -> Steps[None]:
        """After a batch: give keys to what waited for it, and drop what has waited for too long."""
        states, self._states = self._states, []
        for event in states:
            yield from self._waiting.place_states(event, self._parent_key(event))
        yield from self._waiting.follow(change)
        oldest_s = now_s - self._limits.parked_max_s
        if self.foreign.waiting:
            yield from self.foreign.follow(change, self._groups.shape)
            self.tally["orphan_dropped"] += yield from self.foreign.drop_before(oldest_s)
        if self.orphans.parked:
            self.tally["orphan_dropped"] += yield from self.orphans.drop_before(oldest_s)

    def slot_of(self, number: int) -> int | None:
        """The slot of a KV-cache group; None for one that holds nothing."""
        return self._groups.slot_of(number)

    # A copy kept elsewhere

    def records(self, place: int, hashes: Iterable[int]) -> dict[int, HashRecord | None]:
        """What a place holds for these engine hashes; None where it holds nothing."""
        if place in (PARKED, FOREIGN):
            waiting: Orphans | ForeignCopies = self.orphans if place == PARKED else self.foreign
            return {engine_hash: waiting.get(engine_hash) for engine_hash in hashes}
        return records(self.table, place, hashes)

    def traits(self) -> Traits:
        """What reading further events depends on, besides the blocks."""
        return Traits(
            shape=self._groups.shape,
            announces_extra_keys=self._blocks.announces_extra_keys,
            offloads=self.table.offloads,
            unsized=self._groups.unsized,
            adapters=tuple(self._adapters.names),
        )

    def restore(
        self, traits: Traits, places: Iterable[tuple[int, Iterable[tuple[int, BlockRecord]]]], removed: Iterable[tuple[int, BlockRecord]] = ()
    ) -> None:
        """Hold what a former owner of the stream recorded, in place of everything. What is parked is up to the caller."""
        self.forget()
        self._groups.restore(traits.shape, traits.unsized)
        self._blocks.announces_extra_keys, self.table.offloads = traits.announces_extra_keys, traits.offloads
        self._adapters.restore(traits.adapters)
        self._blocks.restore(places, removed)
        self._blocks.begin(Change())
        self.tally.clear()

    # Groups

    def _learn(self, event: Stored) -> None:
        """This event says something new of its group. The whole batch is looked at, once: what comes later in it may say more."""
        events, self._batch = [*islice(self._batch, LEARNED_FROM_MAX), event], ()
        former = self._groups.learn(events)
        if former is None:
            return
        sizes = {group.number: group.block_size for group in self._groups.known}
        for slot, group in enumerate(former.groups):
            if self._blocks.keys.holds(slot):
                self.tally["block_size_changed" if sizes.get(group.number) == group.block_size else "partial_block"] += 1
        shape, unsized, adapters, announces_extra_keys = self._groups.shape, self._groups.unsized, self._adapters, self._blocks.announces_extra_keys
        self._forget()
        self._groups.restore(shape, unsized)
        self._adapters, self._blocks.announces_extra_keys = adapters, announces_extra_keys
        self._blocks.keys.change.reload = True
        self._records.forget()

    def _covered(self, engine_hash: int, block: Block, slot: int, tier: Tier, block_size: int = 0) -> tuple[int, ...]:
        """The keys that a hash covers in a place: its own and those before it, by its block size."""
        width = self._groups.width(slot, 0 if tier is GPU else block_size or self._offload_block_size or 0)
        return (block.key,) if width == 1 else self._blocks.covered(engine_hash, block, slot, width)

    def _parent_key(self, event: Stored) -> int | None:
        """The key that an event's first block chains from; None where its parent is not known."""
        return self._adapters.root(event.lora_name) if event.parent is None else self.table.key_before(event.parent)

    # Storing

    def _store(self, event: Stored, now_s: float) -> Steps[None] | None:
        """Returns the steps that are left, None where all is done."""
        if event.announces_extra_keys:
            self._blocks.announces_extra_keys = True
        if event.lora_name is not None:
            self._adapters.note(event.lora_name)
        if event.salt is not None:
            event = self._renamed(event, event.salt)
        if event.tier is not GPU:
            return self._store_lower(event, now_s)
        if not event.tokens:
            return self._store_by_hash(event, now_s)
        slot = self._groups.seen(event)
        if slot is None:
            self._learn(event)
            slot = self._groups.settle(event)
        self._sample.until_next -= 1
        if not self._sample.until_next:
            self._sample.add(event.tokens)
        groups = self._groups
        is_told = event.lookahead == groups.lookahead and (not event.extra_keys or event.block_size == groups.key_size)
        if not is_told or len(event.hashes) > STEP_BLOCKS_MAX:
            return self._store_told(event, slot, now_s)
        self._store_announced(event, slot, now_s)
        return None

    def _renamed(self, event: Stored, salt: str) -> Stored:
        """The event by the hashes of its salted blocks."""
        table, orphans = self.table, self.orphans
        most = 2 * (len(table.held) + len(table.removed) + len(orphans))
        return table.salted.rename(event, salt, most, lambda block_hash: table.known(block_hash) is not None or block_hash in orphans)

    def _store_announced(self, event: Stored, slot: int, now_s: float) -> None:
        """Blocks on the gpu whose event tells their keys, if the one before is known."""
        key_size, run, parent_key = self._groups.key_size, event.block_size // self._groups.key_size, self._parent_key(event)
        if parent_key is not None:
            keys = chain_keys(parent_key, event.tokens, key_size, event.extra_keys)
        else:
            first = self.table.key_before(event.hashes[0])
            if first is None:
                self._records.touch(self._blocks.keys.change, place_of(slot, GPU), event.hashes, self.table)
                self._waiting.park(event, slot, now_s)
                return
            keys = [*[first] * run, *chain_keys(first, event.tokens, key_size, event.extra_keys, start=run)]
        if slot == LEAD:
            self._blocks.add(event, keys)
        else:
            self._blocks.add_in(place_of(slot, GPU), event, keys, run, self._groups.width(slot))
        if self.orphans.parked:
            self._adopt(event.hashes)

    def _store_told(self, event: Stored, slot: int, now_s: float) -> Steps[None]:
        """Blocks of an event as far as it tells their keys, with the extra keys of their parts. The others are stored by their hashes."""
        for start in range(0, len(event.hashes), STEP_BLOCKS_MAX):
            piece = piece_of(event, start, start + STEP_BLOCKS_MAX)
            parent_key = self._parent_key(piece)
            told, others = split_told(piece, self._groups.key_size, self._groups.lookahead, has_parent_key=parent_key is not None)
            if told is not None and event.tier is GPU:
                self._store_announced(told, slot, now_s)
            elif told is not None and parent_key is not None:
                self._add_lower(told, slot, parent_key)
            yield
            yield from self._settle_adopted()
            if others is not None:
                done = start + len(piece.hashes) - len(others.hashes)
                yield from self._store_by_hash(structs.replace(piece_of(event, done, len(event.hashes)), extra_keys=None), now_s)
                return

    def _add_lower(self, event: Stored, slot: int, parent_key: int) -> None:
        """Copies below the gpu whose keys are told."""
        key_size = self._groups.key_size
        keys, width = chain_keys(parent_key, event.tokens, key_size, event.extra_keys), self._groups.width(slot, event.block_size)
        self._blocks.add_in(place_of(slot, event.tier), event, keys, event.block_size // key_size, width)
        self._adopt(event.hashes)

    def _store_by_hash(self, event: Stored, now_s: float) -> Steps[None]:
        """Blocks whose keys are those that their hashes have elsewhere. What has none yet waits for it."""
        if not self._groups.has_heard(event):
            self._learn(event)
        waits = False
        for start in range(0, len(event.hashes), STEP_BLOCKS_MAX):
            piece = event if len(event.hashes) <= STEP_BLOCKS_MAX else piece_of(event, start, start + STEP_BLOCKS_MAX)
            unknown = self._store_known(piece)
            if unknown:
                waits = True
                self._waiting.wait(unknown, self._groups.number_of(event.group), event.tier, now_s)
            yield
        if waits and event.state_tokens:
            self._states.append(event)

    def _store_known(self, event: Stored) -> list[int]:
        """Those of these blocks whose keys are known. Returns the other hashes."""
        slot = self._groups.slot_of(event.group)
        if slot is None:
            return event.hashes
        table, place = self.table, place_of(slot, event.tier)
        self._records.touch(self._blocks.keys.change, place, event.hashes, table)
        unknown = []
        told = told_covers(event, self._parent_key(event), self._groups.key_size, self._groups.width(slot, event.block_size))
        for engine_hash in event.hashes:
            block = table.known(engine_hash)
            if block is None:
                unknown.append(engine_hash)
            else:
                covered = told.get(block.key) or self._covered(engine_hash, block, slot, event.tier, event.block_size)
                self._blocks.add_known(engine_hash, block, place, covered)
        return unknown

    def _store_lower(self, event: Stored, now_s: float) -> Steps[None]:
        """Copies below the gpu. Tokens alone do not say whose blocks they are: a copy takes the key of the block that has its hash on the gpu."""
        self.tiers.add(event.tier)
        self._groups.note_offloading(event)
        if not event.tokens or (event.group is not None and not event.lists_extra_keys):
            return self._store_by_hash(event, now_s)
        return self._store_lower_with_tokens(event, now_s)

    def _store_lower_with_tokens(self, event: Stored, now_s: float) -> Steps[None]:
        known = 0
        for start in range(0, len(event.hashes), STEP_BLOCKS_MAX):
            known += sum(self.table.known(engine_hash) is not None for engine_hash in event.hashes[start : start + STEP_BLOCKS_MAX])
            yield
        if known == len(event.hashes):
            yield from self._store_by_hash(event, now_s)
        elif event.lists_extra_keys:
            yield from self._store_lower_announced(event, now_s)
        elif not known and not event.extra_keys and not event.lora_name:
            size, slot = None if self.shape is None else self.shape.block_size, self._groups.slot_of(event.group) or LEAD
            root, place = self._adapters.root(None), place_of(slot, event.tier)
            self.tally["orphan_dropped"] += yield from self.foreign.add(event, root, place, now_s, size)
        else:
            yield from self._store_by_hash(event, now_s)

    def _store_lower_announced(self, event: Stored, now_s: float) -> Steps[None]:
        """Copies whose event says all that their keys are made of."""
        slot = self._groups.slot_of(event.group)
        run, left = (0, 0) if slot is None else divmod(event.block_size, self._groups.key_size)
        if slot is None or not run or left or self._parent_key(event) is None:
            return self._store_by_hash(event, now_s)
        return self._store_told(event, slot, now_s)

    # Removing

    def _remove(self, event: Removed) -> None:
        slot = self._groups.slot_of(event.group)
        hashes = not_held = self.table.salted.all_of(event.hashes) if self.table.salted.engine_hashes else event.hashes
        if slot is not None:
            not_held = self._blocks.remove(hashes, place_of(slot, event.tier))
        if not_held:
            if self.orphans.parked:
                self._waiting.remove(not_held, self._groups.number_of(event.group), event.tier)
            if self.foreign.waiting and event.tier is not GPU:
                for engine_hash in not_held:
                    self.foreign.remove(engine_hash)
        self.tiers |= {event.tier} - {GPU}
        self.removed[event.tier] += len(event.hashes)

    def _clear(self) -> Steps[None]:
        """The gpu pool was reset. The lower tiers survive it; a second reset in the same batch is theirs."""
        self.clears += 1
        of_gpu = self.clears == 1
        if of_gpu:
            yield from self._blocks.clear_gpu(STEP_BLOCKS_MAX)
            self._records.forget_gpu()
        else:
            yield from self._blocks.clear_lower(STEP_BLOCKS_MAX)
            self.foreign.clear()
        yield from self._waiting.clear(of_gpu=of_gpu)
